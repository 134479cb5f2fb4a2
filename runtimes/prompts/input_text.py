"""Where the text of a request comes from: files, standard input, a cursor in a file.

Text is taken as it is: UTF-8, line ends and blanks untouched. Standard library only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from runtimes.errors import UsageError

STDIN = "-"


def read_text(source: str) -> str:
    """Text of the file `source`, or of standard input for "-"; raises UsageError."""
    try:
        data = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
        return data.decode()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=source) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"byte {error.start} is not UTF-8 text", where=source, remedy="convert it to UTF-8"
        ) from None


def split_at_cursor(text: str, cursor: str) -> tuple[str, str]:
    """Text before and after `cursor`, "LINE:COLUMN".

    Both count from 1 and COLUMN in characters, as editors show them: "1:1" is the very beginning,
    and the last column of a line is the one after its last character.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8}):([1-9][0-9]{0,8})", cursor)
    if not match:
        raise UsageError(
            f"the cursor is {cursor!r}", expected="LINE:COLUMN, both from 1, such as 12:5"
        )
    line, column = int(match[1]), int(match[2])
    lines = text.split("\n")
    if line > len(lines):
        raise UsageError(f"line {line} of a text of {len(lines)} lines")
    width = len(lines[line - 1].removesuffix("\r"))
    if column > width + 1:
        raise UsageError(f"column {column} of a line of {width} characters")
    offset = sum(len(each) + 1 for each in lines[: line - 1]) + column - 1
    return text[:offset], text[offset:]


def split_at_marker(text: str, marker: str) -> tuple[str, str]:
    """Text before and after `marker`, which must occur exactly once and goes."""
    count = text.count(marker) if marker else 0
    if count != 1:
        raise UsageError(
            f"the marker {marker!r} occurs {count} times in the text",
            expected="once, where the cursor is",
            remedy="choose a --marker that the text does not have elsewhere",
        )
    before, _, after = text.partition(marker)
    return before, after
