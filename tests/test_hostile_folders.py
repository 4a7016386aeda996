"""Model folders from strangers: bounded, nothing runs, nothing from outside is carried over.

Every case is a real command line in a fork of one warm process (``safety_child.py``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

_spec = importlib.util.spec_from_file_location(
    "safety_child", Path(__file__).with_name("safety_child.py")
)
safety_child = importlib.util.module_from_spec(_spec)
sys.modules["safety_child"] = safety_child
_spec.loader.exec_module(safety_child)

SECRET = "what stands outside of the model's folder"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": []}
}
TEMPLATE = "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}"


@pytest.fixture(scope="module")
def child():
    process = safety_child.Child()
    yield process
    process.close()


def write_model(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (4, 3),
        "model.layers.0.mlp.up_proj.weight": (5, 3),
    }
    tensors = {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """``good`` and ``bad``, which a test makes bad, and a file outside of both."""
    write_model(tmp_path / "good", 0)
    write_model(tmp_path / "bad", 1)
    (tmp_path / "outside").write_text(json.dumps({"secret": SECRET}))
    return tmp_path


def merge(child, place: Path, *more: object):
    """Merge with the bad model as the donor of config and tokenizer."""
    before = {p: p.lstat().st_mtime_ns for p in place.rglob("*") if not p.is_symlink()}
    outcome = child.mtk(
        "merge", "-m", "average", "--expert", "bad", "--expert", "good", "-o", "out", *more,
        cwd=place,
    )  # fmt: skip
    after = {p: p.lstat().st_mtime_ns for p in before}
    assert before == after
    return outcome


def written(place: Path) -> dict[str, bytes]:
    out = place / "out"
    for path in out.rglob("*"):
        assert not path.is_symlink()
        assert path.resolve().is_relative_to(out.resolve())
    files = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
    assert not any(SECRET.encode() in content for content in files.values())
    assert not any(name.endswith((".py", ".so", ".bin", ".pkl")) for name in files)
    return files


def nothing(place: Path) -> None:
    assert {p.name for p in place.iterdir()} <= {
        "good",
        "bad",
        "outside",
        "x",
        "real",
        "hub",
        "evil",
    }


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


DEEP = {
    "lists": "[" * 200_000,
    "closed lists": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "in an object": '{"model": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "not json": "{",
    "not text": "\udcff\udcfe",
    "a long number": '{"vocab_size": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("what", DEEP)
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "manifest.json", "model.safetensors.index.json"],
)
def test_damaged_json(child, place: Path, name: str, what: str) -> None:
    (place / "bad" / name).write_bytes(DEEP[what].encode("utf-8", "surrogateescape"))
    if "index" in name:
        (place / "bad" / "model.safetensors").rename(place / "bad" / "part.safetensors")
    outcome = merge(child, place)
    if outcome.code == 0:  # what is carried over unread is carried over as it is
        assert written(place)[name] == (place / "bad" / name).read_bytes()
    else:
        assert "bad" in outcome.refused()
        nothing(place)
    seen = child.mtk("inspect", "bad", cwd=place)
    assert seen.code in (0, 2), seen
    assert len(seen.stderr.splitlines()) <= 3


@pytest.mark.parametrize("value", [[], "text", 3, None, True, [["a"]]])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "manifest.json",
        "model_index.json",
        "modules.json",
        "generation_config.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "adapter_config.json",
        "open_clip_config.json",
    ],
)
def test_json_of_another_kind(child, place: Path, name: str, value: object) -> None:
    (place / "bad" / name).write_text(json.dumps(value))
    outcome = merge(child, place, "--dtype", "float16")
    if outcome.code:
        outcome.refused()
        nothing(place)
    else:
        written(place)


def values(value: object):
    """A config with every value at the top replaced by one of another kind."""
    for key in value:
        for other in (None, [], {}, "text", -1, 1.5, True, [[]], {"a": {}}):
            yield {**value, key: other}


def test_configs_with_values_of_another_kind(child, place: Path) -> None:
    outcomes = []
    for number, config in enumerate(
        values({**CONFIG, "tie_word_embeddings": True, "text_config": {}})
    ):
        (place / "bad" / "config.json").write_text(json.dumps(config))
        outcome = merge(child, place, "--dry-run")
        assert outcome.code == 0 or outcome.refused(), (number, config)
        outcomes.append(outcome.code)
    assert 0 in outcomes


def test_tokenizers_with_values_of_another_kind(child, place: Path) -> None:
    tokens = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "a"}],
        **TOKENIZER,
    }
    made = list(values(tokens))
    made += [
        {**tokens, "model": model}
        for model in values({**TOKENIZER["model"], "type": "Unigram"})
    ]
    made += [
        {**tokens, "added_tokens": [token]}
        for token in values({"id": 4, "content": "e"})
    ]
    for tokenizer in made:
        (place / "bad" / "tokenizer.json").write_text(json.dumps(tokenizer))
        for more in ((), ("--tokenizer", "union")):
            outcome = merge(child, place, "--dry-run", *more)
            assert outcome.code == 0 or outcome.refused(), tokenizer


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "vocab.txt",
        "chat_template.jinja",
        "LICENSE",
    ],
)
def test_companions_of_gigabytes(child, place: Path, name: str) -> None:
    sparse(place / "bad" / name, 3 << 30)
    assert name in merge(child, place).refused()
    nothing(place)


def test_a_manifest_of_gigabytes(child, place: Path) -> None:
    sparse(place / "bad" / "manifest.json", 3 << 30)
    assert "manifest.json" in merge(child, place).refused()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "manifest.json",
        "LICENSE",
        "model.safetensors",
        "extra.safetensors",
        "chat_template.jinja",
        "model_index.json",
        "modules.json",
        "adapter_config.json",
    ],
)
def test_pipes_are_not_waited_for(child, place: Path, name: str) -> None:
    (place / "bad" / name).unlink(missing_ok=True)
    os.mkfifo(place / "bad" / name)
    outcome = merge(child, place)
    if outcome.code:
        outcome.refused()
        nothing(place)
    elif name != "manifest.json":
        assert name not in written(place)
    assert child.mtk("inspect", "bad", cwd=place).code in (0, 2)


OUTSIDE = (
    "../outside",
    "{place}/outside",
    "../x/outside",
    "/etc/passwd",
    "loop",
    "gone",
    "sub",
)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "LICENSE",
        "chat_template.jinja",
        "tokenizer_config.json",
        "generation_config.json",
    ],
)
@pytest.mark.parametrize("target", OUTSIDE)
def test_links_out_of_the_folder_are_not_carried_over(
    child, place: Path, name: str, target: str
) -> None:
    (place / "x").symlink_to(place)
    (place / "bad" / "loop").symlink_to("loop")
    (place / "bad" / "sub").mkdir()
    file = place / "bad" / name
    file.unlink(missing_ok=True)
    file.symlink_to(target.format(place=place))
    outcome = merge(child, place)
    if outcome.code:
        outcome.refused()
        nothing(place)
    else:
        assert name not in written(place)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00001-of-00001.safetensors"]
)
def test_weights_that_are_links_out_of_the_folder(
    child, place: Path, name: str
) -> None:
    (place / "bad" / "model.safetensors").rename(place / "evil")
    (place / "bad" / name).symlink_to("../evil")
    assert "outside" in merge(child, place).refused()


def test_a_linked_folder_of_templates(child, place: Path) -> None:
    (place / "x").mkdir()
    (place / "x" / "a.jinja").write_text(SECRET)
    (place / "bad" / "additional_chat_templates").symlink_to("../x")
    assert merge(child, place).code == 0
    written(place)


def test_the_cache_of_the_hub_works(child, place: Path) -> None:
    blobs = place / "hub" / "models--a--b" / "blobs"
    snapshot = place / "hub" / "models--a--b" / "snapshots" / "0123"
    write_model(snapshot, 3)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = blobs / f"{number:040x}"
        file.rename(blob)
        file.symlink_to(f"../../blobs/{blob.name}")
    outcome = child.mtk(
        "merge",
        "-m",
        "average",
        "--expert",
        snapshot,
        "--expert",
        "good",
        "-o",
        "out",
        cwd=place,
    )
    assert outcome.code == 0, outcome
    files = written(place)
    assert json.loads(files["config.json"]) == CONFIG
    assert json.loads(files["tokenizer.json"]) == TOKENIZER


def test_code_is_neither_run_nor_carried(child, place: Path) -> None:
    canary = place / "bad" / "canary"
    code = f"open({str(canary)!r}, 'w')"
    config = {
        **CONFIG,
        "auto_map": {"AutoModelForCausalLM": "evil--modeling.Evil"},
        "text_config": {"auto_map": {"AutoConfig": "x.Y"}},
        "_attn_implementation": "evil/kernels",
    }
    (place / "bad" / "config.json").write_text(json.dumps(config))
    (place / "bad" / "tokenizer_config.json").write_text(
        json.dumps(
            {"auto_map": {"AutoTokenizer": ["x.Y", None]}, "tokenizer_class": "X"}
        )
    )
    for name in (
        "modeling.py",
        "__init__.py",
        "setup.py",
        "conftest.py",
        "mtk.py",
        "sitecustomize.py",
        "x.so",
        "config.json.py",
    ):
        (place / "bad" / name).write_text(code)
    outcome = merge(child, place)
    assert outcome.code == 0, outcome
    assert "code of a checkpoint is never carried" in outcome.stderr
    files = written(place)
    for name in ("config.json", "tokenizer_config.json"):
        assert b"auto_map" not in files[name]
        assert b"evil" not in files[name]
    card = files["README.md"].decode()
    assert "code" in card
    child.mtk("inspect", "bad", "--against", "good", cwd=place)
    child.mtk(
        "merge",
        "-m",
        "average",
        "--expert",
        "../bad",
        "--expert",
        "../good",
        "-o",
        "../o2",
        cwd=place / "bad",
    )
    assert not canary.exists()


def test_chat_templates_are_carried_unread(child, place: Path) -> None:
    (place / "bad" / "chat_template.jinja").write_text(TEMPLATE)
    config = {"chat_template": TEMPLATE, "bos_token": "a"}
    (place / "bad" / "tokenizer_config.json").write_text(json.dumps(config))
    (place / "bad" / "additional_chat_templates").mkdir()
    (place / "bad" / "additional_chat_templates" / "tools.jinja").write_text(TEMPLATE)
    assert merge(child, place).code == 0
    files = written(place)
    assert files["chat_template.jinja"].decode() == TEMPLATE
    assert json.loads(files["tokenizer_config.json"]) == config
    assert files["additional_chat_templates/tools.jinja"].decode() == TEMPLATE


@pytest.mark.parametrize(
    "name",
    [
        "../good",
        "{place}/good",
        "..",
        ".",
        "a/../../good",
        "good\0",
        "linked",
        "unet/../../good",
        "",
    ],
)
def test_a_pipeline_that_names_folders_outside(child, place: Path, name: str) -> None:
    (place / "bad" / "model.safetensors").unlink()
    (place / "bad" / "linked").symlink_to("../good")
    name = name.format(place=place)
    table = {"_class_name": "X", name: ["diffusers", "UNet2DConditionModel"]}
    (place / "bad" / "model_index.json").write_text(json.dumps(table))
    assert "bad" in merge(child, place).refused()
    (place / "bad" / "model_index.json").unlink()
    (place / "bad" / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": name, "type": "x"}])
    )
    assert "bad" in merge(child, place).refused()
    nothing(place)


@pytest.mark.parametrize(
    "file",
    [
        "../good/model.safetensors",
        "{place}/good/model.safetensors",
        "sub/../../good/model.safetensors",
        "linked.safetensors",
        "",
        ".",
        "..",
        3,
        None,
        ["a"],
        {"a": 1},
    ],
)
def test_an_index_that_names_files_outside(child, place: Path, file: object) -> None:
    (place / "bad" / "model.safetensors").unlink()
    (place / "bad" / "linked.safetensors").symlink_to("../good/model.safetensors")
    file = file.format(place=place) if isinstance(file, str) else file
    names = load_file(place / "good" / "model.safetensors")
    table = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (place / "bad" / "model.safetensors.index.json").write_text(json.dumps(table))
    assert "bad" in merge(child, place).refused()
    nothing(place)


@pytest.mark.parametrize(
    "base", ["evil/repository", "https://example.com/x", "../good", "/etc", "", None, 3]
)
def test_an_adapter_does_not_choose_its_base(child, place: Path, base: object) -> None:
    adapter = place / "bad"
    (adapter / "model.safetensors").unlink()
    factors = {"lora_A.weight": torch.ones(1, 3), "lora_B.weight": torch.ones(5, 1)}
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    save_file(
        {f"{stem}.{n}": t for n, t in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["up_proj"],
        "base_model_name_or_path": base,
        "auto_mapping": {"parent_library": "evil"},
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    command = (
        "merge",
        "-m",
        "average",
        "--expert",
        "bad",
        "--expert",
        "bad",
        "-o",
        "out",
    )
    assert "--base" in child.mtk(*command, cwd=place).refused()
    outcome = child.mtk(*command, "--base", "good", cwd=place)
    assert outcome.code == 0, outcome
    before = load_file(place / "good" / "model.safetensors")
    after = load_file(place / "out" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(after[name], before[name] + 1)


def test_names_of_tensors_cannot_write_on_the_terminal(child, place: Path) -> None:
    name = "a\n\n\n\n\x1b[2J\x1b]0;evil\x07b"
    save_file({name: torch.ones(2)}, place / "bad" / "model.safetensors")
    for command in (
        ("merge", "-m", "average", "--expert", "bad", "--expert", "good", "-o", "out"),
        ("inspect", "bad", "--against", "good"),
    ):
        assert "\x1b" not in child.mtk(*command, cwd=place).refused()
    save_file({name: torch.zeros(2, 2)}, place / "bad" / "model.safetensors")
    seen = child.mtk("inspect", "bad", cwd=place)
    assert "\x1b" not in seen.stdout + seen.stderr
    assert seen.code == 0


def test_a_pickle_is_opened_only_on_request(child, place: Path) -> None:
    canary = place / "bad" / "canary"
    tensors = {
        name: tensor.clone()  # the file is written over below
        for name, tensor in load_file(place / "bad" / "model.safetensors").items()
    }
    torch.save(tensors, place / "good.pt")
    refused = child.mtk(
        "merge",
        "-m",
        "average",
        "--expert",
        "good.pt",
        "--expert",
        "good",
        "-o",
        "out",
        cwd=place,
    ).refused()
    assert "--allow-pickle" in refused
    allowed = (
        "merge",
        "--allow-pickle",
        "-m",
        "average",
        "--expert",
        "good",
        "--expert",
    )
    done = child.mtk(*allowed, "good.pt", "-o", "out", cwd=place)
    assert done.code == 0, done
    other = load_file(place / "good" / "model.safetensors")
    for name, tensor in load_file(place / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, (tensors[name] + other[name]) / 2)

    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(canary)!r}, 'w')",))

    torch.save(tensors | {"x": Payload()}, place / "evil.pt")
    torch.save(tensors | {"x": Payload()}, place / "bad" / "model.safetensors")
    torch.save(
        {n: t[:1, :1].expand(10**5, 10**5) for n, t in tensors.items()},
        place / "view.pt",
    )
    with zipfile.ZipFile(place / "zip.bin", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("m/data.pkl", b"\0" * (1 << 26))
    for name in ("evil.pt", "bad", "view.pt", "zip.bin"):
        assert name in child.mtk(*allowed, name, "-o", "o2", cwd=place).refused()
        child.mtk("inspect", name, cwd=place).refused()
    assert not canary.exists()
    assert not (place / "o2").exists()
