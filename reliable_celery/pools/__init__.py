"""Pools that stop without delay and share memory."""
