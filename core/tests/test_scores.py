from __future__ import annotations

import numpy as np
import pytest

import mtk
from mtk import scores

TRACK = mtk.Track(
    name="t",
    target="a:b",
    summary="",
    setting="",
    version="1",
    tasks=(
        mtk.Task(name="h1", held_in=True),
        mtk.Task(name="h2", held_in=True),
        mtk.Task(name="g1", held_in=False),
    ),
)


def record(
    name: str, rates: dict[str, float], *, group="static", seed=0, n=200, **more
):
    """Item scores with the given mean, the same items in every task."""
    items = {
        task: [1.0] * round(rate * n) + [0.0] * (n - round(rate * n))
        for task, rate in rates.items()
    }
    return {
        "identity": {"seed": seed, "method": name, "params": more.get("fixed", {})},
        "key": f"{name}-{seed}",
        "name": name,
        "group": group,
        "reference": more.get("reference", False),
        "params": {},
        "items": items,
        "metrics": {
            task: {"accuracy": {"value": rate}} for task, rate in rates.items()
        },
        "ids": {task: list(range(n)) for task in rates},
        "scores": rates,
        "costs": {"merge_seconds": 1.0 + seed, "peak_bytes": 10},
    }


def by_name(records):
    return {row.name: row for row in scores.rows(records, TRACK)}


def test_means_worst_cells_and_normalisation() -> None:
    rows = by_name(
        [
            record("experts", {"h1": 0.8, "h2": 1.0}, group="baseline"),
            record("a", {"h1": 0.4, "h2": 0.9, "g1": 0.3}),
        ]
    )
    row = rows["a"]
    assert row.held_in == pytest.approx(0.65)
    assert (row.worst_task, row.worst) == ("h1", 0.4)
    assert row.normalised == pytest.approx((0.5 + 0.9) / 2)
    assert row.generalization == pytest.approx(0.3)
    assert rows["experts"].generalization is None
    assert rows["experts"].rank is None


def test_the_interval_of_one_task_is_the_binomial_one() -> None:
    row = by_name([record("a", {"h1": 0.5, "h2": 0.5})])["a"]
    # Both tasks have the same items with the same scores: one draw, not two.
    assert row.held_in_interval == pytest.approx(1.96 * (0.25 / 200) ** 0.5, rel=0.1)


def test_the_spread_over_seeds_widens_the_interval() -> None:
    same = by_name([record("a", {"h1": 0.5, "h2": 0.5}, seed=s) for s in (0, 1)])["a"]
    apart = by_name(
        [record("a", {"h1": r, "h2": r}, seed=s) for s, r in ((0, 0.3), (1, 0.7))]
    )["a"]
    assert apart.held_in == pytest.approx(same.held_in)
    assert apart.held_in_interval > 2 * same.held_in_interval
    assert apart.seeds == [0, 1]
    assert apart.merge_seconds == 1.5


def test_ranks_cover_what_the_items_cannot_tell_apart() -> None:
    rows = by_name(
        [
            record("best", {"h1": 0.9, "h2": 0.9, "g1": 0.1}),
            record("close", {"h1": 0.5, "h2": 0.5, "g1": 0.2}),
            record("equal", {"h1": 0.5, "h2": 0.5, "g1": 0.3}),
            record("top", {"h1": 0.99, "h2": 0.99}, group="per_task"),
        ]
    )
    assert (rows["best"].rank, rows["best"].rank_low, rows["best"].rank_high) == (
        1,
        1,
        1,
    )
    assert rows["close"].rank == rows["equal"].rank == 2
    assert rows["best"].generalization_rank == 3
    assert rows["top"].rank is None


def test_a_method_without_all_seeds_is_shown_and_not_ranked() -> None:
    rates = {"h1": 0.5, "h2": 0.5}
    rows = by_name(
        [
            record("whole", rates),
            record("whole", rates, seed=1),
            record("part", rates, seed=1),
        ]
    )
    assert rows["whole"].rank == 1
    assert rows["part"].rank is None
    assert "[1]" in rows["part"].note


def test_differences_to_the_reference_are_paired() -> None:
    better = record("b", {"h1": 0.55, "h2": 0.55})
    rows = by_name([record("ref", {"h1": 0.5, "h2": 0.5}, reference=True), better])
    assert rows["ref"].difference is None
    assert rows["b"].difference == pytest.approx(0.05)
    # Only 5 % of the items differ, so the paired interval is far below the single one.
    assert rows["b"].difference_interval < rows["b"].held_in_interval / 1.5


