"""The parts of the check: which module runs each, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

TOTAL_S = 590.0  # under ten minutes; what has no time left is done by the next run


@dataclass(frozen=True, slots=True)
class Part:
    """One part. module: in this package. limit_s: guessed, for a host of two cores and a slow disk.

    about: for a reader.
    """

    name: str
    module: str
    limit_s: float
    about: str


PARTS = {
    part.name: part
    for part in (
        Part("gptq-exact", "exact", 75, "GPTQ: the window on the GPU, with and without graphs"),
        Part("gptq-3b", "speed", 110, "GPTQ: 3B, time and memory, graphs on and off"),
        Part("kernels", "kernels", 60, "torch's ways to multiply 4-bit weights, side by side"),
        Part("gguf-exact", "exact", 40, "GGUF: the window on the GPU"),
        Part("gguf-3b", "speed", 80, "GGUF: 3B, time and memory"),
        Part("onnx-exact", "exact", 40, "ONNX: the window on the GPU"),
        Part("onnx-3b", "speed", 110, "ONNX: 3B, time and memory"),
        Part("gptq-7b", "speed", 170, "GPTQ: 7B, time and memory, graphs on and off"),
        Part("kernels-gptqmodel", "peer_kernels", 150, "GPTQModel's kernels for the same files"),
    )
}
