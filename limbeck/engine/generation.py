"""Write texts in batches: rows of one shared prompt behind it, all others together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from limbeck.engine.batching import Limits
from limbeck.engine.cascade import supports_sharing
from limbeck.engine.chat import Chat
from limbeck.engine.continuous import Work, write
from limbeck.engine.drafts import Draft
from limbeck.engine.prefix_cache import PrefixCache
from limbeck.engine.requests import Generation

# Rows of one prompt from which on they run before others: fewer would leave the cores idle.
_ROWS_A_PROMPT = 4

Ids = tuple[int, ...]


def generate_batch(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: Sequence[Draft],
    limits: Limits,
    deliver: Callable[[Draft, Generation], None],
    more: Callable[[], Sequence[Draft]] = tuple,
) -> None:
    """Write all drafts; `deliver(draft, result)` as each one ends.

    `more()` gives drafts that have come meanwhile. They join the batch that runs where they are of its kind, unless
    others wait for it to end.
    """
    line = _Line(drafts, more, supports_sharing(prefixes.model.config))
    while line.waiting:
        shared, batch = line.next_batch()
        most = max(_own(draft, shared) for draft in batch)
        work = Work(max(1, min(limits.rows, limits.tokens // most)), limits.pack_tokens, bool(shared))
        room = max(most, limits.tokens // work.places)
        write(prefixes, chat, batch, work, deliver, partial(line.joining, shared, room))


class _Line:
    """Drafts that wait for a batch, and those that come meanwhile."""

    def __init__(self, drafts: Sequence[Draft], more: Callable[[], Sequence[Draft]], sharing: bool) -> None:
        self.waiting = list(drafts)
        self._more, self._sharing = more, sharing

    def next_batch(self) -> tuple[Ids, list[Draft]]:
        """Take the drafts to write next and return them behind the prompt that they share, () for none."""
        shared = self._kind(self.waiting)
        batch = [draft for draft in self.waiting if not shared or _shared(draft) == shared]
        self._leave_out(batch)
        return shared, batch

    def joining(self, shared: Ids, most: int) -> list[Draft]:
        """Take the drafts that have come and may join a batch of this kind, of at most so many tokens each."""
        if self.waiting:
            return []
        self.waiting = list(self._more())
        if not self.waiting or not self._joins(shared):
            return []
        found = [d for d in self.waiting if (not shared or _shared(d) == shared) and _own(d, shared) <= most]
        self._leave_out(found)
        return found

    def _joins(self, shared: Ids) -> bool:
        """Whether those that have come go with a batch behind this prompt: some of it, or none that is a batch."""
        return any(_shared(d) == shared for d in self.waiting) if shared else not self._kind(self.waiting)

    def _kind(self, drafts: Sequence[Draft]) -> Ids:
        """Return the prompt that most drafts share, where they are all or enough for a batch; else ()."""
        if not self._sharing:
            return ()
        ((shared, rows),) = Counter(map(_shared, drafts)).most_common(1)
        return shared if rows >= min(_ROWS_A_PROMPT, len(drafts)) else ()

    def _leave_out(self, drafts: Sequence[Draft]) -> None:
        taken = set(map(id, drafts))
        self.waiting = [draft for draft in self.waiting if id(draft) not in taken]


def _shared(draft: Draft) -> Ids:
    return draft.prompt.ids[: draft.prompt.shared]


def _own(draft: Draft, shared: Ids) -> int:
    """Return how many tokens a draft may come to hold behind the shared ones."""
    return len(draft.prompt.ids) - len(shared) + draft.max_tokens
