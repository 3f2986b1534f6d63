"""What the project does with a message."""
