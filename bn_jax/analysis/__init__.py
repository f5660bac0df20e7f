"""Measurements of a model, computed from arrays."""
