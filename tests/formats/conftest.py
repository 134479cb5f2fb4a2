"""Fixtures that the tests of a format share."""

from tests.formats.gguf_models import converted
from tests.formats.gptq_models import quantised
from tests.formats.onnx_models import exported

__all__ = ["converted", "exported", "quantised"]