def test_a_configuration_with_fixed_parameters_is_a_row_of_its_own() -> None:
    table = scores.rows(
        [
            record("a", {"h1": 0.5, "h2": 0.5}),
            record("a", {"h1": 0.6, "h2": 0.5}, fixed={"x": 1}),
        ],
        TRACK,
    )
    assert [row.note for row in table] == ["fixed x=1", ""]


def test_spearman_agrees_with_the_definition() -> None:
    assert scores.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert scores.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert scores.spearman([1, 2], [1, 2]) is None
    assert scores.spearman([1, 1, 1], [1, 2, 3]) is None
    rng = np.random.default_rng(0)
    stats = pytest.importorskip("scipy.stats")
    a, b = rng.integers(0, 5, 30), rng.normal(size=30)
    assert scores.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_facts_speak_of_the_order_of_methods() -> None:
    records = [
        record(name, {"h1": r + seed / 100, "h2": r, "g1": 1 - r}, seed=seed)
        for seed in (0, 1)
        for name, r in (("a", 0.2), ("b", 0.5), ("c", 0.8))
    ]
    found = scores.facts(records, TRACK)
    assert found["held_in_vs_generalization"] == pytest.approx(-1)
    assert found["stability_held_in"] == pytest.approx(1)
    assert scores.facts(records[:2], TRACK) == {}
    assert scores.rows([], TRACK) == []


ABLE = mtk.Track(
    name="t",
    target="a:b",
    summary="",
    setting="",
    version="1",
    tasks=(*TRACK.tasks, mtk.Task(name="b", held_in=False, ability=True)),
)


def test_ability_is_a_mean_of_its_own_with_draws_of_its_own() -> None:
    rates = {"h1": 0.4, "h2": 0.9, "g1": 0.3}
    (plain,) = scores.rows([record("a", rates)], TRACK)
    (row,) = scores.rows([record("a", rates | {"b": 0.5})], ABLE)
    assert row.ability == 0.5
    assert row.ability_interval == pytest.approx(1.96 * (0.25 / 200) ** 0.5, rel=0.1)
    assert plain.ability is None
    # Its items are others: nothing else in the row moves.
    for name in ("held_in", "held_in_interval", "generalization_interval", "worst"):
        assert getattr(row, name) == getattr(plain, name)
    assert [task.name for task in ABLE.abilities] == ["b"]
    assert [task.name for task in ABLE.generalization] == ["g1"]


def test_errors_of_set_metrics_add_up_over_cells_and_seeds() -> None:
    def one(seed, *cells):
        found = record("a", {"h1": 0.5, "h2": 0.5}, seed=seed)
        for task, (value, error) in zip(("h1", "h2"), cells, strict=True):
            found["metrics"][task]["kid"] = {"value": value, "error": error}
        return found

    from dataclasses import replace

    tasks = tuple(replace(t, metrics=("accuracy", "kid")) for t in TRACK.tasks)
    track = replace(TRACK, tasks=tasks)
    (row,) = scores.rows([one(0, (1.0, 0.3), (3.0, 0.4))], track)
    part = row.metrics["kid"]["held_in"]
    assert (part.mean, part.tasks) == (2.0, {"h1": 1.0, "h2": 3.0})
    assert part.interval == pytest.approx(1.96 * 0.25)
    assert "generalization" not in row.metrics["kid"]
    both = [one(0, (1.0, 0.3), (3.0, 0.4)), one(1, (2.0, 0.3), (4.0, 0.4))]
    (row,) = scores.rows(both, track)
    part = row.metrics["kid"]["held_in"]
    assert part.mean == 2.5
    # The seeds' means are 2 and 3: variance 1/2, of their mean 1/4.
    assert part.interval == pytest.approx(1.96 * (0.25**2 + 0.25) ** 0.5)


def test_a_cell_of_few_items_is_not_counted_as_wrong_where_none_is_drawn() -> None:
    few = record("a", {"h1": 1.0, "h2": 1.0, "g1": 1.0}, n=9)
    few["ids"]["h1"], few["items"]["h1"] = [100, 101], [1.0, 1.0]
    (row,) = scores.rows([few], TRACK)
    assert row.held_in == 1.0
    assert row.held_in_interval == 0.0


def test_the_range_of_ranks_covers_seeds_too() -> None:
    """Two methods that take turns in being far ahead: neither is surely the first."""
    rates = {"a": (0.9, 0.3, 0.9), "b": (0.3, 0.9, 0.3)}
    found = by_name(
        [
            record(name, {"h1": rate, "h2": rate, "g1": rate}, seed=seed)
            for name, seeds in rates.items()
            for seed, rate in enumerate(seeds)
        ]
    )
    assert (found["a"].rank, found["a"].rank_low, found["a"].rank_high) == (1, 1, 2)
    assert (found["b"].rank, found["b"].rank_low, found["b"].rank_high) == (2, 1, 2)
