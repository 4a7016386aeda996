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
from mtk.folders import (
    CARD,
    check_space,
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
    from mtk.recipes import Recipe, Source
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
        hashed = pool.submit(_inputs, plan)
        with open_weights(folder, layout, shards, head) as weights:
            fill(weights)
        for name, content in {**layout.files, **indexes(layout, shards)}.items():
            if name != CARD:
                put_file(folder, name, content)
        inputs = hashed.result()
        put_file(folder, CARD, card(plan, inputs).encode())
        write_manifest(folder, record(plan, inputs))


def public(plan: Plan) -> Plan:
    """The plan, named without the folders of this machine, for a result that is shared."""

    def short(text: str) -> str:
        return Path(text).name if Path(text).is_absolute() else text

    def source(item: Source | None) -> Source | None:
        if item is None:
            return None
        adapter = item.adapter and short(item.adapter)
        return replace(item, path=short(item.path), adapter=adapter)

    def recipe(item: Recipe) -> Recipe:
        return replace(
            item,
            base=source(item.base),
            experts=tuple(filter(None, map(source, item.experts))),
            donor=item.donor and short(item.donor),
            tokenizer=short(item.tokenizer),
            slabs=tuple(
                replace(
                    slab,
                    base=source(slab.base),
                    sources=tuple(
                        (replace(s, path=short(s.path)), start, end)
                        for s, start, end in slab.sources
                    ),
                )
                for slab in item.slabs
            ),
            stages=tuple(map(recipe, item.stages)),
        )

    return replace(
        plan,
        recipe=recipe(plan.recipe),
        donor=short(plan.donor),
        inputs={
            name: replace(item, name=short(item.name))
            for name, item in plan.inputs.items()
        },
    )


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


def card(plan: Plan, inputs: Sequence[Mapping[str, Any]]) -> str:
    """The model card: how it was made, from what, and by which recipe."""
    head = ["tags:", "- merge", "- mtk"]
    library = _LIBRARIES.get(plan.layout.family)
    if library:
        head.append(f"library_name: {library}")
    names = [item["name"] for item in inputs]
    head += ["base_model:", *(f"- {json.dumps(name)}" for name in names)]
    methods = sorted({part.job.method.name for part in plan.parts})
    papers = {p.job.method.name: p.job.method.paper for p in plan.parts}
    lines = [
        "# A merged model",
        "",
        f"Made with mtk {mtk.__version__} by "
        + ", ".join(f"`{m}` ({papers[m]})" if papers[m] else f"`{m}`" for m in methods)
        + ".",
        "No training took place.",
        f"Config and tokenizer come from `{plan.donor}`.",
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
