"""What a worker does, as log lines, traces and metrics; what is not switched on costs nothing."""
