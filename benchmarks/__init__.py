"""How fast this backend is, always beside somebody who does the same job on the same machine."""
