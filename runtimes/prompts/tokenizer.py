"""Text to ids and ids to text, without loss and without surprises.

Knows the byte-level alphabet, the tokenizer file and stop strings. Knows nothing of prompts: no
control id is added here, and none can come out of a user's text.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path

import tokenizers

from runtimes.contract import IsCancelled, SpecialIds, never_cancelled
from runtimes.errors import Cancelled, IntegrityError, UsageError
from runtimes.prompts.token_bound import TokenBound

# Every trap that has bitten a byte-level tokenizer: a space put in front, CRLF and tabs changed,
# Unicode normalised (the accent is a separate character), a character of four bytes.
PROBE = "x \r\n\t 42 e\u0301 \N{GRINNING FACE}"

# Guessed: some milliseconds of work, and 5 MB of memory where each character is a token (measured).
SLICE_CHARACTERS = 16 * 1024
# StarCoder2's first step (tokenizer.json). It looks at what comes before a place, and after it, but
# never across one that lies next to a digit, or between a visible character and a blank: the words
# to both sides are the same when the text is cut there. The characters are those that all
# definitions of a blank agree on.
STARCODER2_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
CUT_AFTER = re.compile(r"[!-~\w](?=[ \t\r\n])|[0-9]")


@cache
def byte_of_character() -> dict[str, int]:
    """The byte-level alphabet, read backwards: printable stand-in character -> byte.

    Printable Latin-1 stands for itself; the other 68 bytes take the code points from 256 up, in
    order (GPT-2, encoder.py, bytes_to_unicode).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """The tokenizer.json of a model, for plain text only.

    Laws: `b"".join(map(token_bytes, encode(text))) == text.encode()`, and `encode` never returns
    one of the ids in `special_ids.stops`. Both are checked on opening, on the texts that break
    them in practice.
    """

    def __init__(self, file: Path, special_ids: SpecialIds) -> None:
        """Open `file`; raises IntegrityError where it is not the tokenizer of these ids."""
        self._file = file
        self._model = _read(file)
        # Special tokens that occur in text are encoded as the characters they are.
        self._model.encode_special_tokens = True
        # A file may carry the truncation and padding of somebody's training run.
        self._model.no_truncation()
        self._model.no_padding()
        self.vocab_size: int = self._model.get_vocab_size(with_added_tokens=True)
        added = self._model.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._check_special_ids(special_ids)
        # StarCoder2 has no token for 0xF1, which starts the unassigned characters U+40000 to
        # U+7FFFF, nor for bytes that are never in UTF-8. The library would drop them in silence.
        self._missing_bytes = bytes(
            byte
            for character, byte in byte_of_character().items()
            if self._model.token_to_id(character) is None
        )
        # One text is one thread's work: a pool of threads would be started, and not used.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        words = self._model.pre_tokenizer
        self._can_cut = (
            words is not None
            and json.loads(words.__getstate__()) == STARCODER2_WORDS
            and all(token.special for token in added.values())
        )
        self._check_probe(special_ids)

    def encode(self, text: str, cancelled: IsCancelled = never_cancelled) -> list[int]:
        """Ids of `text`, nothing added.

        Raises UsageError where it cannot be said in tokens, Cancelled.
        """
        ids: list[int] = []
        for part in self.encode_slices(text, cancelled):
            ids += part
        return ids

    def encode_slices(
        self, text: str, cancelled: IsCancelled = never_cancelled
    ) -> Iterator[list[int]]:
        """The ids of `encode`, slice by slice of the text; other threads can run meanwhile."""
        start = 0
        while start < len(text):
            if cancelled():
                raise Cancelled("the text was being tokenised")
            cut = None
            if self._can_cut and len(text) - start > SLICE_CHARACTERS:
                cut = CUT_AFTER.search(text, start + SLICE_CHARACTERS)
            end = len(text) if cut is None else cut.end()
            piece = text[start:end]
            self._check_sayable(piece, start)
            # Unlike `encode`, a batch lets go of Python's lock.
            yield self._model.encode_batch_fast([piece], add_special_tokens=False)[0].ids
            start = end

    @cached_property
    def bound(self) -> TokenBound:
        """How few tokens a text can have; a tenth of a second for the vocabulary, once."""
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        return TokenBound(self._bytes_of(token_id, text) for text, token_id in vocabulary.items())

    def _bytes_of(self, token_id: int, text: str) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        try:
            return bytes(map(byte_of_character().__getitem__, text))
        except KeyError:  # not spelt in the alphabet, so it stands for its own text
            return text.encode()

    def _check_sayable(self, text: str, start: int) -> None:
        """Raise UsageError where `text`, which begins at character `start`, cannot be encoded."""
        data = utf8(text, start)
        if len(data.translate(None, self._missing_bytes)) != len(data):
            odd = next(c for c in text if set(c.encode()) & set(self._missing_bytes))
            raise UsageError(
                f"the model has no token for the character U+{ord(odd):04X}",
                where=f"character {start + text.index(odd)}",
                remedy="remove it",
            )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; b"" for an id that has no token.

        A control or added token gives the bytes of its own text.
        """
        text = self._model.id_to_token(token_id)
        return b"" if text is None else self._bytes_of(token_id, text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def _check_special_ids(self, special_ids: SpecialIds) -> None:
        for text, token_id in special_ids.tokens.items():
            if self._model.token_to_id(text) != token_id:
                raise self._bad(
                    f"{text} has the id {self._model.token_to_id(text)}", f"id {token_id}"
                )

    def _check_probe(self, special_ids: SpecialIds) -> None:
        text = PROBE + "".join(special_ids.tokens)
        ids = self.encode(text)
        if special_ids.stops & set(ids):
            raise self._bad(
                "text that spells a control token is encoded as that token",
                'control tokens marked "special": true',
            )
        if self.decode(ids) != text:
            raise self._bad(
                "it changes the text that it encodes",
                "no normaliser and no space in front (add_prefix_space false)",
            )

    def _bad(self, what: str, expected: str) -> IntegrityError:
        return IntegrityError(
            f"the tokenizer does not fit the model: {what}",
            where=self._file,
            expected=expected,
            remedy="use the tokenizer.json that came with the checkpoint",
        )


def utf8(text: str, start: int = 0) -> bytes:
    """The bytes of a text that begins at character `start`; raises UsageError where it has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            "the text has half of a surrogate pair, which is not a character",
            where=f"character {start + error.start}",
            remedy="decode the input as UTF-8 and pass the result",
        ) from None


