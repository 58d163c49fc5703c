"""Functions that change or inspect a whole model, and data normalisation."""
