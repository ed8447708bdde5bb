"""Core ML packages: Core ML, or the evaluator."""
