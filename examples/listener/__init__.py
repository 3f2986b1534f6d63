"""Another app that listens to events."""
