"""tokenizer.json: that it is StarCoder2's kind of tokenizer, with its control ids.

The runtime encodes with this file. Anything in it that would split text in another way, add ids of
its own or cut a prompt is refused here; so is a file that the runtime cannot open. Knows nothing of
how text is encoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.checkpoint.json_files import read_object
from packager.core.errors import CheckpointError, IntegrityError
from runtimes.contract import SpecialIds
from runtimes.prompts.tokenizer import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024  # guessed: StarCoder2's is 2 MB

PRE_TOKENIZER = [
    ("Digits", {"individual_digits": True}),
    ("ByteLevel", {"add_prefix_space": False, "use_regex": True}),
]
# Left out, these have the value that StarCoder2's file has.
BPE_OPTIONS: dict[str, tuple[object, ...]] = {
    "dropout": (None,),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
# Of every added token. One that is not special would be found in a user's text and become its id;
# the others would take the text around it along, or find it in other spellings.
ADDED_OPTIONS = {
    "special": True,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
}
# StarCoder2's own vocabulary lacks these: no UTF-8 has them, but for 0xF1, which begins the
# unassigned code points from U+40000 to U+7FFFF.
ABSENT_BYTES = {0xC0, 0xC1, 0xF1, *range(0xF5, 0x100)}


def read_special_ids(folder: Path, vocab: int) -> SpecialIds:
    """Check tokenizer.json against a model of `vocab` rows; the control ids it has.

    Raises CheckpointError naming what differs from StarCoder2's tokenizer.
    """
    file = folder / TOKENIZER_NAME
    data = read_object(file, MAX_TOKENIZER_BYTES)
    _check_pipeline(data, file)
    ids, control = _check_vocabulary(data, file, vocab)
    special = SpecialIds()
    for text, token_id in special.tokens.items():
        if ids.get(text) != token_id or text not in control:
            raise _bad(
                file,
                f"{text} is {ids.get(text)}" + ("" if text in control else ", not a control token"),
                f"the control token {token_id}, as StarCoder2 was trained",
            )
    try:
        opened = Tokenizer(file, special)  # what will encode with it: now, and not on the device
    except IntegrityError as error:
        raise _bad(file, error.what, error.expected or "a file that it can load") from None
    for text in sorted(control):
        # the library takes the next free id for one that the vocabulary lacks, whatever it says
        if opened.token_bytes(ids[text]) != text.encode():
            raise _bad(
                file,
                f"the added token {text!r} does not get its id {ids[text]}",
                "added tokens that are in the vocabulary, or that follow it",
            )
    return special


def _check_pipeline(data: dict[str, object], file: Path) -> None:
    """Everything that acts on text before and after the merges."""
    for key in ("normalizer", "truncation", "padding"):
        if data.get(key) is not None:
            raise _bad(file, f"{key} is {str(data[key])[:200]}", f"no {key}")
    steps = _mapping(data.get("pre_tokenizer")).get("pretokenizers")
    if not isinstance(steps, list) or len(steps) != len(PRE_TOKENIZER):
        raise _bad_pre_tokenizer(file, data.get("pre_tokenizer"))
    for step, (kind, options) in zip(steps, PRE_TOKENIZER, strict=True):
        step = {"use_regex": True} | _mapping(step)
        if step.get("type") != kind or any(step.get(key) is not v for key, v in options.items()):
            raise _bad_pre_tokenizer(file, data["pre_tokenizer"])
    if _mapping(data.get("decoder")).get("type") != "ByteLevel":
        raise _bad(file, f"decoder is {str(data.get('decoder'))[:200]}", "ByteLevel")
    after = data.get("post_processor")
    if after is not None and _mapping(after).get("type") != "ByteLevel":
        raise _bad(
            file, f"post_processor is {str(after)[:200]}", "ByteLevel or none: ids are never added"
        )


def _check_vocabulary(
    data: dict[str, object], file: Path, vocab: int
) -> tuple[dict[str, int], set[str]]:
    """Text to id, and the control texts, of a complete byte-level BPE of ids 0..n-1, n <= vocab."""
    model = _mapping(data.get("model"))
    if model.get("type") != "BPE":
        raise _bad(file, f"the model is {str(model.get('type'))[:200]}", "BPE")
    for key, allowed in BPE_OPTIONS.items():
        if model.get(key, allowed[0]) not in allowed:
            raise _bad(file, f"model.{key} is {str(model[key])[:200]}", str(allowed[0]))
    words, merges, added = model.get("vocab"), model.get("merges"), data.get("added_tokens") or []
    if not isinstance(words, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise _bad(file, "vocab, merges or added_tokens are malformed", "a map and two lists")
    ids = dict(words)
    for entry in added:
        text, token_id = _mapping(entry).get("content"), _mapping(entry).get("id")
        if not isinstance(text, str) or ids.setdefault(text, token_id) != token_id:
            raise _bad(file, f"the added token {text!r} has the id {token_id}", "one id per token")
        for key, value in ADDED_OPTIONS.items():
            if entry.get(key) is not value:
                raise _bad(
                    file,
                    f"{key} of the added token {text!r} is {str(entry.get(key))[:200]}",
                    f"{key} {value}: no text of a user may become or change a control token",
                )
    values = list(ids.values())
    if not all(type(value) is int for value in values) or set(values) != set(range(len(values))):
        raise _bad(file, "ids are not contiguous", f"each of 0 to {len(values) - 1} once")
    if len(values) > vocab:
        raise _bad(
            file,
            f"the tokenizer has {len(values)} entries, the model {vocab} rows",
            f"at most vocab_size, {vocab}",
        )
    missing = _byte_letters() - set(words)
    if missing:
        raise _bad(file, f"{len(missing)} bytes have no token", "no text may be lost")
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        pair = isinstance(parts, list) and len(parts) == 2 and all(type(p) is str for p in parts)
        if not pair or not {*parts, "".join(parts)} <= words.keys():
            raise _bad(
                file,
                f"the merge {str(merge)[:200]} is not of the vocabulary",
                "two tokens that together are a third",
            )
    return ids, {entry["content"] for entry in added}


def _byte_letters() -> set[str]:
    """The characters that stand for bytes of text (GPT-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {letter for byte, letter in letters.items() if byte not in ABSENT_BYTES}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _bad_pre_tokenizer(file: Path, value: object) -> CheckpointError:
    return _bad(
        file,
        f"pre_tokenizer is {str(value)[:300]}",
        "Digits (individual) then ByteLevel (no prefix space)",
    )


def _bad(file: Path, what: str, expected: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=file,
        expected=expected,
        remedy="take tokenizer.json from the model's own repository; files that were saved again "
        "by AutoTokenizer may have lost a step",
    )
