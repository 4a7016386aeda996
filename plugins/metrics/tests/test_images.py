"""The metrics of generated images, against plain references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mtk.images import Generated, Wanted
from mtk_metrics import images as metrics


def generated(category: int, domain: str, features: object = (0.0,)) -> Generated:
    seen = np.asarray(features, np.float32)
    return Generated(category=str(category), domain=domain, features=seen)


def wanted(
    category: int,
    domain: str,
    prompt: str = "",
    features: object = (0.0,),
    twin: object = None,
) -> Wanted:
    real = np.asarray(features, np.float32)
    own = None if twin is None else np.asarray(twin, np.float32)
    return Wanted(
        category=str(category), domain=domain, prompt=prompt, features=real, twin=own
    )


def test_joint_accuracy_asks_for_both_on_the_same_image() -> None:
    predictions = [generated(1, "plain"), generated(1, "faint"), generated(2, "plain")]
    references = [wanted(1, "plain")] * 3
    sides = {"predictions": predictions, "references": references}
    assert metrics.category_accuracy(**sides) == [1.0, 1.0, 0.0]
    assert metrics.domain_accuracy(**sides) == [1.0, 0.0, 1.0]
    assert metrics.joint_accuracy(**sides) == [1.0, 0.0, 0.0]


def test_every_metric_refuses_unequal_numbers() -> None:
    sides = {"predictions": [generated(1, "plain")], "references": []}
    for metric in (
        metrics.joint_accuracy,
        metrics.category_accuracy,
        metrics.domain_accuracy,
    ):
        with pytest.raises(ValueError, match="shorter"):
            metric(**sides)


def plain_kid(one: np.ndarray, other: np.ndarray) -> float:
    """Word for word: pairs of different items, counted one by one."""

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return (sum(a * b for a, b in zip(u, v, strict=True)) / len(u) + 1.0) ** 3

    pairs = list(itertools.permutations(range(len(one)), 2))
    total = sum(
        k(one[i], one[j]) + k(other[i], other[j]) - 2 * k(one[i], other[j])
        for i, j in pairs
    )
    return total / len(pairs)


def test_kid_equals_the_plain_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(9, 5)), rng.normal(0.5, 1.5, size=(9, 5))
    value, _ = metrics.mmd(one, other)
    assert value == pytest.approx(plain_kid(one, other), rel=1e-12)


def test_kid_of_the_standard_error_equals_leaving_one_out() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    left = [
        plain_kid(np.delete(one, i, axis=0), np.delete(other, i, axis=0))
        for i in range(8)
    ]
    wanted_error = math.sqrt(7 / 8 * sum((v - np.mean(left)) ** 2 for v in left))
    _, error = metrics.mmd(one, other)
    assert error == pytest.approx(wanted_error, rel=1e-9)


def test_kid_is_zero_on_average_for_equal_distributions_and_knows_its_error() -> None:
    rng = np.random.default_rng(2)
    draws = [
        metrics.mmd(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)))
        for _ in range(400)
    ]
    values, errors = np.array(draws).T
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    # Under equality the statistic is degenerate, and the jackknife errs upwards.
    assert 0.7 < np.median(errors) / values.std() < 2.0
    assert (values < 0).any()  # without bias, so it must go below zero


def test_kid_grows_with_the_distance() -> None:
    rng = np.random.default_rng(3)
    real = rng.normal(size=(60, 4))
    near, far = (metrics.mmd(real, rng.normal(m, 1, (60, 4)))[0] for m in (0.5, 2.0))
    assert 0 < near < far


def test_kid_metric_reads_the_features_of_both_sides() -> None:
    rng = np.random.default_rng(4)
    one, other = rng.normal(size=(2, 6, 4)).astype(np.float32)
    predictions = [generated(0, "plain", row) for row in one]
    references = [wanted(0, "plain", features=row) for row in other]
    got = metrics.kid(predictions=predictions, references=references)
    assert got == metrics.mmd(one.astype(float), other.astype(float))


def test_diversity_is_the_mean_distance_within_prompts() -> None:
    features = [(0.0, 0.0), (3.0, 4.0), (0.0, 1.0), (0.0, 3.0), (100.0, 0.0)]
    prompts = ["a", "a", "b", "b", "c"]  # c has one image and so no distance
    predictions = [generated(0, "plain", f) for f in features]
    references = [wanted(0, "plain", prompt) for prompt in prompts]
    value, _ = metrics.diversity(predictions=predictions, references=references)
    assert value == pytest.approx((5.0 + 2.0) / 2)


def test_diversity_of_one_repeated_image_is_zero() -> None:
    predictions = [generated(0, "plain", (1.0, 2.0))] * 6
    references = [wanted(0, "plain", "a")] * 6
    got = metrics.diversity(predictions=predictions, references=references)
    assert got == (0.0, 0.0)


def test_diversity_needs_a_pair_and_of_one_pair_knows_no_error() -> None:
    one = {"predictions": [generated(0, "plain")], "references": [wanted(0, "plain")]}
    with pytest.raises(ValueError, match="two images"):
        metrics.diversity(**one)
    value, error = metrics.diversity(
        predictions=[generated(0, "plain", f) for f in [(0.0, 0.0), (3.0, 4.0)]],
        references=[wanted(0, "plain", "a")] * 2,
    )
    assert value == 5.0
    assert math.isnan(error)


def test_kid_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="two images"):
        metrics.mmd(np.zeros((1, 3)), np.zeros((1, 3)))


def test_base_similarity_is_the_cosine_whatever_the_length() -> None:
    found = metrics.base_similarity(
        predictions=[generated(0, "", f) for f in [(3.0, 0.0), (1.0, 1.0), (0.0, 0.0)]],
        references=[wanted(0, "", twin=(5.0, 0.0))] * 3,
    )
    assert found == pytest.approx([1.0, math.sqrt(0.5), 0.0])
    with pytest.raises(ValueError, match="twin"):
        metrics.base_similarity(
            predictions=[generated(0, "")], references=[wanted(0, "")]
        )
