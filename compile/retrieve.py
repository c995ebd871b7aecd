"""Passages for a query: BM25, sentence embeddings, and the two fused; what any writer of rows can stand on.

BM25 (Robertson and Zaragoza 2009) as bm25s computes it (Lù 2024, arXiv:2407.03618); vectors from the MiniLM
encoder where it is installed; reciprocal rank fusion (Cormack, Clarke and Büttcher 2009), which needs ranks alone
and so no common scale of scores.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from limbeck.compile.dedup import normalize, record_text
from limbeck.compile.nearest import text_encoder
from limbeck.compile.outliers import LanguageOutliers
from limbeck.compile.source import Source
from limbeck.documents import MAX_WORDS, Documents, Passage, read_documents, sentences
from limbeck.errors import InputError
from limbeck.models.grounded import Find

# The constant of the paper, under which the first ranks of one list do not outweigh all ranks of another.
_FUSION = 60
# Ranks of each list that fusion looks at: what is in neither list's first 30 is not the answer.
_DEPTH = 30
_THE_TEXT = re.compile(
    r"\b(?:the|this|that|above|following|given)(?: (?:above|following|given|provided))? "
    r"(?:texts?|passages?|paragraphs?|excerpts?|articles?|documents?|sections?|authors?)\b",
    re.IGNORECASE,
)

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]


class Retriever(Protocol):
    """Anything that finds passages."""

    def __call__(self, query: str, k: int) -> list[Passage]:
        """Return the `k` best passages, the best first; fewer where no more have to do with the query."""
        ...


class BM25:
    """Passages that share words with the query, rare words first; "the" and its like (English) do not count.

    >>> pages = [Passage("Boil the water.", "tea.md", 0), Passage("Feed the cat.", "cat.md", 0)]
    >>> [page.document for page in BM25(pages)("how long must water boil", 2)]
    ['tea.md']
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s
        from bm25s.stopwords import STOPWORDS_EN

        self._passages = list(passages)
        self._index: Any = bm25s.BM25()
        self._empty = frozenset(STOPWORDS_EN)
        # A passage without a word still has its place in the index.
        self._index.index([_tokens(passage.text) or [""] for passage in passages], show_progress=False)

    def __call__(self, query: str, k: int) -> list[Passage]:
        """Return the passages with the highest scores; none that shares no word."""
        known = [t for t in _tokens(query) if t in self._index.vocab_dict and t not in self._empty]
        if not known:
            return []
        scores: NDArray[np.float32] = self._index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:k]
        return [self._passages[i] for i in best if scores[i] > 0]


class Nearest:
    """Passages whose vectors are closest to the query's, by cosine.

    `encode` makes unit vectors of passages and of queries, `ask` of queries where that goes faster.
    """

    def __init__(self, passages: Sequence[Passage], encode: Encoder, ask: Encoder | None = None) -> None:
        self._passages = list(passages)
        self._vectors = encode([passage.text for passage in passages])
        self._ask = ask or encode

    def __call__(self, query: str, k: int) -> list[Passage]:
        """Return the closest passages."""
        similar = self._vectors @ self._ask([query])[0]
        return [self._passages[i] for i in np.argsort(-similar, kind="stable")[:k]]


class Fused:
    """What several retrievers find: a passage scores 1 / (60 + rank) in each list that has it.

    >>> a, b, c = (Passage(text, "x.txt", i) for i, text in enumerate("abc"))
    >>> [p.text for p in Fused([lambda query, k: [a, b], lambda query, k: [c, b]])("any", 2)]
    ['b', 'a']
    """

    def __init__(self, retrievers: Sequence[Retriever]) -> None:
        self._retrievers = list(retrievers)

    def __call__(self, query: str, k: int) -> list[Passage]:
        """Return the passages with the highest sums; at equal sums the earlier list's comes first."""
        scores: dict[Passage, float] = {}
        for retriever in self._retrievers:
            for rank, passage in enumerate(retriever(query, max(k, _DEPTH)), 1):
                scores[passage] = scores.get(passage, 0.0) + 1 / (_FUSION + rank)
        return sorted(scores, key=lambda passage: -scores[passage])[:k]


