"""Models, predictions and training of the track, on a tiny mT5."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoTokenizer, MT5ForConditionalGeneration

from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest
from mtk_tasks_crosslingual import fitting, home
from mtk_tasks_crosslingual.cells import (
    CELLS,
    HELD_IN,
    METRICS,
    MULTITASK,
    RANKED,
    parse,
)
from mtk_tasks_crosslingual.fitting import Regime
from mtk_tasks_crosslingual.templates import ANSWERS
from mtk_tasks_crosslingual.track import CrosslingualMt5


def quiet(*_):
    """Report to nobody."""


@pytest.fixture(scope="module")
def model(filled):
    found = MT5ForConditionalGeneration.from_pretrained(filled / "base")
    return found.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(filled):
    return AutoTokenizer.from_pretrained(filled / "base")


@pytest.fixture
def root(filled, tmp_path):
    """A root of its own, in which models can be made."""
    shutil.copytree(filled, tmp_path / "root")
    return tmp_path / "root"


def with_root(opened, root, **changes):
    (opened.cache / "root.json").write_text(json.dumps({"root": str(root)}))
    given = {"cuts": opened._cuts, "regime": opened._given} | changes
    return CrosslingualMt5(cache=opened.cache, seed=0, options={}, **given)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_predicted_and_scored(opened, model, cell):
    from mtk_tasks_crosslingual import plugin

    targets = {metric.name: metric.target for metric in plugin.mtk_metrics()}
    data = opened.data(cell, "test")
    found = opened.predict(model, cell, data["inputs"])
    assert found == opened.predict(model, cell, data["inputs"])
    assert len(found) == len(data["labels"])
    for name in METRICS[parse(cell)[0]]:
        if name == "accuracy":
            assert all(0 <= n < len(ANSWERS[parse(cell)]) for n in found)
            continue
        scores = targets[name](predictions=found, references=data["labels"])
        assert len(scores) == len(found)
        assert all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("normalise", [False, True])
def test_ranking_sums_the_log_likelihood_of_the_answer(
    opened, model, tokenizer, normalise
):
    opened.normalise = normalise
    data = opened.data("nli-ar", "test")
    found = opened.predict(model, "nli-ar", data["inputs"])
    for row, best in enumerate(found):
        mask = data["inputs"]["attention_mask"][row]
        source = data["inputs"]["input_ids"][row][mask][None]
        sums = []
        for answer in ANSWERS["nli", "ar"]:
            labels = tokenizer(answer, return_tensors="pt")["input_ids"]
            scores = model(input_ids=source, labels=labels).logits.log_softmax(-1)
            total = sum(scores[0, i, t] for i, t in enumerate(labels[0]))
            sums.append(float(total / len(labels[0]) if normalise else total))
        assert best == sums.index(max(sums))


def test_writing_is_greedy(opened, model, tokenizer):
    data = opened.data("qa-en", "test")
    found = opened.predict(model, "qa-en", data["inputs"])
    for row, text in enumerate(found):
        mask = data["inputs"]["attention_mask"][row]
        source = data["inputs"]["input_ids"][row][mask][None]
        said = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(64):
            scores = model(input_ids=source, decoder_input_ids=said).logits[:, -1]
            said = torch.cat([said, scores.argmax(-1, keepdim=True)], 1)
            if said[0, -1] == 1:
                break
        assert text == tokenizer.decode(said[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("cell", ["qa-en", "nli-ar", "continuation-es"])
def test_outputs_are_those_of_each_item_alone(opened, model, cell):
    inputs = opened.data(cell, "test")["inputs"]
    scores = opened.outputs(model, cell, inputs)
    counted, targets = opened.mask(cell, inputs), opened.targets(cell, inputs)
    for row in range(len(targets)):
        alone = model(
            input_ids=inputs["input_ids"][row][inputs["attention_mask"][row]][None],
            labels=targets[row][counted[row]][None],
        ).logits[0]
        torch.testing.assert_close(scores[row][counted[row]], alone)


def test_gram_masks_fit_what_every_linear_layer_is_given(opened, model):
    inputs = opened.data("qa-en", "test")["inputs"]
    rows, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, x, name=name: rows.update({name: x[0].shape[:-1]})
                )
            )
    opened.outputs(model, "qa-en", inputs)
    for handle in handles:
        handle.remove()
    assert len(rows) == 19
    for name, shape in rows.items():
        assert opened.gram_mask(name, "qa-en", inputs).shape == shape


def test_templates_take_turns(opened, tokenizer):
    inputs = opened.data("nli-en", "test")["inputs"]["input_ids"]
    texts = tokenizer.batch_decode(inputs, skip_special_tokens=True)
    assert [text.split()[0] for text in texts] == ["Does", "Suppose", "Does", "Suppose"]


def test_parts_are_named_and_counted(opened, filled, tmp_path):
    found = {part["name"]: part for part in opened.parts(filled)}
    assert all(p["there"] for p in found.values() if p["kind"] in ("weights", "data"))
    assert [p["name"] for p in opened.parts(filled) if p["ready"]] == [
        *HELD_IN,
        MULTITASK,
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = opened.parts(empty)
    assert not any(part["there"] or part["ready"] for part in nothing)
    assert all(part["todo"] for part in nothing)
    assert {p["name"] for p in nothing} == set(found)


@pytest.mark.parametrize("name", [*HELD_IN, MULTITASK])
def test_every_recipe_runs_one_step(opened, root, name):
    track = with_root(opened, root)
    told = []
    track.make(root, name, lambda text, share: told.append((text, share)))
    assert told[-1][1] == 1.0
    folder = track.place(root, name)
    manifest = check_manifest(folder, contents=True)
    training = manifest["mtk"]["training"]
    assert training["step"] == 1
    assert [step for step, _ in training["history"]] == [0, 1]
    base, made = (load_file(f / "model.safetensors") for f in (root / "base", folder))
    assert {n: t.shape for n, t in base.items()} == {
        n: t.shape for n, t in made.items()
    }
    assert not home.training_state(folder).exists()
    assert {p["name"] for p in track.parts(root) if p["there"]} >= {name}


def test_one_step_is_that_of_adamw(opened, root, tokenizer):
    """The trained weights, against a plain step on the same items."""
    track = with_root(opened, root)
    pairs = track._pairs(root, "nli-ar")
    assert len(pairs) == 5 * 2
    items = fitting.items_of(len(pairs), track._regime, 0)
    model = MT5ForConditionalGeneration.from_pretrained(root / "base").eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for start in (0, 2):
        prompts, answers = zip(
            *(pairs[i] for i in items[start : start + 2]), strict=True
        )
        x = tokenizer(list(prompts), padding=True, return_tensors="pt")
        y = tokenizer(list(answers), padding=True, return_tensors="pt")
        labels = y["input_ids"].masked_fill(y["attention_mask"] == 0, -100)
        scores = model(**x, labels=labels).logits
        loss = functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
        (loss / 2).backward()
    optimiser.step()
    from mtk_tasks_crosslingual import model as mt5

    trained = mt5.load(root / "base")

    def loss_of(part):
        batch = mt5.encode(tokenizer, *zip(*(pairs[i] for i in part), strict=True))
        return mt5.loss(trained, batch)

    scores = iter([0.0, 1.0])
    fitting.fit(
        trained, count=len(pairs), loss=loss_of, score=lambda: next(scores),
        regime=track._regime, state=root / "state.safetensors", report=quiet,
    )  # fmt: skip
    for (name, a), b in zip(
        trained.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=name)


class Point(torch.nn.Module):
    """One weight, for runs that can be followed by hand."""

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([4.0]))


def run_point(tmp_path, regime, *, stop_at=None, scores=None, name="state"):
    point, steps = Point(), []

    def loss(items):
        steps.append(list(items))
        if stop_at is not None and len(steps) > stop_at:
            raise KeyboardInterrupt
        return (point.x * (1 + torch.tensor(items, dtype=torch.float32))).pow(2).mean()

    given = iter(scores) if scores else None
    progress = None
    with contextlib.suppress(KeyboardInterrupt):
        progress = fitting.fit(
            point, count=5, loss=loss,
            score=(lambda: next(given)) if given else (lambda: -float(point.x.detach() ** 2)),
            regime=regime, state=tmp_path / f"{name}.safetensors", report=quiet,
        )  # fmt: skip
    return point, progress


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    regime = Regime(rate=0.1, batch=3, micro=3, steps=8, every=2, patience=99)
    whole, _ = run_point(tmp_path, regime, name="whole")
    run_point(tmp_path, regime, stop_at=5)
    assert fitting.begun(tmp_path / "state.safetensors") == 4
    resumed, progress = run_point(tmp_path, regime)
    assert torch.equal(resumed.x, whole.x)
    assert [step for step, _ in progress.history] == [0, 2, 4, 6, 8]


def test_training_stops_early_and_keeps_the_best(tmp_path):
    regime = Regime(rate=0.1, batch=2, micro=2, steps=50, every=1, patience=2)
    best, _ = run_point(
        tmp_path,
        Regime(rate=0.1, batch=2, micro=2, steps=2, every=1, patience=2),
        scores=[0.0, 1.0, 2.0],
        name="best",
    )
    point, progress = run_point(tmp_path, regime, scores=[0.0, 1.0, 2.0, 1.5, 1.0, 9.0])
    assert (progress.step, progress.best_step) == (4, 2)
    assert torch.equal(point.x, best.x)


def test_an_expert_is_imported_if_it_fits(opened, root, tmp_path):
    track = with_root(opened, root)
    shutil.copytree(root / "base", tmp_path / "expert")
    track.adopt(root, "qa-en", tmp_path / "expert")
    assert home.is_whole(track.place(root, "qa-en"))
    weights = load_file(tmp_path / "expert" / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()
    save_file(weights, tmp_path / "expert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        track.adopt(root, "nli-ar", tmp_path / "expert")
    assert not track.place(root, "nli-ar").exists()
    with pytest.raises(UsageError, match="no expert"):
        track.adopt(root, "nli-en", tmp_path / "expert")


def test_prepare_wants_everything_and_then_gives_it(opened, root, tmp_path):
    fresh = CrosslingualMt5(cache=tmp_path / "none", seed=0, options={})
    with pytest.raises(UsageError, match="tracks prepare"):
        fresh.prepare(quiet)
    assert len(fresh.missing()) == 1
    track = with_root(opened, root)
    with pytest.raises(UsageError, match="6 parts are missing: qa-en, nli-ar"):
        track.prepare(quiet)
    for name in (*HELD_IN, MULTITASK):
        track.adopt(root, name, root / "base")
    found = track.prepare(quiet)
    assert found["base"] == root / "base"
    assert [path.name for path in found["experts"]] == list(HELD_IN)
    assert found["multitask"].name == MULTITASK
    assert track.missing() == []
    track.build(found["multitask"])


def test_weights_that_are_missing_are_not_drawn_at_random(filled, tmp_path):
    from mtk_tasks_crosslingual import model as mt5

    shutil.copytree(filled / "base", tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    del weights[name]
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        mt5.load(tmp_path / "base")


def test_the_model_itself_cannot_be_fetched(opened, filled):
    with pytest.raises(UsageError, match="Convert it"):
        opened.fetch(filled, "base", quiet)


def test_the_protocol_s_recipe():
    assert Regime() == Regime(
        rate=5e-4, batch=1024, steps=5000, every=100, patience=5, seed=42, micro=4
    )
    assert RANKED == ("nli", "sense", "answerability")
