"""Accuracy on labelled images: of the reference, of every artifact, and of the difference between the two."""
