"""Other projects on the same bus."""
