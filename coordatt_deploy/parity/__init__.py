"""The judges: outputs and layers of every artifact against the reference, and the first that differs."""
