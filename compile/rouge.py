"""ROUGE-L (Lin 2004) of a new text against everything so far, as Self-Instruct filters its inputs.

The longest common subsequence is found bit-parallel (Hyyro 2004), and only for texts that share enough words
to pass the threshold at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from limbeck.compile.dedup import normalize


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two word lists.

    >>> lcs("the cat sat down".split(), "the dog sat".split())
    2
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | (1 << i)
    whole = (1 << len(a)) - 1
    open_bits = whole
    for word in b:
        matched = open_bits & places.get(word, 0)
        open_bits = ((open_bits + matched) | (open_bits - matched)) & whole
    return len(a) - open_bits.bit_count()


def rouge_l(a: str, b: str) -> float:
    """Return the ROUGE-L F1 of two texts, case and punctuation aside, in [0, 1].

    >>> rouge_l("The cat sat.", "the cat sat"), rouge_l("yes", "no")
    (1.0, 0.0)
    """
    x, y = normalize(a).split(), normalize(b).split()
    return 2 * lcs(x, y) / (len(x) + len(y)) if x or y else 1.0


class RougeIndex:
    """Texts among which a new one is too similar when its ROUGE-L F1 with any of them is over `threshold`.

    >>> index = RougeIndex(threshold=0.7)
    >>> index.add("what is the capital of peru")
    >>> index.similar("what is the capital of chile"), index.similar("who wrote hamlet")
    (True, False)
    """

    def __init__(self, *, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._texts: list[list[str]] = []
        self._with_word: dict[str, list[int]] = {}

    def add(self, text: str) -> None:
        """Remember a text."""
        words = normalize(text).split()
        for word in set(words):
            self._with_word.setdefault(word, []).append(len(self._texts))
        self._texts.append(words)

    def similar(self, text: str) -> bool:
        """Return whether the text is too similar to one that was added."""
        words = normalize(text).split()
        shared: Counter[int] = Counter()
        for word, times in Counter(words).items():
            for index in self._with_word.get(word, ()):
                shared[index] += times
        for index, most in shared.items():
            other = self._texts[index]
            needed = self.threshold * (len(words) + len(other)) / 2
            # `most` bounds the common subsequence from above.
            if most > needed and lcs(words, other) > needed:
                return True
        return False
