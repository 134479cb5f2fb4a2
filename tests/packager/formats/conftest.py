"""Fixtures that the tests of a format share."""

from tests.support.gguf_models import converted
from tests.support.gptq_models import quantised
from tests.support.onnx_models import exported

__all__ = ["converted", "exported", "quantised"]
