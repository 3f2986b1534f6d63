"""`python -m allocation`: the operator's tool."""

from __future__ import annotations

from allocation.cli import main

main()
