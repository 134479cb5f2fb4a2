"""SVG as trees of elements, so that every tag is closed and every text is escaped.

Built on the standard library's ElementTree, which escapes as it writes. Text from outside may hold
anything; what a page cannot hold, or what would turn the text around it, is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup

Child = Element | str | None

# Control characters, lone surrogates and noncharacters have no place in HTML (WHATWG, 13.2.3.5);
# bidirectional overrides and isolates in a name would reorder what stands beside it.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def tag(
    name: str, /, *children: Child | Iterable[Child], **attributes: str | float | None
) -> Element:
    """An element. Attributes are named as in HTML with _ for -, `class_` for class; None omits.

    Numbers are written with one decimal at most: they are lengths in pixels.
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
            element.set(key.rstrip("_").replace("_", "-"), clean(text))
    for child in children:
        _append(element, child)
    return element


def _append(element: Element, child: Child | Iterable[Child]) -> None:
    if isinstance(child, Element):
        element.append(child)
    elif isinstance(child, str):
        if len(element):
            element[-1].tail = (element[-1].tail or "") + clean(child)
        else:
            element.text = (element.text or "") + clean(child)
    elif child is not None:
        for one in child:
            _append(element, one)


def clean(text: str) -> str:
    """`text` with a replacement character for each that does not belong in a page."""
    return _UNFIT.sub("\ufffd", text)


def inline(picture: Element) -> Markup:
    """A picture as it stands in a page, escaped already."""
    return Markup(ElementTree.tostring(picture, "unicode", method="html"))
