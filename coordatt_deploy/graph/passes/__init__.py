"""Passes: each edits the captured graph and hands the layer map on."""
