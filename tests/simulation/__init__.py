"""A simulation of the whole backend: every message, clock and crash is chosen by a seed.

`python -m tests.simulation --help`; docs/explanation/fault-tests.md says what it checks.
"""
