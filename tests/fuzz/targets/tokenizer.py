"""tokenizer.json of a checkpoint: what ours accepts, the library loads and the runtime opens."""

from __future__ import annotations

import json
from pathlib import Path

from packager.checkpoint.tokenizer import ADDED_OPTIONS, BPE_OPTIONS, read_special_ids
from runtimes.errors import StarpackError
from runtimes.prompts.tokenizer import Tokenizer
from tests.fuzz import forms
from tests.fuzz.target import Wrong
from tests.support.tiny import TOKENS, tiny_tokenizer

WORDS = (
    *BPE_OPTIONS, *ADDED_OPTIONS, "type", "ByteLevel", "Digits", "BPE", "add_prefix_space",
    "use_regex", "trim_offsets", "content", "id", "normalizer", "truncation", "NFC",
)  # fmt: skip
FORM = forms.Json(WORDS)
SHARE = 30


def seeds(folder: Path) -> list[bytes]:
    """As the library writes it, and with merges as older ones wrote them."""
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    new = json.loads((folder / "tokenizer.json").read_bytes())
    old = json.loads(json.dumps(new))
    old["model"]["merges"] = [" ".join(pair) for pair in new["model"]["merges"]]
    return [json.dumps(value).encode() for value in (new, old)]


def run(data: bytes, folder: Path) -> None:
    """A checkpoint that is converted must not fail where it runs."""
    file = folder / "tokenizer.json"
    file.write_bytes(data)
    special_ids = read_special_ids(folder, TOKENS)
    try:
        opened = Tokenizer(file, special_ids)
        text = "def f(x):\n\treturn x  # é 12 😀"
        if b"".join(map(opened.token_bytes, opened.encode(text))) != text.encode():
            raise Wrong("a text is not what its ids say")
    except StarpackError as error:
        raise Wrong("the runtime refuses it", error) from None
