"""From a captured model to float artifacts, and from those to quantized ones."""
