"""A run's folder: its name, its files, what may be read back from it."""
