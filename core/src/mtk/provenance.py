"""Where a merged folder comes from: its manifest and its model card."""

from __future__ import annotations

import json
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mtk
from mtk.assembly import sources_of
from mtk.files import state_of
from mtk.folders import (
    CARD,
    check_space,
    check_unchanged,
    hashes,
    new_folder,
    put_file,
    write_manifest,
)
from mtk.recipe_toml import dump
from mtk.shards import indexes, open_weights, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtk.merging import Plan
    from mtk.recipes import Recipe, Slab, Source
    from mtk.shards import Shard, Weights

FORMAT = 1
_LIBRARIES = {
    "transformers": "transformers",
    "diffusers": "diffusers",
    "open_clip": "open_clip",
    "peft": "peft",
}


def write_folder(
    plan: Plan,
    target: Path,
    shards: Sequence[Shard],
    head: Mapping[str, str],
    fill: Callable[[Weights], None],
    *,
    overwrite: bool,
) -> None:
    """Write weights, companions, card and manifest; all appear together.

    The inputs are hashed meanwhile.
    """
    size = sum(size_of(info) for shard in shards for info in shard.tensors)
    check_space(target, size)
    layout = plan.layout
    with (
        ThreadPoolExecutor(1, "mtk-hash") as pool,
        new_folder(target, overwrite=overwrite) as folder,
    ):
        states = {
            file: state_of(file)
            for item in plan.inputs.values()
            for file in item.files()
        }
        hashed = pool.submit(_inputs, plan)
        with open_weights(folder, layout, shards, head) as weights:
            fill(weights)
        for name, content in {**layout.files, **indexes(layout, shards)}.items():
            if name != CARD:
                put_file(folder, name, content)
        inputs = hashed.result()
        check_unchanged(states)
        put_file(folder, CARD, card(plan, inputs).encode())
        write_manifest(folder, record(plan, inputs))


def public(plan: Plan) -> Plan:
    """The plan, named without the folders of this machine, for a result that is shared."""
    texts = {item.name for item in plan.inputs.values()} | {plan.donor}
    for recipe in (plan.recipe, *plan.recipe.stages):
        texts |= {recipe.donor or "", recipe.tokenizer}
        for item in sources_of(recipe):
            texts |= {item.path, item.adapter or ""}
    names = _short({text for text in texts if Path(text).is_absolute()})

    def source(item: Source) -> Source:
        adapter = item.adapter and names.get(item.adapter, item.adapter)
        return replace(item, path=names.get(item.path, item.path), adapter=adapter)

    def slab(item: Slab) -> Slab:
        sources = tuple((source(s), start, end) for s, start, end in item.sources)
        return replace(item, base=item.base and source(item.base), sources=sources)

    def shared(item: Recipe) -> Recipe:
        return replace(
            item,
            base=item.base and source(item.base),
            experts=tuple(map(source, item.experts)),
            donor=item.donor and names.get(item.donor, item.donor),
            tokenizer=names.get(item.tokenizer, item.tokenizer),
            slabs=tuple(map(slab, item.slabs)),
            stages=tuple(map(shared, item.stages)),
        )

    return replace(
        plan,
        recipe=shared(plan.recipe),
        donor=names.get(plan.donor, plan.donor),
        inputs={
            name: replace(item, name=names.get(item.name, item.name))
            for name, item in plan.inputs.items()
        },
    )


def _short(paths: set[str]) -> dict[str, str]:
    """Each path -> its last name, or as many of its last names as tell it from others."""

    def last(path: str, count: int) -> str:
        return "/".join(Path(path).parts[-count:])

    found = {}
    for path in paths:
        count, others = 1, [other for other in paths if Path(other) != Path(path)]
        while any(last(other, count) == last(path, count) for other in others):
            count += 1
        found[path] = last(path, count)
    return found