def _read(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(file.read_bytes())
    except OSError as error:
        raise IntegrityError(
            f"the tokenizer cannot be read: {error.strerror}", where=file
        ) from None
    except Exception as error:  # the library raises plain Exception for every malformed file
        raise IntegrityError(
            f"not a tokenizer file: {error}",
            where=file,
            expected="the tokenizer.json of the `tokenizers` library",
            remedy="use the tokenizer.json that came with the checkpoint",
        ) from None


class TextStream:
    """Ids in, text out as soon as it is certain.

    Holds back the bytes of an unfinished character and any end of the text that could still
    become a stop string. The first stop string to be complete ends the text, just before it; of
    two that are complete at the same character, the longer.

    Law: for any split of `ids` into calls, the joined results of `push` and then `finish` equal
    `cut_at_stop(decode(ids), stops)`.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        """`token_bytes` as in Tokenizer; `stops` are texts of one character or more."""
        self._token_bytes = token_bytes
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int) -> str:
        """Take one id; the text that it made certain, often "". After a stop always ""."""
        return self._take(self._decoder.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        """The text still held back; an unfinished character becomes U+FFFD."""
        certain = self._take(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return certain + rest

    def _take(self, text: str) -> str:
        if self.stopped_by is not None:
            return ""
        self._held += text
        before, self.stopped_by = cut_at_stop(self._held, self._stops)
        if self.stopped_by is not None:
            self._held = ""
            return before
        keep = _open_tail(self._held, self._stops)
        certain, self._held = self._held[: len(self._held) - keep], self._held[-keep:] * bool(keep)
        return certain


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """`text` up to the stop string that is complete first, and that string; else (text, None)."""
    found = [(start + len(stop), start, stop) for stop in stops if (start := text.find(stop)) >= 0]
    if not found:
        return text, None
    _, start, stop = min(found)
    return text[:start], stop


def _open_tail(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest


class IndentRule:
    """Ends a text before its first line that starts with too few blanks and tabs.

    The line at the cursor counts as begun, so the rule is for those after it. An empty line has
    too few. The line break before the line that ends the text is not part of it.

    Law: however a text is split into calls, the joined results of `push` and then `finish` are
    the same.
    """

    def __init__(self, min_blanks: int) -> None:
        """`min_blanks` blanks and tabs; 0 is off."""
        self._min_blanks = min_blanks
        self._held = ""  # a line break, and the start of a line as far as it is blank
        self.ended = False

    def push(self, text: str) -> str:
        """Take more of the text; what of it is certain to stay. After the end always ""."""
        if self._min_blanks == 0:
            return text
        certain = ""
        for character in text:
            if self._held and character not in " \t":  # so the indentation of the line is complete
                if len(self._held) - 1 < self._min_blanks:
                    self.ended, self._held = True, ""
                certain, self._held = certain + self._held, ""
            if self.ended:
                break
            if character == "\n":
                self._held = character
            elif self._held:
                self._held += character
            else:
                certain += character
        return certain

    def finish(self) -> str:
        """What was still held back: the text ended within the blanks of a line."""
        rest, self._held = self._held, ""
        return rest
