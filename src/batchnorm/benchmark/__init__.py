"""Compares the layers with torch's on this machine: results are checked first, then the layers are timed in turns."""
