"""ONNX on ONNX Runtime."""

SHARES = ("own_cache",)  # other folders of runtimes/backends/ that its bundles carry
