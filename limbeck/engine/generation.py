"""Write texts in batches: rows of one shared prompt behind it, all others together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from limbeck.engine.batching import Limits
from limbeck.engine.cascade import supports_sharing
from limbeck.engine.chat import Chat
from limbeck.engine.continuous import write
from limbeck.engine.drafts import Draft
from limbeck.engine.prefix_cache import PrefixCache
from limbeck.engine.requests import Generation

# Rows of one prompt from which on they run by themselves: fewer would leave the cores idle.
_ROWS_A_PROMPT = 4


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
    sharing = supports_sharing(prefixes.model.config)
    alone: list[int] = []
    for shared, rows in groups.items():
        if sharing and shared and len(rows) >= _ROWS_A_PROMPT:
            _write(prefixes, chat, drafts, rows, shared, limits, deliver)
        else:
            alone += rows
    if alone:
        _write(prefixes, chat, drafts, alone, (), limits, deliver)


def _write(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: Sequence[Draft],
    rows: Sequence[int],
    shared: tuple[int, ...],
    limits: Limits,
    deliver: Callable[[int, Generation], None],
) -> None:
    write(prefixes, chat, [drafts[i] for i in rows], shared, limits, lambda k, text: deliver(rows[k], text))
