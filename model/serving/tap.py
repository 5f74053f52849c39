"""A short way for the pieces of a stream, beside the iterator that has them otherwise.

Every token of every stream passes through a future, a task and a generator for each layer from the
engine to the socket, each of which costs a microsecond or more of the one event loop. While the
reader waits for the next piece and the connection takes it, none of them is needed: a tap hands it
on by plain calls. What comes first, what comes last and what goes wrong is for the iterator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Piece = TypeVar("Piece")
Before = TypeVar("Before")


class Tap(NamedTuple, Generic[Piece]):
    """ready: whether `put` may be called now; put: take a piece, in order, without waiting.

    A reader that is tapped must be done with a piece before it asks for the next.
    """

    ready: Callable[[], bool]
    put: Callable[[Piece], None]

    def after(self, change: Callable[[Before], Piece]) -> Tap[Before]:
        """A tap for what `change` makes pieces of."""
        put = self.put
        return Tap(self.ready, lambda piece: put(change(piece)))
