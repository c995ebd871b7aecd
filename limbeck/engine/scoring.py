"""Score closed sets exactly: the candidates are a trie of tokens whose every edge gets its log-probability.

Small tries run whole, in the same forward pass as the input. Large ones are searched best first: a node's
log-probability bounds everything below it, so the search ends with the true best candidate (A* with a zero
heuristic) once what it has not opened holds little mass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from limbeck.engine.batching import packs
from limbeck.engine.chat import Chat, Prompt, common_length
from limbeck.engine.prefix_cache import KeyValues, PrefixCache, joined
from limbeck.engine.requests import ScoreRequest, Scores
from limbeck.engine.tree import TokenForest, log_probabilities

# Tries of at most this many inner nodes run whole: a second pass would cost more than the tokens saved.
WHOLE_NODES = 24
# Branches one search opens at once: fewer mean more passes, more mean wasted tokens.
_WIDTH = 16
# The search may leave this share of the mass unopened.
_OPEN_MASS = 0.05


@dataclass
class _Node:
    token: int
    parent: int
    children: dict[int, int] = field(default_factory=dict[int, int])
    candidates: list[int] = field(default_factory=list[int])


class Trie:
    """The candidates' tokens as a tree; node 0 is the end of the prompt, leaves need no forward pass."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.nodes = [_Node(-1, -1)]
        for i, sequence in enumerate(sequences):
            at = 0
            for token in sequence:
                if token not in self.nodes[at].children:
                    self.nodes[at].children[token] = len(self.nodes)
                    self.nodes.append(_Node(token, at))
                at = self.nodes[at].children[token]
            self.nodes[at].candidates.append(i)
        self.depth = max(map(len, sequences))
        self.inner = [i for i, node in enumerate(self.nodes) if node.children and i > 0]

    def chain(self, start: int) -> list[int]:
        """Return `start` and the inner nodes below it as long as there is only one way down."""
        found = [start]
        while len(self.nodes[found[-1]].children) == 1:
            (below,) = self.nodes[found[-1]].children.values()
            if not self.nodes[below].children:
                break
            found.append(below)
        return found

    def below(self, start: int) -> list[int]:
        """Return the candidates at or below a node."""
        found, stack = list[int](), [start]
        while stack:
            node = self.nodes[stack.pop()]
            found += node.candidates
            stack += node.children.values()
        return found


@dataclass
class Query:
    """One closed set on its way: the prompt up to where candidates part, and the search's state.

    The first `asked` tokens of the prompt ask, the others begin the answer.
    """

    prompt: Prompt
    trie: Trie
    n_candidates: int
    asked: int
    cached_tokens: int = 0
    logprob: dict[int, float] = field(default_factory=dict[int, float])
    place: dict[int, int] = field(default_factory=dict[int, int])

    def next_chains(self) -> list[list[int]]:
        """Return the chains to open next; none when the best candidate is found and little mass is closed."""
        frontier = self._frontier()
        finished = [self.logprob[i] for i in self._finished()]
        best = max(finished, default=-math.inf)
        closed = sum(math.exp(self.logprob[i]) for i in frontier)
        bearable = _OPEN_MASS * (closed + sum(map(math.exp, finished)))
        chains: list[list[int]] = []
        for i in frontier[:_WIDTH]:
            if self.logprob[i] <= best and closed <= bearable:
                break
            chains.append(self.trie.chain(i))
            closed -= math.exp(self.logprob[i])
        return chains

    def result(self) -> Scores:
        """Return every candidate's log-probability; closed branches share their bound among their leaves."""
        values = [-math.inf] * self.n_candidates
        for i in self._finished():
            for candidate in self.trie.nodes[i].candidates:
                values[candidate] = self.logprob[i]
        frontier = self._frontier()
        best = max(values)
        for i in frontier:
            leaves = self.trie.below(i)
            share = self.logprob[i] - math.log(len(leaves))
            for candidate in leaves:
                # Below the best: what was not opened is known not to beat it.
                values[candidate] = max(values[candidate], min(share, math.nextafter(best, -math.inf)))
        return Scores(tuple(values), len(self.prompt.ids), self.cached_tokens, exact=not frontier)

    def _finished(self) -> list[int]:
        return [i for i in self.logprob if self.trie.nodes[i].candidates]

    def _frontier(self) -> list[int]:
        found = [i for i in self.logprob if self.trie.nodes[i].children and i not in self.place]
        return sorted(found, key=lambda i: (-self.logprob[i], i))


def make_query(request: ScoreRequest, prompt: Prompt, trie: tuple[tuple[int, ...], Trie]) -> Query:
    """Return the search for one request; `trie` is what `make_trie` made of its candidates."""
    opening, tree = trie
    return Query(Prompt(prompt.ids + opening, prompt.shared), tree, len(request.candidates), len(prompt.ids))


def make_trie(
    chat: Chat, assistant_prefix: str, candidates: Sequence[str], suffix: str
) -> tuple[tuple[int, ...], Trie]:
    """Return the tokens that open every candidate's turn, and the trie of what follows."""
    opening, rest = candidate_tokens(chat, assistant_prefix, candidates, suffix)
    return opening, Trie(rest)


