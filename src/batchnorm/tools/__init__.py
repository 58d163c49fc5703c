"""Functions over a whole model."""
