"""What an operator does: see what failed, understand it, re-run it, and send by hand."""
