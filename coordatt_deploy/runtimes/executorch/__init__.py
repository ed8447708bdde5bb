"""ExecuTorch files: executorch's own runtime, with XNNPACK."""
