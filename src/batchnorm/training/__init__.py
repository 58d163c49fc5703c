"""Context managers and functions for training: freezing, windows, domains, big batches, recomputation."""
