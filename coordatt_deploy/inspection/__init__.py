"""What models and files are made of, and what will trouble them on a phone."""
