"""What all commands share: arguments, error lines and shutdown."""
