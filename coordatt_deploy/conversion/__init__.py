"""The second stage: from float artifacts to quantized ones, and the search for layers to keep in float."""
