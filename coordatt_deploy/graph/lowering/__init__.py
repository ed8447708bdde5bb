"""Lowering: recognise attention and activations, and write them in the form that a runtime runs fastest."""
