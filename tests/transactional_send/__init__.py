"""A shop that sends inside its own transactions, while it, its relay and its broker are killed."""
