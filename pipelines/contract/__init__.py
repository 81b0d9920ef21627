"""What all stages share: recipes, names, schemas, manifests, storage and errors."""
