"""Turns results into pages, tables and figures. It takes plain dicts and imports nothing that measures."""