def _inputs(plan: Plan) -> list[dict[str, Any]]:
    """Every model that was read, with the hashes of its files."""
    return [
        {
            "name": item.name,
            "origin": item.origin or None,
            "files": hashes(
                {
                    str(
                        file.relative_to(item.path)
                        if item.path and item.path.is_dir()
                        else file.name
                    ): file
                    for file in item.files()
                }
            ),
        }
        for item in plan.inputs.values()
    ]


def record(plan: Plan, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest, before the hashes of the outputs are added to it."""
    return {
        "mtk": mtk.__version__,
        "format": FORMAT,
        "merge": [_job(part) for part in plan.parts],
        "recipe": dump(plan.recipe),
        "donor": plan.donor,
        "notes": list(plan.notes),
        "warnings": [w for part in plan.parts for w in _warnings(part)],
        "versions": _versions(),
        "inputs": list(inputs),
    }


def _job(part: Any) -> dict[str, Any]:
    job = part.job
    return {
        "method": job.method.name,
        "paper": job.method.paper,
        "params": dict(job.params),
        "tensors": len(part.names),
        "varied": len(job.varied),
    }


def _warnings(part: Any) -> list[str]:
    report, found = part.job.report, []
    if report.copied:
        found.append(f"{len(report.copied)} tensors were copied, not merged")
    found += [
        f"{len(names)} tensors had no {statistic} statistic"
        for statistic, names in report.without_statistic.items()
    ]
    return found


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for distribution in metadata.distributions():
        if distribution.name and distribution.name.startswith("mtk-"):
            versions[distribution.name] = distribution.version
    return dict(sorted(versions.items()))


def _companions(plan: Plan) -> str:
    """Where everything beside the weights comes from."""
    recipe, donor = plan.recipe, plan.donor
    if not plan.layout.files:
        return "Its models have no config, and neither has it."
    if recipe.tokenizer == "union":
        return (
            f"Config and tokenizer come from `{donor}`, with the tokens of all models."
        )
    base = recipe.base.path if recipe.base else donor
    tokens = {"donor": donor, "base": base}.get(recipe.tokenizer, recipe.tokenizer)
    if tokens == donor:
        return f"Config and tokenizer come from `{donor}`."
    return f"The config comes from `{donor}`, the tokenizer from `{tokens}`."


def card(plan: Plan, inputs: Sequence[Mapping[str, Any]]) -> str:
    """The model card: how it was made, from what, and by which recipe."""
    head = ["tags:", "- merge", "- mtk"]
    library = _LIBRARIES.get(plan.layout.family)
    if library:
        head.append(f"library_name: {library}")
    # The Hub knows its own repositories, and refuses the name of anything else.
    hub = [i["origin"].removeprefix("hf://") for i in inputs if i["origin"]]
    names = dict.fromkeys(address.partition("@")[0] for address in hub)
    head += ["base_model:"] if names else []
    head += [f"- {json.dumps(name)}" for name in names]
    methods = sorted({part.job.method.name for part in plan.parts})
    papers = {p.job.method.name: p.job.method.paper for p in plan.parts}
    lines = [
        "# A merged model",
        "",
        f"Made with mtk {mtk.__version__} by "
        + ", ".join(f"`{m}` ({papers[m]})" if papers[m] else f"`{m}`" for m in methods)
        + ".",
        "No training took place.",
        _companions(plan),
        "",
        "## Models",
        "",
        "| model | files | SHA-256 of its first file |",
        "| --- | --- | --- |",
    ]
    for item in inputs:
        first = next(iter(item["files"].values()), {"sha256": "in memory"})
        name = item["origin"] or item["name"]
        lines.append(f"| `{name}` | {len(item['files'])} | `{first['sha256']}` |")
    lines += ["", "## Recipe", "", "```toml", dump(plan.recipe).strip(), "```", ""]
    if plan.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in plan.notes), ""]
    lines.append(
        "All hashes, parameters and versions are in `manifest.json`. "
        "Nothing here was checked for safety; a merge can keep what its parts hide."
    )
    return "\n".join(["---", *head, "---", "", *lines, ""])
