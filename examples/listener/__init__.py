"""Another app that hears what happened."""