def retriever_of(passages: Sequence[Passage]) -> Retriever:
    """Return the best retriever at hand: BM25 fused with embeddings, BM25 alone where no encoder is installed."""
    from limbeck.engine.embedding import encode

    words = BM25(passages)
    vectors = encode([passage.text for passage in passages])
    if vectors is None:
        return words
    # The same encoder kept in memory: encode() loads it anew each time, which is for many texts at once.
    return Fused([words, Nearest(passages, lambda texts: vectors, text_encoder())])


def grounding(retriever: Retriever, k: int = 3) -> Callable[[str], str]:
    """Return a function from a query to its `k` best passages as one numbered text, "" where there is none.

    Three passages of 200 words are some 900 tokens: what a small model still reads.

    >>> find = grounding(BM25([Passage("Boil the water.", "tea.md", 0)]), k=1)
    >>> find("boil"), find("cat")
    ('[1] Boil the water.', '')
    """
    return lambda query: "\n\n".join(f"[{i}] {p.text}" for i, p in enumerate(retriever(query, k), 1))


def search_tool(retriever: Retriever) -> Callable[[str], str]:
    """Return a tool for chains of abstraction: from a query to the one sentence of the best passage that fits it most.

    A sentence, since a later call takes what was found. The tool raises LookupError where no passage has to do with the
    query.

    >>> search_tool(BM25([Passage("Feed the cat. Water boils at 100 degrees.", "tea.md", 0)]))("when does water boil")
    'Water boils at 100 degrees.'
    """

    def search(query: str) -> str:
        found = retriever(query, 1)
        if not found:
            raise LookupError(f"no passage about {query[:60]!r}")
        asked = set(_tokens(query))
        return max(sentences(found[0].text), key=lambda sentence: len(asked & set(_tokens(sentence))))

    return search


def finder(retriever: Retriever, k: int = 3) -> Find:
    """Return what a `GroundedAdapter` finds passages with: always the `k` best."""
    find = grounding(retriever, k)
    return lambda query, seed: find(query)


def drawer(retriever: Retriever, passages: Sequence[Passage], among: int = 12) -> Find:
    """Return what gives a writer one passage, drawn by the seed among the best so that calls differ; "" without one.

    Where nothing has to do with the query, which may be a label that says nothing, it is drawn among all.

    >>> pages = [Passage("Boil the water.", "tea.md", 0), Passage("Feed the cat.", "cat.md", 0)]
    >>> find = drawer(BM25(pages), pages)
    >>> find("water", 1), len({find("xylophone", seed) for seed in range(20)})
    ('[1] Boil the water.', 2)
    """

    def find(query: str, seed: int | None) -> str:
        found = retriever(query, among) or passages
        return "" if seed is None else f"[1] {random.Random(f'{seed}:{query}').choice(found).text}"

    return find


def documents_of(source: Source, options: Mapping[str, Any], *, max_words: int = MAX_WORDS) -> Documents:
    """Return the passages of the folder in `options["documents"]`; files in a language unlike gold's are left out.

    Raises InputError where the option is not given and for a folder that yields nothing.
    """
    folder = options.get("documents")
    if not folder:
        raise InputError(
            "no documents were given",
            valid="a folder of .txt and .md files",
            hint="--documents DIR",
        )
    spoken = LanguageOutliers([{"text": f"{record_text(r.inputs)}\n{record_text(r.outputs)}"} for r in source.gold])
    return read_documents(folder, max_words=max_words, foreign=lambda text: spoken.odd({"text": text}))


def _tokens(text: str) -> list[str]:
    return normalize(text).split()


class MentionsText:
    """Finds inputs that speak of a text the reader does not have; not judged where real inputs do so.

    >>> rule = MentionsText(["How do I bake bread?"])
    >>> rule("What does the passage say about bread?"), rule("Who wrote the first text adventure?")
    (True, False)
    """

    def __init__(self, real: Iterable[str]) -> None:
        self._judged = not any(_THE_TEXT.search(text) for text in real)

    def __call__(self, text: str) -> bool:
        """Return whether it does."""
        return self._judged and bool(_THE_TEXT.search(text))
