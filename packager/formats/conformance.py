"""Has the type checker hold our own formats to the protocol. Nothing imports it."""

from packager.formats import Format
from packager.formats.gguf import format as gguf
from packager.formats.gptq import format as gptq
from packager.formats.onnx import format as onnx

FORMATS: tuple[Format, ...] = (gguf, gptq, onnx)
