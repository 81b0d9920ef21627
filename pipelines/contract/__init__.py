"""What every stage agrees on: recipes, names, schemas, manifests, storage and errors."""
