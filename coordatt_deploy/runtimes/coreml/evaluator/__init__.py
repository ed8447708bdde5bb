"""The ML Program evaluator: runs saved Core ML packages anywhere."""
