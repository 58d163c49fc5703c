"""Batch normalization for PyTorch."""