def candidate_tokens(
    chat: Chat, assistant_prefix: str, candidates: Sequence[str], suffix: str
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the tokens that open every candidate's turn, and those of each candidate that follow.

    The turn is tokenized whole, as in training: a candidate may merge with the prefix before it. The end of the
    turn is scored after a candidate that another one goes on from; after any other it decides nothing.
    """
    opening = chat.ids(assistant_prefix)
    turns = chat.many_ids([assistant_prefix + candidate + suffix for candidate in candidates])
    shared = min(common_length(opening, turn) for turn in turns)
    whole = turns if suffix else end_begun_turns(turns, chat.end_of_turn)
    return opening[:shared], [turn[shared:] for turn in whole]


def end_begun_turns(turns: Sequence[tuple[int, ...]], end_of_turn: int) -> list[tuple[int, ...]]:
    """Return the turns' tokens, the end of the turn after each that another one goes on from.

    >>> end_begun_turns([(5,), (5, 6)], 2)
    [(5, 2), (5, 6)]
    """
    begun = {turn[:n] for turn in turns for n in range(len(turn))}
    return [(*turn, end_of_turn) if turn in begun else turn for turn in turns]


def score_batch(
    prefixes: PrefixCache,
    queries: Sequence[Query],
    pack_tokens: int,
    deliver: Callable[[int, Scores], None],
) -> None:
    """Score all queries, packed behind their shared prompts; `deliver(index, scores)` as each one ends.

    One whose answer goes on from a text that was just written is read behind that text.
    """
    known = {i: states for i, query in enumerate(queries) if (states := _written(prefixes, query)) is not None}
    for i, states in known.items():
        queries[i].cached_tokens = states.length
        _score_pack(prefixes, states, {i: queries[i]}, deliver)
    rest = [i for i in range(len(queries)) if i not in known]
    shared = [queries[i].prompt.ids[: queries[i].prompt.shared] for i in rest]
    sizes = [_size(queries[i], queries[i].prompt.shared) for i in rest]
    for pack in packs(shared, sizes, pack_tokens):
        prefix, reused = prefixes.get(shared[pack[0]])
        for k in pack:
            queries[rest[k]].cached_tokens = reused if k == pack[0] else prefix.length
        _score_pack(prefixes, prefix, {rest[k]: queries[rest[k]] for k in pack}, deliver)


def _written(prefixes: PrefixCache, query: Query) -> KeyValues | None:
    """Return the states of the text from which a query's answer goes on, None where there is none."""
    ids, shared = query.prompt.ids, query.prompt.shared
    if query.asked == len(ids) or (found := prefixes.ended.find(ids, query.asked)) is None:
        return None
    ended, known = found
    return joined(ended.row(prefixes.get(ids[:shared])[0], 0, known))


def _size(query: Query, known: int) -> int:
    """Return how many tokens a query's first pass reads behind `known` ones."""
    return len(query.prompt.ids) - known + min(len(query.trie.inner), WHOLE_NODES)


def _score_pack(
    prefixes: PrefixCache, known: KeyValues, queries: dict[int, Query], deliver: Callable[[int, Scores], None]
) -> None:
    """Score queries whose prompts all begin with the known tokens."""
    room = sum(_size(query, known.length) for query in queries.values())
    forest = TokenForest(prefixes.model, known, prefixes.device, room=room, graphs=prefixes.graphs)
    whole = all(len(query.trie.inner) <= WHOLE_NODES for query in queries.values())
    opened: list[tuple[Query, int]] = []
    for query in queries.values():
        query.place[0] = forest.append(query.prompt.ids[known.length :])
        query.logprob[0] = 0.0
        opened.append((query, 0))
        if len(query.trie.inner) <= WHOLE_NODES:
            opened += _open(forest, query, query.trie.inner)
    while opened:
        _read(forest, opened, whole)
        opened = []
        for i, query in list(queries.items()):
            chains = query.next_chains()
            if chains:
                opened += _open(forest, query, [node for chain in chains for node in chain])
            else:
                deliver(i, queries.pop(i).result())


def _open(forest: TokenForest, query: Query, nodes: Sequence[int]) -> list[tuple[Query, int]]:
    """Queue nodes, parents before children; return what was opened."""
    for i in nodes:
        node = query.trie.nodes[i]
        query.place[i] = forest.append([node.token], query.place[node.parent])
    return [(query, i) for i in nodes]


def _read(forest: TokenForest, opened: Sequence[tuple[Query, int]], last: bool) -> None:
    """Run what was queued and give each opened node's children their log-probabilities."""
    logits = forest.forward([query.place[i] for query, i in opened], last=last)
    found = log_probabilities(logits, [list(query.trie.nodes[i].children) for query, i in opened])
    for (query, i), values in zip(opened, found, strict=True):
        for child, value in zip(query.trie.nodes[i].children.values(), values, strict=True):
            query.logprob[child] = query.logprob[i] + value
