"""Messages on their way: as checked JSON, as a line of a log, as a CloudEvent."""
