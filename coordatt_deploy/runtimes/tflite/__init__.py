"""TFLite files: LiteRT."""
