"""Pools that stop in time and share their memory."""
