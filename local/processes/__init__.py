"""Child processes: starting and stopping them, keeping them running, asking whether they are ready."""
