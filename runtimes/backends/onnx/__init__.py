"""ONNX on ONNX Runtime."""
