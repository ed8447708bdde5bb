"""A bundle as one file: packed, checked as it is read, and unpacked; and what of a bundle is handed on at all."""
