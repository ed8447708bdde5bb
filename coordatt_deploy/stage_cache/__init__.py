"""What ``build`` has made before, kept so that it is made once: by what it was made of, never by a file's time."""
