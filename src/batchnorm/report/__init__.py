"""Turns a study's numbers into a page and a table. Takes plain dicts; knows nothing of how they were made."""
