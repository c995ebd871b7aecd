"""Write texts in batches: rows that share a prompt in one sequence behind it, other rows side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from limbeck.engine.batching import Limits, batches_by_length
from limbeck.engine.beside import write_beside
from limbeck.engine.chat import Chat
from limbeck.engine.drafts import Draft
from limbeck.engine.packed import write_packed
from limbeck.engine.prefix_cache import PrefixCache
from limbeck.engine.requests import Generation

# Rows behind one prompt from which on they run in one sequence, and the mean of their own tokens up to which they do:
# what a mask hides is computed all the same. Others go side by side.
_PACKED_ROWS, _PACKED_TAIL = 4, 128


def generate_batch(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: Sequence[Draft],
    limits: Limits,
    deliver: Callable[[int, Generation], None],
) -> None:
    """Write all drafts; `deliver(index, result)` as each one ends."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, draft in enumerate(drafts):
        groups.setdefault(draft.prompt.ids[: draft.prompt.shared], []).append(i)
    single: list[int] = []
    for group in groups.values():
        if _packs(drafts, group):
            rows = [drafts[i] for i in group]
            write_packed(prefixes, chat, rows, limits, lambda k, g, group=group: deliver(group[k], g))
        else:
            single += group
    sizes = [len(drafts[i].prompt.ids) + drafts[i].max_tokens for i in single]
    for batch in batches_by_length(sizes, limits.rows, limits.tokens):
        chosen = [single[k] for k in batch]
        rows = [drafts[i] for i in chosen]
        write_beside(prefixes, chat, rows, limits.pack_tokens, lambda k, g, chosen=chosen: deliver(chosen[k], g))


def _packs(drafts: Sequence[Draft], group: Sequence[int]) -> bool:
    """Whether rows of one shared prompt are enough, and short enough, to run in one sequence."""
    tails = sum(len(drafts[i].prompt.ids) - drafts[i].prompt.shared for i in group)
    return len(group) >= _PACKED_ROWS and tails <= _PACKED_TAIL * len(group)
