"""Many places at once: which there are, one command at all of them, and what came back, as one result."""
