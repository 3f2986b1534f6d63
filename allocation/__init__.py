"""Allocates stock to orders."""
