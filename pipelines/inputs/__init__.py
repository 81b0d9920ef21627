"""Find the files that the inputs of a recipe name."""
