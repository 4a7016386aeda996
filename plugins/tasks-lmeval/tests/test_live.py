"""Scores and tensors of a track from a file, against the harness called directly."""

from __future__ import annotations

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from mtk.errors import UsageError
from mtk_tasks_lmeval import load_track
from mtk_tasks_lmeval.metrics import pick


@pytest.fixture(scope="module")
def live(place, tmp_path_factory):
    _, target = load_track(place / "track.toml")
    return target(cache=tmp_path_factory.mktemp("cache"), seed=0, options={})


@pytest.fixture(scope="module")
def model(live, place):
    return live.build(place / "one")


@pytest.fixture(autouse=True)
def without_environment(monkeypatch):
    """simple_evaluate asks pip, git and the processor about themselves, for seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)


def direct(place, model, task, places=None, **more):
    """The harness itself."""
    lm = HFLM(
        pretrained=model,
        tokenizer=AutoTokenizer.from_pretrained(place / "base"),
        batch_size=8,
        truncation=True,
    )
    manager = TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=[task],
        task_manager=manager,
        samples=None if places is None else {task: places},
        bootstrap_iters=0,
        **more,
    )


@pytest.mark.parametrize(
    ("cell", "task", "metric"),
    [
        ("colour", "tiny_colours", "acc"),
        ("colour", "tiny_colours", "acc_norm"),
        ("words", "tiny_words", "exact_match"),
    ],
)
def test_scores_are_those_of_the_harness(live, model, place, cell, task, metric):
    data = live.data(cell, "test")
    predictions = live.predict(model, cell, data["inputs"])
    ours = pick(metric, predictions=predictions, references=data["labels"])
    places = data["inputs"]["place"].tolist()
    found = direct(place, model, task, places)
    theirs = {s["doc_id"]: float(s[metric]) for s in found["samples"][task]}
    assert ours == [theirs[number] for number in places]
    mean = found["results"][task][f"{metric},none"]
    assert np.mean(ours) == pytest.approx(mean, abs=1e-12)


def test_the_ranking_score_is_the_first_metric(live, model):
    data = live.data("colour", "test")
    for table in live.predict(model, "colour", data["inputs"]):
        assert table["score"] == table["acc"]
        assert set(table) == {"acc", "acc_norm", "score"}


def test_a_limit_is_that_of_the_harness(live, model, place):
    data = live.data("again", "test")
    ours = live.predict(model, "again", data["inputs"])
    assert data["inputs"]["place"].tolist() == list(range(7))
    found = direct(place, model, "tiny_colours", limit=7)
    mean = found["results"]["tiny_colours"]["acc,none"]
    assert np.mean([table["acc"] for table in ours]) == pytest.approx(mean)


def test_predictions_follow_the_order_of_the_items(live, model):
    data = live.data("capitals", "test")
    whole = live.predict(model, "capitals", data["inputs"])
    turned = {name: tensor.flip(0) for name, tensor in data["inputs"].items()}
    assert live.predict(model, "capitals", turned) == whole[::-1]
    one = {name: tensor[3:4] for name, tensor in data["inputs"].items()}
    assert live.predict(model, "capitals", one) == [whole[3]]


def test_a_choice_is_the_likeliest_answer(live, model, place):
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    data = live.data("capitals", "test")
    ours = live.predict(model, "capitals", data["inputs"])
    for number, answer in zip(data["inputs"]["place"].tolist(), ours, strict=True):
        prompt = tokenizer(f"Colour {number}:")["input_ids"]
        likelihoods = {}
        for colour in ("red", "green", "blue"):
            ids = prompt + tokenizer(f" {colour}")["input_ids"]
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(prompt), len(ids))
            likelihoods[colour] = sum(float(scores[p - 1, ids[p]]) for p in places)
        assert answer == max(likelihoods, key=likelihoods.__getitem__)


def test_splits_are_disjoint_and_complete(live):
    for cell, total in (("colour", 24), ("capitals", 20)):
        test, validation = (
            set(live.data(cell, s)["ids"]) for s in ("test", "validation")
        )
        assert not test & validation
        assert len(test | validation) == total
        assert len(validation) == round(0.2 * total)
    assert len(live.data("words", "test")["ids"]) == 24


def test_ids_tell_sources_apart_and_join_cells_of_one_source(live):
    ids = {
        cell: set(live.data(cell, "test")["ids"])
        for cell in ("colour", "words", "again")
    }
    assert not ids["colour"] & ids["words"]
    assert len(ids["again"] & ids["colour"]) >= 4  # the same task, whatever the cell
    assert max(ids["words"]) < 2**53


def test_what_a_file_does_not_have_is_said(live):
    with pytest.raises(UsageError, match="no training items"):
        live.data("colour", "train")
    with pytest.raises(UsageError, match="no items for validation"):
        live.data("words", "validation")


def test_global_randomness_and_offline_switches_are_left_alone(live, model):
    import datasets

    data = live.data("again", "test")
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist()
    torch.manual_seed(3), np.random.seed(3)
    before = datasets.config.HF_HUB_OFFLINE
    live.predict(model, "again", data["inputs"])
    found = torch.rand(2).tolist(), np.random.rand(2).tolist()
    assert found == expected
    assert before == datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("cell", ["colour", "capitals", "words"])
def test_outputs_are_the_logits_at_the_right_answer(live, model, place, cell):
    """Against each item alone, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    data = live.data(cell, "test")
    given = data["inputs"]
    scores = live.outputs(model, cell, given)
    mask, targets = live.mask(cell, given), live.targets(cell, given)
    assert scores.shape == (*targets.shape, 259)
    for row, answer in enumerate(data["labels"]):
        answer_ids = tokenizer(f" {answer}")["input_ids"]
        assert targets[row][mask[row]].tolist() == answer_ids
        source = given["input_ids"][row][given["attention_mask"][row]]
        alone = model(source[None]).logits[0, -len(answer_ids) :]
        torch.testing.assert_close(scores[row][mask[row]], alone)


