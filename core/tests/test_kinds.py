"""Sequences, predicted noise and LoRA: the statistics and the protocol on toy tracks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import mtk
from mtk import batches, records
from mtk.errors import CheckpointError, UsageError
from mtk.live import LiveTask, put_weights
from mtk.randomness import stream
from mtk.statistics import collect
from mtk.testing._toy_kinds import NOISE, WORDS, kinds_registry
from mtk.testing._toy_noise import Noise, ToyNoise
from mtk.testing._toy_training import start
from mtk.testing._toy_words import ToyWords, Words

if TYPE_CHECKING:
    from pathlib import Path


def live(track, cell: str, kind: type[nn.Module], output: str) -> LiveTask:
    data = track.data(cell, "train")
    parts = {
        part: (lambda inputs, part=part: getattr(track, part)(cell, inputs))
        for part in ("mask", "targets")
        if hasattr(track, part)
    }
    if hasattr(track, "gram_mask"):
        parts["gram_mask"] = lambda name, inputs: track.gram_mask(name, cell, inputs)
    return LiveTask(
        name=cell,
        module=start(kind, 3).requires_grad_(False),
        forward=lambda module, inputs: track.outputs(module, cell, inputs),
        inputs=data["inputs"],
        labels=data["labels"],
        output=output,
        **parts,
    )


@pytest.fixture
def words(tmp_path: Path) -> LiveTask:
    return live(
        ToyWords(cache=tmp_path, seed=0, options={}), "mixed", Words, "categorical"
    )


@pytest.fixture
def noise(tmp_path: Path) -> LiveTask:
    return live(
        ToyNoise(cache=tmp_path, seed=0, options={}), "north", Noise, "gaussian"
    )


def weights(task: LiveTask) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in task.module.named_parameters()}


def plain_fisher(task: LiveTask, likelihood) -> dict[str, torch.Tensor]:
    """One example, one backward, by hand; ``likelihood(outputs, i)`` is a number."""
    module = task.module.requires_grad_(True)
    sums = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    order = torch.randperm(len(task), generator=stream(0, "examples", task.name))
    for place, i in enumerate(order.tolist()):
        one = batches.take(task.inputs, slice(i, i + 1))
        module.zero_grad()
        likelihood(task.forward(module, one)[0], one, place).backward()
        for name, p in module.named_parameters():
            sums[name] += 0 if p.grad is None else p.grad**2
    return {name: total / len(task) for name, total in sums.items()}


def same(got, want) -> None:
    assert set(got) == {name for name, total in want.items() if total.any()}
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("estimator", ["empirical", "argmax", "sampled", "exact"])
def test_fisher_of_sequences_is_of_the_mean_over_places_that_count(
    words: LiveTask, estimator: str
) -> None:
    order = torch.randperm(len(words), generator=stream(0, "examples", words.name))
    every = words.outputs(weights(words), batches.take(words.inputs, order))
    draws = torch.multinomial(
        every.softmax(-1).flatten(0, 1),
        1,
        generator=stream(0, "sampled labels", "mixed"),
    ).view(every.shape[:2])

    def likelihood(outputs, one, place):
        logs, terms = outputs.log_softmax(-1), []
        for t in range(len(outputs)):
            if one["letters"][0, t] == 0:
                continue
            target = {
                "empirical": one["targets"][0, t],
                "argmax": outputs[t].argmax(),
            }.get(estimator, draws[place, t])
            terms.append(logs[t, target])
        return sum(terms) / len(terms)

    said: list[str] = []
    got = collect(
        "fisher", words, weights(words), estimator=estimator, tell=said.append
    )
    same(got, plain_fisher(words, likelihood))
    assert any("sampled targets, not exact" in text for text in said) == (
        estimator == "exact"
    )
    assert not any("one example at a time" in text for text in said)


@pytest.mark.parametrize("estimator", ["empirical", "sampled"])
def test_fisher_of_noise_is_of_the_gaussian_likelihood(
    noise: LiveTask, estimator: str
) -> None:
    order = torch.randperm(len(noise), generator=stream(0, "examples", noise.name))
    every = noise.outputs(weights(noise), batches.take(noise.inputs, order))
    drawn = every + torch.randn(
        every.shape, generator=stream(0, "sampled labels", "north")
    )

    def likelihood(outputs, one, place):
        target = one["noise"][0] if estimator == "empirical" else drawn[place]
        return -0.5 * ((target - outputs) ** 2).sum()

    said: list[str] = []
    got = collect(
        "fisher", noise, weights(noise), estimator=estimator, tell=said.append
    )
    same(got, plain_fisher(noise, likelihood))
    # F.one_hot looks at values, which vmap cannot: the loop stands in, and says so.
    assert [text for text in said if "one example at a time" in text]


def test_the_loop_gives_what_vmap_gives(words: LiveTask) -> None:
    def looking(module, inputs):
        assert float(inputs["letters"].sum()) >= 0  # .item(), which vmap refuses
        return words.forward(module, inputs)

    said: list[str] = []
    fast = collect("fisher", words, weights(words), tell=said.append)
    slow_task = LiveTask(
        name=words.name,
        module=words.module,
        forward=looking,
        inputs=words.inputs,
        mask=words.mask,
    )
    slow = collect("fisher", slow_task, weights(words), tell=said.append)
    assert len([text for text in said if "one example at a time" in text]) == 1
    for name, tensor in fast.items():
        torch.testing.assert_close(slow[name], tensor, rtol=1e-4, atol=1e-9)


def test_exact_fisher_of_classes_is_the_same_in_the_loop() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def looking(module, x):
        assert float(x.sum()) < 1e6
        return module(x)

    x = torch.randn(9, 4)
    tasks = [
        LiveTask(name="t", module=model, forward=forward, inputs=x)
        for forward in (lambda m, x: m(x), looking)
    ]
    fast, slow = (collect("fisher", task, weights(task)) for task in tasks)
    for name in fast:
        torch.testing.assert_close(slow[name], fast[name])


def test_gram_leaves_padding_out_and_divides_by_what_counts(words: LiveTask) -> None:
    got = collect("gram", words, weights(words))
    letters, kind = words.inputs["letters"], words.inputs["kind"]
    total, count = torch.zeros(12, 12), 0
    for row, own in zip(letters, kind, strict=True):
        for letter in row:
            if letter > 0:
                x = words.module.embed(letter) + words.module.kind(own)
                total, count = total + torch.outer(x, x), count + 1
    assert count < letters.numel()
    torch.testing.assert_close(got["mix.weight"], total / count)
    assert set(got) == {"mix.weight", "out.weight"}


def test_encoder_and_decoder_rows_are_counted_apart() -> None:
    """One layer of each kind; keys and values of cross-attention see source tokens."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.key, self.decoder = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, source, target):
            hidden = self.key(self.encoder(source))
            return self.decoder(target) + hidden.mean(1, keepdim=True)

    torch.manual_seed(0)
    source, target = torch.randn(2, 4, 3), torch.randn(2, 2, 3)
    masks = {4: torch.rand(2, 4) < 0.6, 2: torch.tensor([[True, False], [True, True]])}
    task = LiveTask(
        name="t",
        module=Pair(),
        forward=lambda m, x: m(x["source"], x["target"]),
        inputs={"source": source, "target": target},
        gram_mask=lambda name, x: masks[2 if name == "decoder" else 4],
    )
    got = collect("gram", task, weights(task), examples=2)
    order = torch.randperm(2, generator=stream(0, "examples", "t"))
    rows = source[order][masks[4]]
    torch.testing.assert_close(got["encoder.weight"], rows.T @ rows / len(rows))
    hidden = task.module.encoder(rows).detach()
    torch.testing.assert_close(got["key.weight"], hidden.T @ hidden / len(rows))
    rows = target[order][masks[2]]
    torch.testing.assert_close(got["decoder.weight"], rows.T @ rows / 3)
    task.gram_mask = lambda name, x: torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(CheckpointError, match="10 entries"):
        collect("gram", task, weights(task))


