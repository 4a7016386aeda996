"""From an adapter's module names to the names of its base."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError
from mtk_adapters_lora.components import homes, part_of
from mtk_adapters_lora.keys import KOHYA
from mtk_adapters_lora.sgm import sgm_names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mtk.adapters import Checkpoint
    from mtk_adapters_lora.adapter import LoraAdapter

    Option = dict[str, str]

_MOST_STRIPPED = 2
# CLIP's text model had this name before its modules in some releases, and has none now.
_TEXT_MODEL = "text_model_"


def place(adapter: LoraAdapter, base: Checkpoint) -> dict[str, str]:
    """Module of the adapter -> name of the weight of the base that it changes.

    Names may differ by one prefix, the same for all modules of a part (a file for a
    diffusion pipeline has a part per model). Every module must find its weight.
    """
    stems: dict[str, set[str]] = defaultdict(set)
    for name in base.names():
        if name.endswith(".weight"):
            component, slash, inner = name.removesuffix(".weight").rpartition("/")
            stems[component if slash else ""].add(inner)
    parts: dict[str, list[str]] = defaultdict(list)
    for name in adapter.modules:
        parts[part_of(name, adapter.format)].append(name)
    placed: dict[str, str] = {}
    for part, names in parts.items():
        found = _find(adapter, part, names, stems)
        if not found:
            raise _unplaced(adapter, part, names, base, stems)
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


def _unplaced(
    adapter: LoraAdapter,
    part: str,
    names: Sequence[str],
    base: Checkpoint,
    stems: Mapping[str, Collection[str]],
) -> CheckpointError:
    known = set().union(*stems.values()) if stems else set()
    odd = next((name for name in names if name not in known), names[0])
    several = (
        "" not in stems and part and not any(home in stems for home in homes(part))
    )
    if several:
        return CheckpointError(
            f"{adapter.label}: its part {part!r} has no counterpart in {base.label}, "
            f"which has {', '.join(sorted(stems))}\nOpen one part only (component=)"
        )
    return CheckpointError(
        f"{adapter.label}: {odd!r} and its like have no weight in {base.label}\n"
        "Give the base that the adapter was trained on; for a file for several models, "
        "the whole pipeline, or open one part (component=)"
    )


def _find(
    adapter: LoraAdapter,
    part: str,
    names: Sequence[str],
    stems: Mapping[str, Collection[str]],
) -> list[Option]:
    """The ways to place the modules of one part, in any component they may belong to."""
    pipeline = set(stems) != {""}
    wanted = [adapter.component] if adapter.component else homes(part)
    options: list[Option] = []
    for where in sorted(set(stems) & set(wanted) if pipeline and wanted else stems):
        lead = f"{where}/" if where else ""
        cut = f"{part}." if where and adapter.format == "diffusers" else ""
        short = {name: name.removeprefix(cut) for name in names}
        if adapter.format == "kohya":
            found = _align_flat(names, stems[where])
        else:
            found = _align(list(short.values()), stems[where], ".", _MOST_STRIPPED)
            found = [{name: way[short[name]] for name in names} for way in found]
        options += [{name: lead + way[name] for name in names} for way in found]
    return options


def _align(
    names: Sequence[str], stems: Collection[str], dot: str, most_stripped: int
) -> list[Option]:
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


def _align_flat(names: Sequence[str], stems: Collection[str]) -> list[Option]:
    """Kohya writes underscores for dots, so the base's names are flattened to compare."""
    flat: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        flat[stem.replace(".", "_")].append(stem)
    for stem, other in sgm_names(stems).items():
        flat[other.replace(".", "_")].append(stem)
    short = {name: KOHYA.sub("", name, count=1) for name in names}
    options = _align(list(short.values()), flat, "_", 0)
    if not options and all(name.startswith(_TEXT_MODEL) for name in short.values()):
        short = {name: inner.removeprefix(_TEXT_MODEL) for name, inner in short.items()}
        options = _align(list(short.values()), flat, "_", 0)
    found: list[Option] = []
    for option in options:
        choices = {name: flat[option[short[name]]] for name in names}
        widest = max(len(stems_of) for stems_of in choices.values())
        found += [
            {name: stems_of[i % len(stems_of)] for name, stems_of in choices.items()}
            for i in range(widest)
        ]
    return found
