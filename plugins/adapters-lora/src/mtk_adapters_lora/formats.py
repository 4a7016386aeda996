"""Opening the three formats of LoRA files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError, first_line
from mtk.model_folders.reading import check_inside, read_object
from mtk_adapters_lora.adapter import LoraAdapter, LoraModule
from mtk_adapters_lora.config import (
    MAX_CONFIG_BYTES,
    Scaling,
    check_config,
    read_config,
)
from mtk_adapters_lora.keys import KOHYA, MARKS, sort_keys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DIFFUSERS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
PREFIX = "base_model.model."
_MAX_HEADER = 100_000_000


def looks_like_lora(path: Path) -> bool:
    """Whether ``path`` is an adapter, by file names and the header's tensor names."""
    if path.is_dir():
        return (path / CONFIG).is_file() or (path / DIFFUSERS).is_file()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    return any(MARKS.search(name) for name in _header_names(path))


def _header_names(file: Path) -> list[str]:
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            table = json.loads(handle.read(size)) if size <= _MAX_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return []
    return list(table) if isinstance(table, dict) else []


def _absent(path: Path, name: str) -> str:
    """What to say of a folder without the file that would hold an adapter."""
    if any(path.glob("adapter_model*.bin")):
        return f"{path}: no {name} in it\nPickle files are not read; save it as safetensors"
    if (path / CONFIG).is_file() or not path.is_dir():
        return f"{path}: no {name} there"
    if (path / "config.json").is_file():
        return f"{path} is a whole model, no LoRA adapter; mtk extract-lora makes one of it"
    return f"{path} is no LoRA adapter: no {CONFIG} and no {DIFFUSERS} in it"


