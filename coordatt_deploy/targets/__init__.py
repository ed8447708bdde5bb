"""Targets: other machines, or emulated ones, on which artifacts are run."""
