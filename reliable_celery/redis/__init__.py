"""kombu's Redis transport, without the steps at which a killed worker loses a message."""
