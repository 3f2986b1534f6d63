"""`python -m allocation`: the operator's tool."""

from __future__ import annotations

import sys

from messaging import __version__
from messaging.extras import program

if sys.argv[1:] == ["--version"]:  # also where the tool is not installed
    print(f"allocation {__version__}")
    sys.exit()

with program("worker"):
    from allocation.cli import main

main()
