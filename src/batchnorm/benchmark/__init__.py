"""Times of the layers on this machine, beside torch's: results are judged first, then times are taken in turns."""
