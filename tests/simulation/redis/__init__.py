"""A second, small world: the Redis transport's own channels on a real Redis, one command at a time."""
