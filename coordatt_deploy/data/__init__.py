"""Data: images, arrays, calibration sets, labelled folders, digits."""
