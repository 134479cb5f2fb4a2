"""Which position of a sequence lies in which slot of a cache of keys and values.

Slots [0, filled) hold the latest positions in order. When the end is reached, the oldest beyond
what the window needs and one chunk are freed, all at once, so that moving costs little and a chunk
can be rewound after it. Whole numbers only; knows nothing of arrays or engines.
"""

from __future__ import annotations

from collections.abc import Callable

from runtimes.contract import Window

STEP = 32  # slots, guessed. They move by multiples of it: a position's place in its step stays

Move = Callable[[int, int], None]
"""move(start, count): copy the `count` slots from `start` on to the front, in every layer."""


class KvSlots:
    """Law: slots [first_visible, filled) hold all that the next position sees besides itself.

    `first` is the position in slot 0, a multiple of STEP. A move that is interrupted leaves no
    position at all.
    """

    def __init__(self, window: Window, context_tokens: int, chunk_tokens: int) -> None:
        self._size = window.size_tokens
        self._chunk_tokens = chunk_tokens
        self.count = context_tokens
        if self._size is not None:
            needed = self._size - 1 + 2 * chunk_tokens + STEP - 1
            self.count = min(context_tokens, needed + -needed % STEP)
        self.position = 0
        self.first = 0

    @property
    def filled(self) -> int:
        """How many slots hold a position."""
        return self.position - self.first

    @property
    def first_visible(self) -> int:
        """The first slot that the window of the next position reaches."""
        return self.first_visible_after(0)

    def first_visible_after(self, more: int) -> int:
        """The same once `more` slots are filled."""
        return 0 if self._size is None else max(0, self.filled + more - (self._size - 1))

    @property
    def min_rewind(self) -> int:
        """The least position above 0 that `rewind` can return to exactly.

        Position p sees p - W + 1 and later, so slot 0 must not lie beyond that.
        """
        return self.first + self._size - 1 if self._size is not None and self.first else 0

    def free_slots(self, new: int, move: Move) -> None:
        """See to it that `new` more fit behind those that are filled; at most a chunk."""
        if self.filled + new <= self.count:
            return
        assert self._size is not None, "without a window the slots hold all of the context"
        start = self.filled - min(self.filled, self._size - 1 + self._chunk_tokens)
        start -= start % STEP
        first, position = self.first + start, self.position
        self.first = self.position = 0
        move(start, position - first)
        self.first, self.position = first, position

    @property
    def state(self) -> tuple[int, int]:
        """Position and `first`: with the slots themselves, all there is to a sequence."""
        return self.position, self.first

    @state.setter
    def state(self, saved: tuple[int, int]) -> None:
        self.position, self.first = saved

    def rewind(self, position: int) -> None:
        """Forget every position from `position` on; the caller has looked at min_rewind."""
        self.position = position
        if position == 0:
            self.first = 0


class RingCache(KvSlots):
    """KvSlots that the engine itself keeps as a ring of one window: nothing past it is kept."""

    def __init__(self, window: Window, context_tokens: int, chunk_tokens: int) -> None:
        super().__init__(window, context_tokens, chunk_tokens)
        self.count = self._size or context_tokens

    @property
    def min_rewind(self) -> int:
        """As in KvSlots, but nothing where one more chunk would leave the window.

        What is guessed is taken in before it can be undone, so it has to be undone from there too.
        """
        within = self._size is None or self.position + self._chunk_tokens <= self._size
        return 0 if within else self.position

    def free_slots(self, new: int, move: Move) -> None:
        """The engine does."""
