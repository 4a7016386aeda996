"""The track ``domainnet-clip`` on a small folder of the real layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mtk import training
from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError, UsageError
from mtk.loading import resolve
from mtk.roots import training_state
from mtk_tasks_domainnet import lists
from mtk_tasks_domainnet.cells import CIFAR

clip = resolve("mtk_tasks_domainnet.clip")
clip_data = resolve("mtk_tasks_domainnet.clip_data")
clip_recipes = resolve("mtk_tasks_domainnet.clip_recipes")
track_module = resolve("mtk_tasks_domainnet.clip_track")
open_clip = resolve("open_clip")


@pytest.fixture
def track(cache, mini, regime):
    return make_track(cache, mini, regime)


def make_track(cache, mini, regime, seed=0, **options):
    return track_module.DomainNetClip(
        cache=cache, seed=seed, options=options, grid=mini, regime=regime
    )


def states(parts):
    return {p["name"]: p["there"] for p in parts}


def test_recipe_is_the_protocols():
    said = training.Regime(
        rate=2e-5, batch=128, steps=1000, seed=42, every=50, patience=5
    )
    assert said == clip_recipes.EXPERT
    assert clip_recipes.MULTITASK.steps == 10_000
    assert said.half  # float16 autocast, on a GPU
    assert (said.decay, said.clip) == (0, None)


def test_images_are_what_open_clips_evaluation_transform_gives(track, root):
    found = track.data("real-tool", "test")
    folder = root / clip_data.FOLDER
    model, _, transform = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", load_weights=True
    )
    listed = [
        lists.Image(i.path, i.name, i.number)
        for i in clip_data.ClipData(root, track.grid, "raw").images("real-tool", "test")
    ]
    wanted = torch.stack([transform(Image.open(root / i.path)) for i in listed])
    assert found["inputs"].dtype == torch.uint8
    torch.testing.assert_close(clip.normaliser(folder)(found["inputs"]), wanted)
    assert found["ids"] == [i.number for i in listed]
    # The logits too, from open_clip's own model, tokenizer and transform.
    texts = [
        f"A photo of a {name}" for name in ("hammer", "nail", "alarm_clock", "nail")
    ]
    rows = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts))
    theirs = model.eval().encode_image(wanted) @ rows.T
    mine = track.outputs(clip.load(folder), "real-tool", found["inputs"])
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_stored_images_are_used_again_and_follow_the_list(track, root):
    first = track.data("real-tool", "test")["inputs"].clone()
    (stored,) = (root / "mtk" / "pixels").iterdir()
    before = stored.stat().st_mtime_ns
    assert torch.equal(track.data("real-tool", "test")["inputs"], first)
    assert stored.stat().st_mtime_ns == before
    image = clip_data.ClipData(root, track.grid, "raw").images("real-tool", "test")[3]
    with Image.open(root / image.path) as picture:
        black = Image.new("RGB", picture.size)
    black.save(root / image.path)
    second = track.data("real-tool", "test")["inputs"]
    assert [n for n in range(8) if not torch.equal(first[n], second[n])] == [3]
    (root / image.path).unlink()
    with pytest.raises(UsageError, match="could not be read"):
        track.data("real-tool", "test")
    assert not list((root / "mtk" / "pixels").glob("*.partial"))


def test_splits_are_disjoint_and_complete(track):
    found = [
        {
            i
            for cell in ("clipart-tool", "clipart-office")
            for i in track.data(cell, s)["ids"]
        }
        for s in ("train", "validation", "test")
    ]
    assert [len(ids) for ids in found] == [24, 6, 12]
    assert len(set.union(*found)) == 42


def test_either_row_of_a_class_in_two_groups_counts(cache, mini, regime, root):
    joint = make_track(cache, mini, regime)
    group = make_track(cache, mini, regime, head_scope="group")
    base = clip.load(root / clip_data.FOLDER)
    data = joint.data("real-office", "test")
    assert set(data["labels"].tolist()) == {1, 2}  # nail's first row, and alarm_clock's
    assert joint.outputs(base, "real-office", data["inputs"]).shape == (8, 4)
    assert set(joint.predict(base, "real-office", data["inputs"])) <= {0, 1, 2}
    data = group.data("real-office", "test")
    assert set(data["labels"].tolist()) == {0, 1}
    logits = group.outputs(base, "real-office", data["inputs"])
    assert logits.shape == (8, 2)
    predicted = group.predict(base, "real-office", data["inputs"])
    assert predicted == logits.argmax(1).tolist()
    right = clip_recipes.Part(
        images=data["inputs"][:2],
        labels=torch.tensor([3, 1]),
        canonical=torch.tensor([0, 1, 2, 1]),
    )
    model = _Fixed(torch.tensor([[0.0, 9.0, 0.0, 1.0], [0.0, 1.0, 0.0, 9.0]]))
    assert clip_recipes.accuracy(model, torch.eye(4), right, lambda x: x) == 1.0


class _Fixed:
    def __init__(self, rows):
        self.rows = rows

    def encode_image(self, images):
        return self.rows


def test_prompts_can_have_spaces(cache, mini, regime):
    raw = make_track(cache, mini, regime)._data
    spaces = make_track(cache, mini, regime, names="spaces")._data
    same = (
        raw.head("real-office", "group") == spaces.head("real-office", "group")
    ).all(1)
    assert same.tolist() == [False, True]  # alarm_clock, nail


def test_models_of_other_prompts_and_seeds_lie_apart(cache, mini, regime, root):
    places = {
        make_track(cache, mini, regime, seed, names=names).place(root, "clipart-tool")
        for seed in (0, 1)
        for names in ("raw", "spaces")
    }
    assert len(places) == 4
    assert all(root / "mtk" in place.parents for place in places)


def test_base_ability_has_a_head_of_its_own(track, root):
    sizes = [
        len(track.data(CIFAR, s)["labels"]) for s in ("train", "validation", "test")
    ]
    assert sizes == [2, 4, 14]
    data = track.data(CIFAR, "test")
    base = clip.load(root / clip_data.FOLDER)
    assert track.outputs(base, CIFAR, data["inputs"]).shape == (14, 2)
    assert set(track.predict(base, CIFAR, data["inputs"])) <= {0, 1}


def test_logits_are_differentiable_in_the_vision_tower(track, root):
    base = clip.load(root / clip_data.FOLDER).requires_grad_(True)
    inputs = track.data("real-tool", "validation")["inputs"]
    track.outputs(base, "real-tool", inputs).sum().backward()
    touched = {n for n, p in base.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in base.named_parameters() if n.startswith("visual.")}


def test_an_expert_learns_its_cell_in_the_vision_tower_only(track, root, quiet, regime):
    track._given = replace(regime, steps=30, every=10)
    track.make(root, "clipart-tool", quiet)
    folder = track.place(root, "clipart-tool")
    base, expert = clip.load(root / clip_data.FOLDER), clip.load(folder)
    changed = {
        n
        for n, t in expert.state_dict().items()
        if not torch.equal(t, base.state_dict()[n])
    }
    assert changed
    assert all(n.startswith("visual.") for n in changed)
    facts = json.loads((folder / "manifest.json").read_text())["mtk"]
    scores = [score for _, score in facts["history"]]
    assert max(scores) > scores[0]
    assert facts["regime"]["seed"] == 42
    assert not training_state(folder).exists()
    # open_clip reads it as it stands.
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs.encode_image(images), expert.encode_image(images))


def test_a_killed_expert_goes_on(cache, mini, regime, root, quiet, monkeypatch):
    whole = make_track(cache, mini, regime)
    whole.make(root, "clipart-tool", quiet)
    folder = whole.place(root, "clipart-tool")
    wanted = (folder / "open_clip_model.safetensors").read_bytes()
    shutil.rmtree(folder)

    def kill(message, fraction=None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole.make(root, "clipart-tool", kill)
    (part,) = (p for p in whole.parts(root) if p["name"] == "clipart-tool")
    assert not part["there"]
    assert part["ready"]
    assert part["note"] == "begun, 2 of at most 6 steps"
    steps = []
    true = training.items

    def counted(count, step, regime):
        steps.append(step)
        return true(count, step, regime)

    monkeypatch.setattr(training, "items", counted)
    whole.make(root, "clipart-tool", quiet)
    assert steps[0] == 2
    assert (folder / "open_clip_model.safetensors").read_bytes() == wanted
    assert states(whole.parts(root))["clipart-tool"]


def test_multitask_is_trained_on_all_cells_under_the_joint_head(
    track, root, quiet, monkeypatch
):
    seen = {}
    true = clip_recipes.train

    def spy(model, head, **more):
        seen.update(more, rows=len(head))
        return true(model, head, **more)

    monkeypatch.setattr(clip_recipes, "train", spy)
    track.make(root, "multitask", quiet)
    assert seen["rows"] == 4
    assert [sorted(set(part.labels.tolist())) for part in seen["train"]] == [
        [0, 1],
        [1, 2],
    ]
    assert states(track.parts(root))["multitask"]


def test_parts_say_what_is_missing_and_what_to_do(tmp_path, cache, mini, regime):
    track = make_track(cache, mini, regime)
    empty = tmp_path / "empty"
    empty.mkdir()
    parts = track.parts(empty)
    assert [p["name"] for p in parts] == [
        *("weights", "lists", "images/clipart", "images/real"),
        *(f"ability/{CIFAR}", "clipart-tool", "real-office", "multitask"),
    ]
    assert not any(p["there"] or p["ready"] for p in parts)
    assert all(p["todo"] for p in parts)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(track, root, quiet, device):
    with pytest.raises(UsageError, match="no device"):
        track.make(root, "clipart-tool", quiet, device=device)
    assert not track.place(root, "clipart-tool").exists()


def test_a_folder_that_was_changed_is_not_taken_and_not_replaced(track, root, quiet):
    track.make(root, "clipart-tool", quiet)
    weights = track.place(root, "clipart-tool") / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not states(track.parts(root))["clipart-tool"]
    with pytest.raises(UsageError, match="Remove it"):
        track.make(root, "clipart-tool", quiet)


def test_what_killed_runs_left_is_named_and_not_taken(track, root, quiet):
    folder = track.place(root, "clipart-tool")
    half = folder.with_name("clipart-tool.partial-0123abcd")
    half.mkdir(parents=True)
    (half / "open_clip_model.safetensors").touch()
    state = folder.with_name(".clipart-tool.training.safetensors.x1.partial")
    state.touch()
    (part,) = (p for p in track.parts(root) if p["name"] == "clipart-tool")
    assert (
        part["note"]
        == f"not made; {half.name} was left half written and may be removed"
    )
    track.make(root, "clipart-tool", quiet)
    assert states(track.parts(root))["clipart-tool"]
    assert half.exists()
    assert state.exists()


def test_one_missing_image_is_named_and_stops_its_own_cell_only(track, root):
    gone = next((root / "real" / "nail").iterdir())
    gone.unlink()
    parts = {p["name"]: p for p in track.parts(root)}
    assert gone.name in parts["images/real"]["note"]
    assert not parts["images/real"]["there"]
    assert parts["clipart-tool"]["ready"]
    assert not parts["real-office"]["ready"]
    assert not parts["multitask"]["ready"]
    with pytest.raises(UsageError, match="images/real"):
        track.make(root, "real-office", lambda *_: None)


def test_lists_of_another_length_than_the_official_are_not_taken(root):
    parts = {p["name"]: p for p in track_module.DomainNetClip(
        cache=root, seed=0, options={}
    ).parts(root)}  # fmt: skip
    assert "30 lines, not 33,525" in parts["lists"]["note"]
    assert not parts["lists"]["there"]
    assert "unchecked without the lists" in parts["images/real"]["note"]


def test_lists_and_grid_must_speak_of_the_same_classes(cache, mini, regime, root):
    other = replace(mini, groups={**mini.groups, "tool": ("hammer", "anvil", "axe")})
    (part,) = (
        p for p in make_track(cache, other, regime).parts(root) if p["name"] == "lists"
    )
    assert not part["there"]
    assert part["note"] == "the class 'anvil' is in no list (nor 1 others)"
    with pytest.raises(UsageError, match="parts are missing: lists"):
        make_track(cache, other, regime).make(root, "clipart-tool", lambda *_: None)
    other = replace(mini, groups={**mini.groups, "office": ("nail",)})
    notes = {p["name"]: p["note"] for p in make_track(cache, other, regime).parts(root)}
    assert notes["lists"] == "the class 'alarm_clock' is in no group"
    notes = {p["name"]: p["note"] for p in make_track(cache, mini, regime).parts(root)}
    assert notes["lists"] == "84 images are listed, of 3 classes"


def test_experts_are_imported_whole_or_not_at_all(track, root, tmp_path, quiet):
    from safetensors.torch import save_file

    base = SafetensorsCheckpoint(
        [root / clip_data.FOLDER / "open_clip_model.safetensors"], "base"
    )
    visual = {n: base.read(n) + 1 for n in base.names() if n.startswith("visual.")}
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file(visual, good)
    track.adopt(root, "real-office", good)
    folder = track.place(root, "real-office")
    taken = SafetensorsCheckpoint([folder / "open_clip_model.safetensors"], "taken")
    assert taken.names() == base.names()
    assert torch.equal(taken.read("visual.proj"), base.read("visual.proj") + 1)
    assert torch.equal(taken.read("text_projection"), base.read("text_projection"))
    for change, message in (
        ({"visual.proj": None}, "lacks 'visual.proj'"),
        ({"visual.extra": torch.ones(1)}, "has an extra 'visual.extra'"),
        ({"visual.proj": torch.ones(2, 2)}, "has another 'visual.proj'"),
    ):
        changed = {n: t for n, t in (visual | change).items() if t is not None}
        save_file(changed, bad)
        with pytest.raises(CheckpointError, match=message):
            track.adopt(root, "clipart-tool", bad)
    assert not track.place(root, "clipart-tool").exists()


def test_configurations_that_name_other_models_are_refused(root):
    file = root / clip_data.FOLDER / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "someone/model"
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="names another model"):
        clip.load(root / clip_data.FOLDER)


def test_without_root_or_models_the_track_says_what_to_do(tmp_path, track, root, quiet):
    nowhere = track_module.DomainNetClip(cache=tmp_path, seed=0, options={})
    assert "--root DIR" in nowhere.missing()[0]
    with pytest.raises(
        UsageError, match="mtk tracks prepare domainnet-clip --root DIR"
    ):
        nowhere.prepare(quiet)
    with pytest.raises(UsageError, match="3 parts are missing: clipart-tool"):
        track.prepare(quiet)
    assert len(track.missing()) == 2
    with pytest.raises(UsageError, match="head_scope=all"):
        track_module.DomainNetClip(
            cache=tmp_path, seed=0, options={"head_scope": "all"}
        )
