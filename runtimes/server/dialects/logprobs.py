"""Log-probabilities as OpenAI's completions have them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.request import Model

Lists = dict[str, list[object]]


class LogprobLists:
    """Makes the parallel lists; each token's place in the text is counted on from call to call."""

    def __init__(self, model: Model, top: int) -> None:
        """`top` likeliest tokens are shown for each."""
        self._model = model
        self._top = top
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def prompt(self, ids: Sequence[int], entries: Sequence[TokenLogprobs]) -> Lists:
        """Lists of a whole prompt; nothing is known about its first token."""
        lists = self._lists(ids[:1], [None])
        rest = self._lists(ids[1:], entries)
        return {name: lists[name] + rest[name] for name in lists}

    def chunk(self, entries: Sequence[TokenLogprobs]) -> Lists:
        """Lists of generated tokens."""
        return self._lists([entry.id for entry in entries], entries)

    def _lists(self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> Lists:
        text = self._model.token_text
        tops: list[object] = [
            None
            if entry is None or not self._top
            else {text(other): value for other, value in entry.top}
            for entry in entries
        ]
        return {
            "tokens": [text(token_id) for token_id in ids],
            "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
            "top_logprobs": tops,
            "text_offset": [self._place(token_id) for token_id in ids],
        }

    def _place(self, token_id: int) -> int:
        place = self._offset
        self._offset += len(self._decoder.decode(self._model.token_bytes(token_id)))
        return place
