"""Fixtures that the tests of a format share."""

from tests.formats.gguf_models import converted

__all__ = ["converted"]
