"""Statistics of a trained model: pytrees in, pytrees out."""
