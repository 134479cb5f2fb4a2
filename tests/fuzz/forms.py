"""How the bytes of a kind of file are changed so that most of it stays valid.

A file of random bytes is refused at its first byte, and values made from nothing (as hypothesis
makes them) at the first key. What is deep in a reader is reached by a valid file with one thing
wrong. Everything here is decided by the given generator of random numbers.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

# Written into the text of JSON as they are: what no Python value would become.
ODD_JSON = (
    "null true false 0 -1 1 2 0.0 -0.0 0.5 1.0 NaN Infinity -Infinity 1e999 -1e999 1e-999 1e308 "
    "2147483647 2147483648 4294967296 9007199254740993 9223372036854775807 9223372036854775808 "
    "18446744073709551616 -9223372036854775809 1e18 "
    '"" "x" "0" "null" "/" ".." "../x" "/tmp/x" "a/../b" "a//b" "\\\\" "\\u0000" "\\ud800" '
    '"\\udfff\\ud800" "\\u202e" "~" "*" "%s" "{}" "nan" [] {} [[]] [null] [0] [-1] {"":0} [[],{}] '
    "[1,2,3] 01 +1 .5 1. 0x1 'x' undefined"
).split()
DIGITS = 6000  # more than Python turns into a number
NESTING = (50, 999, 20_000, 200_000)
LONG = 20_000  # characters
ODD_NUMBERS = (
    -1,
    0,
    1,
    7,
    8,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
ODD_WORDS = (
    b"\0", b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\x7c", b"\x00\xfe",
    b"../", b"/tmp/x", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"{", b"[", b'"',
)  # fmt: skip


class Form(Protocol):
    """A kind of file."""

    def mutate(self, data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
        """Other bytes, made of `data` and perhaps of what is in `pool`."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes without a form. words: what occurs in such files, and may stand anywhere."""

    words: Sequence[bytes] = ()

    def mutate(self, data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
        """One to four changes."""
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = self._change(bytearray(data), rng, pool)
        return data

    def _change(self, data: bytearray, rng: Random, pool: Sequence[bytes]) -> bytes:
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 512)))
        match rng.randrange(8):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                data[at:end] = rng.randbytes(end - at)
            case 2:
                del data[at:end]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 5:
                data[at:end] = rng.choice((*self.words, *ODD_WORDS))
            case 6:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(ODD_NUMBERS) % (1 << 8 * size)
                data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
            case _:
                other = rng.choice(pool)
                data[at:] = other[min(at, len(other)) if rng.random() < 0.5 else 0 :]
        return bytes(data)


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON text. words: keys and values of such files."""

    words: Sequence[str] = ()

    def mutate(self, data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
        """One to three changes to the value, now and then to its text."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if rng.random() < 0.1 or not isinstance(value, dict | list) or not value:
            return Raw([word.encode() for word in self.words]).mutate(data, rng, pool)
        texts: dict[str, str] = {}
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            self._change(value, rng, texts)
        try:
            text = json.dumps(value)
        except (ValueError, RecursionError):  # longer or deeper than Python writes
            return Raw().mutate(data, rng, pool)
        for mark, odd in texts.items():
            text = text.replace(f'"{mark}"', odd)
        return text.encode("utf-8", "surrogatepass")

    def _change(self, value: Any, rng: Random, texts: dict[str, str]) -> None:
        """Change one place, the upper ones as often as the many below them."""
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.75:
                place = place[key]
            else:
                break
        mark = f"@{len(texts)}@"
        match rng.randrange(9):
            case 0 | 1:
                place[key] = mark
                texts[mark] = self._odd(rng)
            case 2:
                del place[key]
                if not value:
                    value.update({"": 0}) if isinstance(value, dict) else value.append(0)
            case 3 if isinstance(place, dict):  # twice, with the same value or another
                place[mark] = place[key] if rng.random() < 0.5 else None
                texts[mark] = json.dumps(key)
            case 3:
                place.insert(rng.randrange(len(place)), deepcopy(place[key]))
            case 4 if isinstance(place, dict):
                place[rng.choice(self.words) if self.words else "unknown"] = rng.choice((None, 1))
            case 5:
                place[key] = self._near(place[key], rng)
            case 6 if self.words:
                place[key] = rng.choice(self.words)
            case 7:
                other = rng.choice(keys)
                place[key], place[other] = place[other], place[key]
            case _:
                place[key] = rng.choice(([place[key]], {"a": place[key]}, str(place[key])))

    def _odd(self, rng: Random) -> str:
        match rng.randrange(12):
            case 0:
                return "[" * rng.choice(NESTING)
            case 1:
                depth = rng.choice(NESTING)
                return '{"a":' * depth + "1" + "}" * depth
            case 2:
                depth = rng.choice(NESTING)
                return "[" * depth + "]" * depth
            case 3:
                return rng.choice(("", "-")) + "9" * rng.choice((19, 20, 40, 400, 4300, DIGITS))
            case 4:
                return json.dumps(rng.choice(("x", "\ud800", "\0", "../", "é")) * LONG)
        return rng.choice(ODD_JSON)

    def _near(self, value: object, rng: Random) -> object:
        """Of the same type, mostly."""
        match value:
            case bool():
                return not value
            case int():
                return rng.choice((value + 1, value - 1, -value, 2 * value, 0, 0.5, 2**31))
            case float():
                return rng.choice((-value, 0.0, value * 1e300, value / 3, value + 1, 1e-320))
            case str():
                odd = rng.choice(("\ud800", "\0", "/", "..", " ", "\n", "é", "x" * LONG, "%"))
                return rng.choice((value + odd, odd + value, value[:-1], value.upper(), odd))
            case list():
                return rng.choice((value[:-1], value + value[:1], value[::-1], value * 3))
            case dict():
                return dict(list(value.items())[: len(value) // 2])
        return rng.choice((0, "", False, []))


@dataclass(frozen=True, slots=True)
class Safetensors:
    """8 bytes of length, a header in JSON, data."""

    header: Json = field(default_factory=lambda: Json(("F32", "F16", "BF16", "I32", "F64", "U8")))

    def mutate(self, data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
        """Mostly of the header, with the length made right; else of the data or of anything."""
        length = int.from_bytes(data[:8], "little")
        head, body = data[8 : 8 + length], data[8 + length :]
        chance = rng.random()
        if chance < 0.6 and len(head) == length:
            head = self.header.mutate(head, rng, pool)
            return struct.pack("<Q", len(head)) + head + body
        if chance < 0.8 and body:
            return data[: 8 + length] + Raw().mutate(body, rng, pool)[: len(body)].ljust(len(body))
        return Raw().mutate(data, rng, pool)


@dataclass(frozen=True, slots=True)
class Files:
    """One file of several: its name on the first line. The others stay as they are."""

    forms: Mapping[str, Form]

    def mutate(self, data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
        """Of the file; its name stays."""
        name, _, content = data.partition(b"\n")
        form = self.forms.get(name.decode("latin-1"), Raw())
        start = name + b"\n"
        same = [other[len(start) :] for other in pool if other.startswith(start)] or [content]
        return start + form.mutate(content, rng, same)


@dataclass(frozen=True, slots=True)
class Tar:
    """Members with valid checksums: odd names, kinds, sizes, orders. forms: of some members."""

    forms: Mapping[str, Form] = field(default_factory=dict)

    def mutate(self, data: bytes, rng: Random, pool: Sequence[bytes]) -> bytes:
        """Of the members, now and then of the bytes."""
        if rng.random() < 0.15:
            return Raw().mutate(data, rng, pool)
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                members = [(m, data[m.offset_data : m.offset_data + m.size]) for m in archive]
        except (tarfile.TarError, ValueError, OSError, KeyError):
            return Raw().mutate(data, rng, pool)
        for _ in range(rng.choice((1, 1, 2)) if members else 0):
            self._change(members, rng)
        made = io.BytesIO()
        for member, content in members:
            try:
                header = member.tobuf(rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
            except (ValueError, UnicodeError):
                continue
            made.write(header + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE))
        return made.getvalue() + b"\0" * 1024

    def _change(self, members: list[tuple[tarfile.TarInfo, bytes]], rng: Random) -> None:
        at = rng.randrange(len(members))
        member, content = members[at]
        member = deepcopy(member)
        top, _, path = member.name.partition("/")
        match rng.randrange(10):
            case 0 | 1:
                odd = (
                    "/etc/x", "/" + path, "../x", "a/../../x", "./" + path, path + "/", ".", "..",
                    "a//b", "\\x", "x" * 300, "a/" * 200 + "x", "\ud8ff", "x\ny", "../../../etc/x",
                )  # fmt: skip
                member.name = rng.choice((f"{top}/", "", f"{top}x/")) + rng.choice(odd)
            case 2:
                member.type = rng.choice(
                    (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"V", b"\0")
                )
                member.linkname = rng.choice(("/etc/x", "../x", f"{top}/bundle.json", path, "."))
            case 3:
                member.size = rng.choice((0, 1, len(content) + 1, 2**33, 2**62, 512))
            case 4:
                del members[at]
                if members:
                    return
            case 5:
                members.insert(rng.randrange(len(members)), (member, content))
            case 6:
                other = rng.randrange(len(members))
                members[at], members[other] = members[other], members[at]
                return
            case 7:
                member.pax_headers = {
                    rng.choice(("path", "size", "linkpath", "GNU.sparse.size", "x")): rng.choice(
                        ("/etc/x", "-1", "99999999999", "../x", "x" * 70_000, "\0")
                    )
                }
            case _:
                form = self.forms.get(path, Raw())
                content = form.mutate(content, rng, [content])
                member.size = len(content)
        members[at : at + 1] = [(member, content)]
