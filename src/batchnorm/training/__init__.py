"""Things that change while a model trains: what is normalised by, and what is remembered."""
