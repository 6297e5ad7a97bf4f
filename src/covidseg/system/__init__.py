"""What every part needs of the machine: errors, files, locks, workers, signals."""
