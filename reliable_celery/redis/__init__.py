"""kombu's Redis transport, changed so that a killed worker loses no message."""
