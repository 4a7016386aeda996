"""Models, predictions and training of the track, on a tiny mT5."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoTokenizer, MT5ForConditionalGeneration

from mtk import roots
from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest
from mtk.randomness import stream
from mtk.training import Regime, items
from mtk_tasks_crosslingual import recipe
from mtk_tasks_crosslingual.cells import (
    CELLS,
    HELD_IN,
    METRICS,
    MICRO,
    MULTITASK,
    RANKED,
    parse,
)
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
    roots.note_root(opened.cache, root)
    given = {"cuts": opened._cuts, "regime": opened._given} | changes
    options = {"micro": given.pop("micro", 2)}
    return CrosslingualMt5(cache=opened.cache, seed=0, options=options, **given)


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
    assert not roots.training_state(folder).exists()
    assert {p["name"] for p in track.parts(root) if p["there"]} >= {name}


def state_after(step, track, root, name):
    """What an expert's training has left behind when it is killed after a step."""

    def kill(text, _share):
        if f"step {step}," in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track.make(root, name, kill)
    folder = track.place(root, name)
    assert not folder.exists()
    return load_file(roots.training_state(folder))


@pytest.mark.parametrize("micro", [4, 3, 1])
def test_one_step_is_that_of_adamw(opened, root, tokenizer, micro):
    """The trained weights, against a plain step on the same items and dropout."""
    track = with_root(opened, root, micro=micro)
    pairs = track._pairs(root, "nli-ar")
    assert len(pairs) == 5 * 2
    chosen = items(len(pairs), 0, track._regime).tolist()
    model = MT5ForConditionalGeneration.from_pretrained(root / "base").train()
    assert model.config.dropout_rate == 0.1
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for start in range(0, 4, micro):
        part = chosen[start : start + micro]
        prompts, answers = zip(*(pairs[i] for i in part), strict=True)
        x = tokenizer(list(prompts), padding=True, return_tensors="pt")
        y = tokenizer(list(answers), padding=True, return_tensors="pt")
        labels = y["input_ids"].masked_fill(y["attention_mask"] == 0, -100)
        dice = stream(track._regime.seed, "dropout", 0, start).initial_seed()
        torch.manual_seed(dice)
        scores = model(**x, labels=labels).logits
        loss = functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
        (loss * len(part) / 4).backward()
    optimiser.step()
    expected = dict(model.named_parameters())
    trained = state_after(1, track, root, "nli-ar")
    for name, weight in expected.items():
        torch.testing.assert_close(trained[f"now.{name}"], weight.detach(), msg=name)


def test_an_expert_that_was_killed_goes_on_to_the_same_weights(opened, root):
    regime = Regime(rate=1e-2, batch=4, steps=3, every=1, patience=9, half=False)
    track = with_root(opened, root, regime=regime)
    whole = state_after(3, track, root, "sense-de")
    roots.training_state(track.place(root, "sense-de")).unlink()
    state_after(2, track, root, "sense-de")
    (begun,) = (p for p in track.parts(root) if p["name"] == "sense-de")
    assert (begun["there"], begun["ready"]) == (False, True)
    assert "2 of at most 3 steps" in begun["note"]
    resumed = state_after(3, track, root, "sense-de")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    track.make(root, "sense-de", quiet)
    training = check_manifest(track.place(root, "sense-de"))["mtk"]["training"]
    assert [step for step, _ in training["history"]] == [0, 1, 2, 3]


def test_validation_is_without_dropout_so_runs_repeat(opened, root):
    """Scores between steps of training, and with them the step that is kept."""
    regime = Regime(rate=1e-2, batch=4, steps=3, every=1, patience=9, half=False)
    track = with_root(opened, root, regime=regime)
    histories = []
    for _ in range(8):
        track.make(root, "sense-de", quiet)
        place = track.place(root, "sense-de")
        histories.append(check_manifest(place)["mtk"]["training"]["history"])
        shutil.rmtree(place)
    assert all(history == histories[0] for history in histories)


def test_an_expert_is_imported_if_it_fits(opened, root, tmp_path):
    track = with_root(opened, root)
    shutil.copytree(root / "base", tmp_path / "expert")
    track.adopt(root, "qa-en", tmp_path / "expert")
    assert roots.is_made(track.place(root, "qa-en"))
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


def test_a_model_without_one_of_its_shards_is_not_there(opened, filled, tmp_path):
    shutil.copytree(filled / "base", tmp_path / "base")
    index = tmp_path / "base" / "model.safetensors.index.json"

    def note():
        (found,) = (p for p in opened.parts(tmp_path) if p["name"] == "base")
        assert bool(found["todo"]) != found["there"]
        return found["note"]

    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert note() == "there"
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert note() == "model-2.safetensors is missing"
    index.write_text("[]")
    assert "cannot be read" in note()
    index.unlink()
    (tmp_path / "base" / "tokenizer.json").unlink()
    assert note() == "no tokenizer"


def test_a_base_that_is_there_is_not_downloaded_over(opened, filled):
    before = sorted((filled / "base").iterdir())
    with pytest.raises(UsageError, match="move it away"):
        opened.fetch(filled, "base", quiet)
    assert sorted((filled / "base").iterdir()) == before


def test_the_protocol_s_recipe():
    wanted = Regime(rate=5e-4, batch=1024, steps=5000, every=100, patience=5, seed=42)
    assert replace(wanted, half=False) == recipe.PROTOCOL
    assert MICRO == 4
    assert recipe.PROTOCOL.decay == 0.0
    assert recipe.PROTOCOL.clip is None
    assert RANKED == ("nli", "sense", "answerability")
