"""What all commands share: their arguments, their error lines, and their end."""
