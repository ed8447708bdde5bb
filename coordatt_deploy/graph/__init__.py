"""The network as one flat graph: capture, folding, recognition, lowering, and the float64 reference."""
