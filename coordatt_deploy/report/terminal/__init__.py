"""Results on the terminal: one file per result."""
