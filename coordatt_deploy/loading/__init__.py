"""From what the user names to a module with weights, sizes and preprocessing: models, programs, checkpoints."""
