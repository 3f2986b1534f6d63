"""A shop whose customers become VIPs with their third order; the "different project" of the book."""
