"""Other packages, each imported only when its module is asked for."""
