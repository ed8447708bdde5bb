"""Faults planted into real files, to see whether the parity report names the layer."""
