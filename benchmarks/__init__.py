"""Benchmarks: this backend compared with other tools that do the same job on the same machine."""