def test_what_outputs_cannot_give_is_refused(words: LiveTask, noise: LiveTask) -> None:
    with pytest.raises(UsageError, match="arg-max"):
        collect("fisher", noise, weights(noise), estimator="argmax")
    with pytest.raises(UsageError, match="no scores of classes"):
        noise.logits(weights(noise), noise.inputs)
    words.targets = None
    with pytest.raises(UsageError, match="targets"):
        collect("fisher", words, weights(words), estimator="empirical")
    words.output = "none"
    with pytest.raises(UsageError, match="no outputs"):
        collect("gram", words, weights(words))


def test_batches_of_dicts_keep_items_together(words: LiveTask) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = next(words.labelled_batches(5, generator))
    assert {len(tensor) for tensor in inputs.values()} == {5}
    for row, text in zip(inputs["targets"], labels, strict=True):
        assert "".join(chr(96 + x) for x in row.tolist() if x) == text
    plain = next(words.batches(5, torch.Generator().manual_seed(0)))
    assert all(torch.equal(plain[name], inputs[name]) for name in inputs)
    parts = list(batches.parts(words.inputs, 10))
    assert [batches.size(part) for part in parts] == [10, 10, 4]
    joined = batches.join(parts)
    assert all(torch.equal(joined[name], words.inputs[name]) for name in joined)
    with pytest.raises(CheckpointError, match="first dimension"):
        batches.size({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_tied_weights_may_be_given_under_one_name() -> None:
    model = Words()
    model.mirror = nn.Embedding(9, 12)
    model.mirror.weight = model.embed.weight
    state = {name: torch.ones_like(t) for name, t in model.state_dict().items()}
    del state["mirror.weight"]
    put_weights(model, state)
    assert bool((model.mirror.weight == 1).all())
    del state["embed.weight"]
    with pytest.raises(CheckpointError, match="is absent"):
        put_weights(model, state)
    with pytest.raises(CheckpointError, match="it has no 'extra'"):
        put_weights(Words(), {**Words().state_dict(), "extra": torch.ones(1)})


def mean(*, experts):
    return sum(experts) / len(experts)


def weighted(*, experts, fisher, gram):
    assert (fisher[0] is None) == (fisher[1] is None)
    return sum(experts) / len(experts)


def learn(*, experts, base, tasks):
    for task in tasks:
        task.logits(dict(base), next(task.batches(4, torch.Generator())))
    return dict(base)


MEAN = mtk.Method(name="mean", target=mean, summary="", reference=True)
STATISTICS = mtk.Method(
    name="weighted",
    target=weighted,
    summary="",
    scope="tensor",
    needs=mtk.Needs(statistics=("fisher", "gram")),
)
LEARN = mtk.Method(
    name="learn",
    target=learn,
    summary="",
    scope="model",
    needs=mtk.Needs(base=True, data="unlabelled", outputs=("categorical",)),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("bench")
    registry = kinds_registry(MEAN, STATISTICS, LEARN)
    return {
        name: mtk.bench(
            track=name, registry=registry, results=folder / "r", cache=folder / "c"
        )
        for name in ("toy-words", "toy-noise")
    }


def rows(found, name):
    assert not found[name].failures
    return {row.name: row for row in found[name].rows}


def test_sequences_run_through_the_protocol(found) -> None:
    table = rows(found, "toy-words")
    assert table["mean"].held_in > table["pretrained"].held_in
    assert table["mean"].generalization is not None
    assert "learn" in table
    notes = table["weighted"].notes
    assert notes == [
        "Fisher of sampled targets, not exact, because outputs are sequences"
    ]
    missing = table["weighted"].without_statistic
    assert {"embed.weight", "kind.weight", "mix.bias"} <= set(missing["gram"])
    assert "fisher" not in missing


def test_base_ability_stands_apart_and_is_forgotten(found) -> None:
    table = rows(found, "toy-words")
    base, mean_row, experts = (table[n] for n in ("pretrained", "mean", "experts"))
    assert base.ability == 1.0
    assert experts.ability < mean_row.ability < base.ability
    assert "copy" not in [task.name for task in WORDS.generalization]
    each = found["toy-words"].records
    record = next(r for r in each if r["name"] == "experts")
    # The mean over both experts, item by item.
    assert {round(2 * item) for item in record["items"]["copy"]} <= {0, 1, 2}


def test_all_metrics_are_kept_and_set_metrics_have_their_error(found) -> None:
    row = rows(found, "toy-words")["mean"]
    assert list(row.metrics) == ["exact", "overlap", "variety"]
    assert row.metrics["exact"]["held_in"].mean == pytest.approx(row.held_in)
    assert row.metrics["exact"]["held_in"].interval == row.held_in_interval
    assert row.metrics["overlap"]["ability"].mean >= row.ability
    record = next(r for r in found["toy-words"].records if r["name"] == "mean")
    variety = record["metrics"]["early"]["variety"]
    assert 0 < variety["value"] <= 1
    assert variety["error"] == pytest.approx(
        (variety["value"] * (1 - variety["value"]) / 24) ** 0.5
    )
    assert len(record["metrics"]["early"]["overlap"]["items"]) == 24
    errors = [record["metrics"][t]["variety"]["error"] for t in ("early", "late")]
    want = 1.96 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2
    assert row.metrics["variety"]["held_in"].interval == pytest.approx(want)


def test_adapters_are_merged_as_full_weights(found) -> None:
    table = rows(found, "toy-noise")
    assert table["experts"].held_in > table["random deltas (mean)"].held_in
    assert table["mean"].generalization is not None
    assert table["mean"].ability is None
    reasons = {s.method: s.reason for s in found["toy-noise"].plan.skipped}
    assert reasons == {
        "learn": "learns from categorical outputs, those of the track are gaussian"
    }
    assert not found["toy-words"].plan.skipped


def test_random_deltas_keep_to_the_tensors_that_adapters_change(
    found, tmp_path
) -> None:
    from mtk import models
    from mtk.session import Session

    folder = next(iter(found["toy-noise"].sheets.values())).parents[2]
    session = Session(
        kinds_registry(MEAN),
        NOISE,
        seed=0,
        options={},
        cache=folder / "c",
        found=models.find(folder / "c", NOISE, 0, {}),
    )
    for real, fake in zip(session.experts, session.random_experts(), strict=True):
        for name in session.base.names():
            base, one, two = (c.read(name) for c in (session.base, real, fake))
            assert torch.equal(one, base) == torch.equal(two, base)
            torch.testing.assert_close((one - base).norm(), (two - base).norm())
    changed = [
        name
        for name in session.base.names()
        if not torch.equal(session.base.read(name), session.experts[0].read(name))
    ]
    assert changed == ["hidden.weight"]


def test_the_running_model_says_what_is_a_linear_layer() -> None:
    from mtk.checkpoint import StateDict
    from mtk.described import described

    model = Words()
    source = StateDict(model.state_dict(), "words")
    assert source.info("kind.weight").role == "linear"  # by its name
    seen = described(source, model)
    assert seen.info("kind.weight").role == "embedding"
    assert (seen.info("mix.weight").role, seen.info("mix.bias").role) == (
        "linear",
        "bias",
    )
    assert torch.equal(seen.read("kind.weight"), model.kind.weight)
    plain = StateDict(Noise().state_dict(), "noise")
    assert described(plain, Noise()) is plain


def test_sheets_lie_beside_their_records(found) -> None:
    bench = found["toy-noise"]
    rows(found, "toy-noise")
    keys = {row.name: row.keys for row in bench.rows}
    for name in ("pretrained", "multitask", "mean", "random deltas (mean)"):
        path = bench.sheets[keys[name][0]]
        assert path.read_bytes().startswith(b"\x89PNG")
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["sheet"]
        assert path == records.sheet_of(
            records.path_of(path.parents[1], record["identity"])
        )
    assert keys["experts"][0] not in bench.sheets
    assert not found["toy-words"].sheets


def test_a_metric_that_cannot_rank_must_not_come_first(tmp_path: Path) -> None:
    from dataclasses import replace

    tasks = tuple(replace(task, metrics=("variety", "exact")) for task in WORDS.tasks)
    with pytest.raises(UsageError, match="cannot rank"):
        mtk.bench(
            track=replace(WORDS, tasks=tasks),
            registry=kinds_registry(MEAN),
            results=tmp_path / "r",
            cache=tmp_path / "c",
        )


def test_a_track_that_lacks_something_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtk import models

    monkeypatch.setattr(ToyWords, "missing", lambda self: ["the moon"], raising=False)
    assert models.missing(tmp_path, WORDS) == ["the moon"]
    assert models.missing(tmp_path, NOISE) == []
    with pytest.raises(CheckpointError, match="cannot run here: the moon"):
        mtk.bench(
            track="toy-words",
            registry=kinds_registry(MEAN),
            results=tmp_path / "r",
            cache=tmp_path / "c",
        )