def test_outputs_give_the_likelihood_of_the_harness(live, model, place):
    data = live.data("colour", "test")
    given = data["inputs"]
    scores = live.outputs(model, "colour", given).log_softmax(-1)
    chosen = scores.gather(-1, live.targets("colour", given)[..., None])[..., 0]
    ours = (chosen * live.mask("colour", given)).sum(1)
    places = given["place"].tolist()
    found = direct(place, model, "tiny_colours", places)["samples"]["tiny_colours"]
    theirs = [float(s["filtered_resps"][s["target"]][0]) for s in found]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-4, atol=1e-4)


def test_gram_masks_fit_what_every_linear_layer_is_given(live, model):
    given = live.data("capitals", "test")["inputs"]
    rows = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, x, name=name: rows.update({name: x[0].shape[:-1]})
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    live.outputs(model, "capitals", given)
    for handle in handles:
        handle.remove()
    assert "lm_head" in rows
    assert len(rows) == 15
    for name, shape in rows.items():
        mask = live.gram_mask(name, "capitals", given)
        assert mask.shape == shape
        key = "counted" if name == "lm_head" else "attention_mask"
        assert mask.sum() == given[key].sum()


def test_an_encoder_decoder_is_a_track_too(place, tmp_path):
    text = (place / "track.toml").read_text().replace("tasks", str(place / "tasks"))
    text = text.replace('"base"', f'"{place / "small"}"').replace(
        '"capitals.jsonl"', f'"{place / "capitals.jsonl"}"'
    )
    (tmp_path / "t5.toml").write_text(text)
    _, target = load_track(tmp_path / "t5.toml")
    live = target(cache=tmp_path, seed=0, options={})
    model = live.build(place / "small")
    data = live.data("capitals", "test")
    given = data["inputs"]
    scores = live.outputs(model, "capitals", given)
    row = 2
    alone = model(
        input_ids=given["input_ids"][row][given["attention_mask"][row]][None],
        labels=given["targets"][row][given["counted"][row]][None],
    ).logits[0]
    torch.testing.assert_close(scores[row][given["counted"][row]], alone)
    assert set(live.predict(model, "capitals", given)) <= {"red", "green", "blue"}
    expected = {
        "encoder.block.0.layer.0.SelfAttention.q": "attention_mask",
        "decoder.block.0.layer.1.EncDecAttention.k": "attention_mask",
        "decoder.block.0.layer.1.EncDecAttention.q": "counted",
        "decoder.block.0.layer.0.SelfAttention.v": "counted",
        "lm_head": "counted",
    }
    for name, key in expected.items():
        assert live.gram_mask(name, "capitals", given) is given[key]


def test_prepare_finds_the_models(live, place):
    told = []
    models = live.prepare(lambda message, share: told.append((message, share)))
    assert models["base"] == place / "base"
    assert models["experts"] == [place / "one", place / "two"]
    assert models["multitask"] == place / "one"
    assert told[-1][1] == 1.0


def test_absent_models_are_named(place, tmp_path):
    text = (place / "track.toml").read_text().replace('"two"', '"three"')
    (place / "absent.toml").write_text(text)
    _, target = load_track(place / "absent.toml")
    live = target(cache=tmp_path, seed=0, options={})
    assert live.missing() == [f"expert of capitals: {place / 'three'}"]
    with pytest.raises(UsageError, match="1 models are missing"):
        live.prepare(lambda *_: None)