def load_adapter(path: Path) -> LoraAdapter:
    """Read names, shapes and configuration of an adapter; refuse what is not exact."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        is_peft = (path / CONFIG).is_file()
        file = path / (WEIGHTS if is_peft else DIFFUSERS)
    else:
        is_peft, file = path.name == WEIGHTS and (folder / CONFIG).is_file(), path
    if not file.is_file():
        raise CheckpointError(_absent(path, file.name))
    if path.is_dir():
        check_inside(folder, file)
    source = SafetensorsCheckpoint([file], str(path))
    modules, rest = sort_keys(source.names(), str(path))
    if not modules:
        raise CheckpointError(f"{path}: no LoRA factors in it")
    if is_peft:
        return _peft(path, file, source, read_config(folder / CONFIG))
    if rest:
        raise CheckpointError(
            f"{path}: {rest[0]!r} is no part of a LoRA update, so it cannot be placed"
        )
    if any(key.startswith(PREFIX) for key in source.names()):
        raise CheckpointError(
            f"{path}: a PEFT adapter without its {CONFIG}, which holds its scale\n"
            f"Put that file beside it, and call it {WEIGHTS}"
        )
    return _single_file(path, file, source, modules)


def _peft(
    path: Path, file: Path, source: SafetensorsCheckpoint, config: dict[str, Any]
) -> LoraAdapter:
    label = str(path)
    modules, rest = sort_keys(source.names(), label)
    scaling = Scaling(config, str(path.parent if path.is_file() else path))
    built = {}
    for raw in sorted(modules):
        name = _plain(raw)
        rank = scaling.rank(name)
        module = _module(source, label, name, modules[raw], scaling.scale(name))
        if module.rank != rank:
            raise CheckpointError(
                f"{label}: {module.a!r} has rank {module.rank}, the configuration says {rank}"
            )
        built[name] = module
    _check_dora(built, label, bool(config.get("use_dora")))
    return LoraAdapter(
        label=label,
        path=file,
        format="peft",
        source=source,
        modules=built,
        whole=_whole(source, label, rest),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        config=config,
    )


def _whole(
    source: SafetensorsCheckpoint, label: str, keys: list[str]
) -> dict[str, str]:
    """Parameter of the base -> key of the tensor that replaces it.

    With ``bias="all"``, peft writes the biases of ``modules_to_save`` under three names:
    the module's own, that of the trained copy, and that of the original beneath it.
    """
    whole: dict[str, str] = {}
    for key in keys:
        name = _plain(key)
        if ".original_module." in name:
            continue
        name = name.replace(".modules_to_save.", ".")
        twin = whole.setdefault(name, key)
        if twin != key and not source.read(key).equal(source.read(twin)):
            raise CheckpointError(
                f"{label}: {key!r} and {twin!r} differ, and both replace {name!r}"
            )
    return whole


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def _single_file(
    path: Path,
    file: Path,
    source: SafetensorsCheckpoint,
    modules: Mapping[str, dict[str, str]],
) -> LoraAdapter:
    label, configs = str(path), _metadata(file)
    scalings = {
        part: Scaling(config, f"{label}, {METADATA}")
        for part, config in configs.items()
    }
    built = {}
    for name in sorted(modules):
        parts = modules[name]
        component = name.partition(".")[0]
        component = component if component in scalings else ""
        inner = name.removeprefix(f"{component}.") if component else name
        module = _module(source, label, name, parts, 1.0)
        if component in scalings and "alpha" in parts:
            raise CheckpointError(
                f"{label}: {parts['alpha']!r} and the metadata both give a scale"
            )
        scale = 1.0
        if component in scalings:
            scale = scalings[component].scale(inner)
            if scalings[component].rank(inner) != module.rank:
                raise CheckpointError(
                    f"{label}: {module.a!r} has rank {module.rank}, the metadata say "
                    f"{scalings[component].rank(inner)}"
                )
        elif scalings:
            raise CheckpointError(
                f"{label}: the metadata give no scale for {name!r}, only for "
                f"{', '.join(sorted(scalings))}"
            )
        elif "alpha" in parts:
            scale = _alpha(source, label, parts["alpha"]) / module.rank
        built[name] = _module(source, label, name, parts, scale)
    _check_dora(built, label, None)
    kohya = all(KOHYA.match(name) and "." not in name for name in built)
    return LoraAdapter(
        label=label,
        path=file,
        format="kohya" if kohya else "diffusers",
        source=source,
        modules=built,
        config=configs,
    )


def _metadata(file: Path) -> dict[str, dict[str, Any]]:
    """Component -> configuration, from the header of a diffusers file."""
    try:
        with safe_open(file, framework="pt") as handle:
            text = (handle.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: {first_line(error)}") from error
    if text is None:
        return {}
    owner = f"{file}, {METADATA}"
    flat = read_object(text.encode(), owner=owner, most=MAX_CONFIG_BYTES, unique=True)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, dot, name = key.rpartition(".")
        configs.setdefault(component if dot else "", {})[name] = value
    for config in configs.values():
        check_config(config, owner)
        if "r" not in config or "lora_alpha" not in config:
            raise CheckpointError(f"{owner}: r or lora_alpha is missing")
    return configs


def _alpha(source: SafetensorsCheckpoint, label: str, key: str) -> float:
    if source.info(key).shape not in ((), (1,)):
        raise CheckpointError(f"{label}: {key!r} is not a single number")
    value = float(source.read(key).double().reshape(()))
    if not value or value - value != 0:
        raise CheckpointError(f"{label}: {key!r} is {value}, which is no scale")
    return value


def _module(
    source: SafetensorsCheckpoint,
    label: str,
    name: str,
    parts: Mapping[str, str],
    scale: float,
) -> LoraModule:
    embedding = "embedding_a" in parts or "embedding_b" in parts
    keys = ("embedding_a", "embedding_b") if embedding else ("a", "b")
    if any(key not in parts for key in keys) or (embedding and {"a", "b"} & set(parts)):
        have = ", ".join(repr(key) for key in parts.values())
        raise CheckpointError(
            f"{label}: {name!r} has only {have}; an update needs both A and B"
        )
    a, b = (parts[key] for key in keys)
    info_a, info_b = source.info(a), source.info(b)
    for info in (info_a, info_b):
        if not info.dtype.startswith(("float", "bfloat")) or 0 in info.shape:
            raise CheckpointError(
                f"{label}: {info.name!r} is {info.shape} of {info.dtype}; factors are "
                "floating point and have a rank of at least 1"
            )
    dims, ones = len(info_a.shape), (1,) * (len(info_a.shape) - 2)
    fits = (
        dims in ((2,) if embedding else (2, 3, 4, 5))
        and len(info_b.shape) == dims
        and info_b.shape[2:] == ones
        and info_a.shape[0] == info_b.shape[1]
    )
    if not fits:
        raise CheckpointError(
            f"{label}: {name!r} has A {info_a.shape} and B {info_b.shape}, which do not "
            "multiply"
        )
    d_in = 1
    for size in info_a.shape[1:]:
        d_in *= size
    return LoraModule(
        name=name,
        a=a,
        b=b,
        scale=scale,
        rank=info_a.shape[0],
        d_in=d_in,
        d_out=info_b.shape[0],
        kind="embedding" if embedding else "conv" if dims > 2 else "linear",
        kernel=info_a.shape[2:],
        bias=parts.get("bias"),
        magnitude=parts.get("magnitude"),
    )


def _check_dora(
    modules: Mapping[str, LoraModule], label: str, declared: bool | None
) -> None:
    """DoRA in all modules or in none, as declared, and in linear layers only."""
    with_it = [m for m in modules.values() if m.magnitude]
    wanted = bool(with_it) if declared is None else declared
    odd = next((m for m in modules.values() if bool(m.magnitude) != wanted), None)
    if odd is not None:
        has = "has" if odd.magnitude else "lacks"
        raise CheckpointError(
            f"{label}: {odd.name!r} {has} DoRA magnitudes, against the configuration or "
            "the other modules"
        )
    other = next((m for m in with_it if m.kind != "linear"), None)
    if other is not None:
        raise CheckpointError(
            f"{label}: {other.name!r}: DoRA is folded into linear layers only\n"
            "Merge that adapter into its base with peft, and give the merged model"
        )
