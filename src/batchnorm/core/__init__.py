"""The computation of a batch norm, on any device."""
