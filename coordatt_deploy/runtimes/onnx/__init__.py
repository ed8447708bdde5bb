"""ONNX files: ONNX Runtime."""
