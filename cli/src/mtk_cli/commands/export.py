"""``mtk export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option, quiet_option

if TYPE_CHECKING:
    from mtk.results import Merged


@declare(
    "export",
    examples=("mtk export MERGED.safetensors --task 0 --output TASK0.safetensors",),
)
@click.argument("merged", type=click.Path(path_type=Path))
@click.option(
    "--task",
    type=click.IntRange(min=0),
    required=True,
    help="Which task, counted from 0 in the order of the experts.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write.",
)
@click.option(
    "--method",
    type=click.Path(path_type=Path),
    help="The one-file plugin that made it, if its method is not installed.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@json_option
@quiet_option
def command(
    *,
    merged: Path,
    task: int,
    output: Path,
    method: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Write the plain checkpoint of one task of MERGED, a per-task result."""
    import mtk
    from mtk.files import check_target

    check_target(output, [merged], overwrite=overwrite)
    registry = mtk.load([method] if method else [])
    count = _write(mtk.load_merged(merged, registry=registry), task, output)
    written = output.stat().st_size
    if as_json:
        render.json_text(
            {"path": output, "task": task, "tensors": count, "bytes": written}
        )
    elif not quiet:
        render.line(f"{output}: {count} tensors, {render.size(written)}, task {task}")
    return ExitCode.DONE


def _write(merged: Merged, task: int, output: Path) -> int:
    from mtk.checkpoint import describe
    from mtk.results import metadata
    from mtk.writing import layout, write_safetensors

    state = merged.task(task)
    infos = layout(describe(name, t.shape, t.dtype) for name, t in state.items())
    head = metadata(merged.method, merged.params)
    # The file is a plain checkpoint now; say so, and where it comes from.
    origin = json.loads(head["mtk"]) | {"output": "static", "task": task}
    head["mtk"] = json.dumps(origin, sort_keys=True)
    ordered = ((info.name, state[info.name]) for info in infos)
    write_safetensors(output, infos, ordered, head)
    return len(state)
