"""Things that change while a model trains: the statistics that normalise, and how the running statistics move."""
