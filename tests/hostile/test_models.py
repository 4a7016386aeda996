"""Models from strangers: nothing in them runs, redirects, repeats a lie or hides a NaN.

Every case is a real command line in a fork of one warm process (``safety_child.py``).
"""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from safety_models import CONFIG, merge, nothing, written

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}"


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
    command = ("merge", "-m", "average", "-o", "out", "--expert", "bad", "--expert")
    assert "--base" in child.mtk(*command, "good", cwd=place).refused()
    outcome = child.mtk(*command, "bad", "--base", "good", cwd=place)
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

    assert "--allow-pickle" in child.mtk("inspect", "good.pt", cwd=place).refused()
    assert child.mtk("inspect", "good.pt", "--allow-pickle", cwd=place).code == 0

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
        for more in ((), ("--allow-pickle",)):
            child.mtk("inspect", name, *more, cwd=place).refused()
    assert not canary.exists()
    assert not (place / "o2").exists()


def test_a_number_that_is_none_in_an_expert_of_weight_zero(child, place: Path) -> None:
    tensors = {
        n: t.clone() for n, t in load_file(place / "bad" / "model.safetensors").items()
    }
    name = "model.layers.0.mlp.up_proj.weight"
    for number in (float("nan"), float("inf"), -float("inf")):
        tensors[name][1, 2] = number
        save_file(tensors, place / "bad" / "model.safetensors")
        for method in ("linear", "task_arithmetic", "ties"):
            outcome = child.mtk(
                "merge", "-m", method, "--base", "good", "--expert", "bad", "--expert", "good",
                "-p", "weights=[0,1]", "-o", "out", cwd=place,
            )  # fmt: skip
            assert name in outcome.refused()
        nothing(place)


def test_numbers_too_large_for_the_dtype_of_the_result(child, place: Path) -> None:
    tensors = {
        n: t.clone() for n, t in load_file(place / "bad" / "model.safetensors").items()
    }
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][1, 2] = 1e30
    save_file(tensors, place / "bad" / "model.safetensors")
    outcome = merge(child, place, "--dtype", "float16")
    assert outcome.code in (1, 2), outcome
    assert name in outcome.stderr
    assert len(outcome.stderr.splitlines()) <= 3
    nothing(place)
    assert merge(child, place, "--dtype", "bfloat16").code == 0


def test_an_adapter_of_rank_zero(child, place: Path) -> None:
    adapter = place / "bad"
    (adapter / "model.safetensors").unlink()
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {"lora_A.weight": torch.ones(0, 3), "lora_B.weight": torch.ones(5, 0)}
    save_file(
        {f"{stem}.{n}": t for n, t in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    for rank in (0, 1, -1, 1 << 60):
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 1,
            "target_modules": ["up_proj"],
        }
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        assert "bad" in merge(child, place, "--base", "good").refused()
        nothing(place)
