"""From an adapter's module names to the names of its base."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError
from mtk_adapters_lora.keys import KOHYA

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from mtk.adapters import Checkpoint
    from mtk_adapters_lora.adapter import LoraAdapter

_MOST_STRIPPED = 2


def place(adapter: LoraAdapter, base: Checkpoint) -> dict[str, str]:
    """Module of the adapter -> name of the weight of the base that it changes.

    Names may differ by one prefix, the same for all modules of a component (a file for a
    diffusion pipeline has a component per model). Every module must find its weight.
    """
    stems = {
        name.removesuffix(".weight")
        for name in base.names()
        if name.endswith(".weight")
    }
    placed: dict[str, str] = {}
    for names in _components(adapter):
        if adapter.format == "kohya":
            found = _align_flat(names, stems)
        else:
            found = _align(names, stems, ".", _MOST_STRIPPED)
        if not found:
            odd = next((name for name in names if name not in stems), names[0])
            raise CheckpointError(
                f"{adapter.label}: {odd!r} and its like have no weight in {base.label}\n"
                "Give the base that the adapter was trained on; of a file for several "
                "models, open one part (component=)"
            )
        if len(found) > 1:
            raise CheckpointError(
                f"{adapter.label}: {names[0]!r} fits several weights of {base.label}: "
                f"{', '.join(sorted(repr(option[names[0]]) for option in found)[:3])}"
            )
        placed |= found[0]
    if len(set(placed.values())) != len(placed):
        raise CheckpointError(
            f"{adapter.label}: two modules change the same weight of {base.label}"
        )
    return {name: f"{stem}.weight" for name, stem in placed.items()}


def component_of(name: str, file_format: str) -> str:
    """``unet`` of ``unet.down.0`` in a diffusers file, ``lora_unet`` in a Kohya file."""
    if file_format == "kohya":
        match = KOHYA.match(name)
        return match[0].rstrip("_") if match else ""
    return name.partition(".")[0] if file_format == "diffusers" else ""


def _components(adapter: LoraAdapter) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in adapter.modules:
        groups[component_of(name, adapter.format)].append(name)
    return list(groups.values())


def _align(
    names: Sequence[str], stems: Collection[str], dot: str, most_stripped: int
) -> list[dict[str, str]]:
    """The ways to map all names onto stems by exchanging one prefix; the nearest first."""
    if all(name in stems for name in names):
        return [{name: name for name in names}]
    for strip in range(most_stripped + 1):
        cut = {name: name.split(dot, strip)[-1] for name in names}
        if any(name.count(dot) < strip for name in names):
            break
        probe = max(cut.values(), key=len)
        prefixes = {
            stem.removesuffix(probe)
            for stem in stems
            if stem == probe or stem.endswith(dot + probe)
        }
        found = [
            {name: prefix + short for name, short in cut.items()}
            for prefix in sorted(prefixes)
            if all(prefix + short in stems for short in cut.values())
        ]
        if found:
            return found
    return []


def _align_flat(names: Sequence[str], stems: Iterable[str]) -> list[dict[str, str]]:
    """Kohya writes underscores for dots, so the base's names are flattened to compare."""
    flat: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        flat[stem.replace(".", "_")].append(stem)
    short = {name: KOHYA.sub("", name, count=1) for name in names}
    options = _align(list(short.values()), flat, "_", 0)
    found: list[dict[str, str]] = []
    for option in options:
        choices = {name: flat[option[short[name]]] for name in names}
        widest = max(len(stems_of) for stems_of in choices.values())
        found += [
            {name: stems_of[i % len(stems_of)] for name, stems_of in choices.items()}
            for i in range(widest)
        ]
    return found
