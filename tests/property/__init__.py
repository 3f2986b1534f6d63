"""What must hold for every input, not for chosen ones."""
