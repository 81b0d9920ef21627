"""Which files the inputs of a recipe name."""
