# ruff: noqa: RUF001  other languages have other signs
"""The track ``cldr-t5``: its models, its outputs and its cache."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from mtk.errors import UsageError
from mtk.folders import sha256
from mtk.live import LiveTask, linear_layers
from mtk.loading import resolve
from mtk.statistics import collect
from mtk_tasks_text import cells
from mtk_tasks_text.track import ASSET, CldrT5

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# `resolve` makes transformers importable where torchvision is not healthy.
model = resolve("mtk_tasks_text.model")
decoding = resolve("mtk_tasks_text.decoding")
recipes = resolve("mtk_tasks_text.recipes")
make_base = resolve("mtk_tasks_text.make_base")
tokens = resolve("mtk_tasks_text.tokens")
transformers = resolve("transformers")

QUICK = recipes.Regime(steps=2, multitask_steps=2, batch=4)


def ignore(message: str, fraction: float) -> None:
    """A report that nobody reads."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training steps instead of a hundred."""
    monkeypatch.setitem(recipes.tuned.__kwdefaults__, "regime", QUICK)


@pytest.fixture(scope="module")
def base() -> Any:
    return model.load(ASSET)


def track(cache: Path, seed: int = 0) -> CldrT5:
    return CldrT5(cache=cache, seed=seed, options={})


def few(cell: str, count: int = 8) -> dict[str, Any]:
    """The first items of a cell's test split."""
    found = CldrT5(cache=ASSET, seed=0, options={}).data(cell, "test")
    return {
        "inputs": {name: rows[:count] for name, rows in found["inputs"].items()},
        "labels": found["labels"][:count],
    }


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def theirs(source: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs as transformers takes them."""
    return {"input_ids": source, "attention_mask": (source != tokens.PAD).long()}


def test_tokens_are_those_of_byt5() -> None:
    texts = ["Währung: 1.5", "", "–ğ"]
    expected = transformers.ByT5Tokenizer()(texts, padding=True, return_tensors="pt")
    assert torch.equal(tokens.encode(texts), expected["input_ids"])
    assert tokens.decode(tokens.encode(texts)) == texts


def test_half_a_character_is_decoded_all_the_same() -> None:
    broken = tokens.encode(["ağ"])[:, :2]
    assert tokens.decode(broken) == ["a\ufffd"]
    assert tokens.decode(torch.tensor([[tokens.END, 100]])) == [""]


def test_transformers_loads_the_folder_and_agrees(base: Any, tmp_path: Path) -> None:
    model.save(base, tmp_path)
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = few("period-de")["inputs"]
    ignored = inputs["target"].masked_fill(inputs["target"] == tokens.PAD, -100)
    with torch.no_grad():
        found = track(tmp_path).outputs(base, "period-de", inputs)
        expected = loaded(**theirs(inputs["source"]), labels=ignored)
    torch.testing.assert_close(found, expected.logits, atol=1e-4, rtol=1e-4)

    mask = track(tmp_path).mask("period-de", inputs)
    targets = track(tmp_path).targets("period-de", inputs)
    torch.testing.assert_close(
        functional.cross_entropy(found[mask], targets[mask]), expected.loss
    )


@pytest.mark.parametrize("cell", ["date-es", "period-de", "translate-dates"])
def test_greedy_decoding_is_generate(base: Any, tmp_path: Path, cell: str) -> None:
    model.save(base, tmp_path)
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = few(cell, 24)["inputs"]
    expected = loaded.generate(
        **theirs(inputs["source"]),
        max_new_tokens=cells.LONGEST[cells.parse(cell)[0]],
        do_sample=False,
    )
    found = track(tmp_path).predict(base, cell, inputs)
    assert found == tokens.decode(expected[:, 1:])
    assert len(set(found)) > 12


@pytest.mark.parametrize("cell", ["kind-de", "same-tr"])
def test_ranking_takes_the_option_of_least_loss(
    base: Any, tmp_path: Path, cell: str
) -> None:
    part, instance = few(cell), track(tmp_path)
    found = instance.predict(base, cell, part["inputs"])
    options = cells.options(*cells.parse(cell))
    for place, answer in enumerate(found):
        source = part["inputs"]["source"][place : place + 1]
        losses = []
        for option in options:
            said = tokens.encode([option])
            logits = decoding.logits(base, source, said)[0].detach()
            losses.append(
                float(functional.cross_entropy(logits, said[0], reduction="sum"))
            )
        assert answer == options[losses.index(min(losses))]


def test_predictions_do_not_depend_on_the_company(base: Any, tmp_path: Path) -> None:
    instance = track(tmp_path)
    inputs = instance.data("number-pl", "validation")["inputs"]
    together = instance.predict(base, "number-pl", inputs)
    order = torch.arange(len(together)).flip(0)
    reversed_ = {name: rows[order] for name, rows in inputs.items()}
    assert instance.predict(base, "number-pl", reversed_) == together[::-1]


def test_outputs_are_differentiable_in_every_weight(tmp_path: Path) -> None:
    network = model.build(3).requires_grad_(True)
    inputs = few("date-en", 2)["inputs"]
    track(tmp_path).outputs(network, "date-en", inputs).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_names_are_those_of_the_checkpoint(base: Any) -> None:
    from safetensors import safe_open

    with safe_open(ASSET / "model.safetensors", "pt") as stored:
        assert set(stored.keys()) == set(base.state_dict())
    assert set(dict(base.named_parameters())) == set(base.state_dict())


def test_one_embedding_serves_all_places(base: Any) -> None:
    """Replaced by name, it changes encoder, decoder and head alike."""
    inputs = few("kind-en", 2)["inputs"]
    state = dict(base.state_dict())
    state["shared.weight"] = state["shared.weight"].flip(0)
    network = model.build()
    network.load_state_dict(state)
    called = torch.func.functional_call(
        base, state, (inputs["source"],), {"decoder_input_ids": inputs["target"]}
    ).logits
    loaded = network(inputs["source"], decoder_input_ids=inputs["target"]).logits
    torch.testing.assert_close(called, loaded)


def live(instance: CldrT5, module: Any, cell: str, count: int) -> LiveTask:
    part = few(cell, count)
    return LiveTask(
        name=cell,
        module=module,
        forward=lambda network, inputs: instance.outputs(network, cell, inputs),
        inputs=part["inputs"],
        labels=part["labels"],
        mask=lambda inputs: instance.mask(cell, inputs),
        targets=lambda inputs: instance.targets(cell, inputs),
        gram_mask=lambda name, inputs: instance.gram_mask(name, cell, inputs),
    )


def test_gram_counts_source_and_target_tokens(base: Any, tmp_path: Path) -> None:
    """Padding changes nothing: one item alone and the same item padded agree."""
    instance, cell = track(tmp_path), "same-de"
    task = live(instance, base, cell, 1)
    inputs: Mapping[str, torch.Tensor] = task.inputs  # type: ignore[assignment]
    shorter = {
        n: rows[:, : int((rows != tokens.PAD).sum())] for n, rows in inputs.items()
    }
    assert shorter["source"].shape != inputs["source"].shape
    tensors = dict(base.state_dict())
    padded = collect("gram", task, tensors)
    task.inputs = shorter
    alone = collect("gram", task, tensors)
    assert set(padded) == set(alone) == set(linear_layers(base))
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value, atol=1e-3, rtol=1e-3)


def test_fisher_reaches_every_tensor(base: Any, tmp_path: Path) -> None:
    task = live(track(tmp_path), base, "number-pl", 2)
    tensors = dict(base.state_dict())
    found = collect("fisher", task, tensors, estimator="empirical")
    assert set(found) == set(tensors)


def test_one_step_of_training_is_adamw_on_the_librarys_loss(base: Any) -> None:
    regime = recipes.Regime(steps=1, batch=2, rate=1e-3)
    mine, other = (
        recipes.tuned(base, ["date-en"], seed=3, regime=regime),
        model.load(ASSET),
    )

    part = resolve("mtk_tasks_text.data:examples")("date-en", "train")
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    torch.randint(1, (), generator=generator)  # one cell to choose from
    picked = torch.randint(len(part.inputs), (2,), generator=generator).tolist()
    source, target = (
        tokens.encode([texts[place] for place in picked])
        for texts in (part.inputs, part.labels)
    )
    optimiser = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    labels = target.masked_fill(target == tokens.PAD, -100)
    other(**theirs(source), labels=labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    optimiser.step()
    for name, value in other.state_dict().items():
        # The first step divides gradients by their size, and so enlarges the rounding
        # errors of the smallest ones; the step itself is 1e-3.
        unlike = (mine.state_dict()[name] - value).abs() > 1e-5
        assert unlike.float().mean() < 1e-3
    assert not torch.equal(mine.state_dict()["shared.weight"], base.shared.weight)


def test_rates_of_pretraining_rise_and_fall_as_a_cosine() -> None:
    rate = recipes.one_cycle(0.5, 100)
    assert [rate(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rate(5) == 0.5
    assert rate(5 + 95 // 2) == pytest.approx(0.25, abs=0.01)
    assert rate(100) == pytest.approx(0)


def test_interrupted_pretraining_goes_on_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state.safetensors"
    regime = recipes.Regime(pretrain_steps=4, pretrain_batch=2)
    whole, killed, resumed = (model.build(1) for _ in range(3))
    recipes.pretrain(whole, 1, regime)

    class Killed(Exception):
        pass

    def kill(message: str, fraction: float) -> None:
        assert (message[:6], fraction) == ("step 2", 0.5)
        raise Killed

    with pytest.raises(Killed):
        recipes.pretrain(killed, 1, regime, state=state, every=2, report=kill)
    seen = []
    recipes.pretrain(
        resumed,
        1,
        regime,
        state=state,
        every=2,
        report=lambda _, fraction: seen.append(fraction),
    )
    assert seen == [1.0]  # it did not begin at the beginning
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_pretraining_is_still_the_one_that_made_the_base() -> None:
    """The losses after some steps, as the loop had them that made the shipped bytes."""
    said = []
    regime = recipes.Regime(pretrain_steps=4, faint_steps=4, pretrain_batch=16)
    network = model.build(make_base.SEED)
    for stage in (recipes.pretrain, recipes.pretrain_faintly):
        stage(network, make_base.SEED, regime, report=lambda text, _: said.append(text))
    losses = [float(text.split("loss ")[1]) for text in said]
    assert losses == pytest.approx([4.846, 5.124], abs=0.02)  # bfloat16


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    model.build(seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_packaged_base_matches_its_provenance() -> None:
    facts = json.loads((ASSET / "provenance.json").read_text(encoding="utf-8"))
    assert set(facts["sha256"]) == {"config.json", "model.safetensors"}
    for name, digest in facts["sha256"].items():
        assert sha256(ASSET / name)["sha256"] == digest
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 4_000_000
    assert facts["regime"] == {
        field: getattr(recipes.REGIME, field) for field in make_base.DECIDING
    }


def test_prepare_is_deterministic_and_seeded(tmp_path: Path, quick: None) -> None:
    one = track(tmp_path / "a").prepare(ignore)
    two = track(tmp_path / "b").prepare(ignore)
    other = track(tmp_path / "a", seed=1).prepare(ignore)
    assert [path.name for path in one["experts"]] == list(cells.HELD_IN)
    for mine, same, unlike in zip(
        [*one["experts"], one["multitask"]],
        [*two["experts"], two["multitask"]],
        [*other["experts"], other["multitask"]],
        strict=True,
    ):
        assert weights(mine) == weights(same) != weights(unlike)
    assert one["base"] == other["base"]
    assert len({weights(path) for path in one["experts"]}) == len(cells.HELD_IN)
    assert not list(tmp_path.rglob("*.partial-*"))


def test_second_prepare_neither_trains_nor_imports_torch(
    tmp_path: Path, quick: None
) -> None:
    made = track(tmp_path).prepare(ignore)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    script = f"""
import pathlib, sys
from mtk_tasks_text.track import CldrT5
t = CldrT5(cache=pathlib.Path({str(tmp_path)!r}), seed=0, options={{}})
print(t.prepare(lambda message, fraction: None)["multitask"])
assert not {{"torch", "transformers", "babel"}} & set(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(made["multitask"])
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]


def test_only_what_is_damaged_is_made_again(tmp_path: Path, quick: None) -> None:
    made = track(tmp_path).prepare(ignore)
    whole = weights(made["multitask"])
    kept = made["experts"][0] / "model.safetensors"
    before = kept.stat().st_mtime_ns
    (made["multitask"] / "model.safetensors").write_bytes(whole[:-1])
    assert weights(track(tmp_path).prepare(ignore)["multitask"]) == whole
    assert kept.stat().st_mtime_ns == before


def test_data_have_the_promised_types(tmp_path: Path) -> None:
    part = track(tmp_path).data("period-tr", "validation")
    assert all(type(label) is str for label in part["labels"])
    assert all(type(item) is int for item in part["ids"])
    source, target = part["inputs"]["source"], part["inputs"]["target"]
    assert source.dtype == target.dtype == torch.int64
    assert len(source) == len(target) == len(part["labels"]) == len(part["ids"])
    assert tokens.decode(target) == part["labels"]


def test_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no option 'scope'"):
        CldrT5(cache=tmp_path, seed=0, options={"scope": "all"})
