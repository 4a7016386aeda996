"""``mtk merge-lora``, and what both commands for LoRA adapters share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import UsageError
from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option, quiet_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtk.adapters import Checkpoint

_PLUGIN = "mtk-adapters-lora"
_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder to write; needed unless --dry-run is given.",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the output if mtk wrote it."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check everything, and write nothing."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(list(_WIDTHS)),
    default="float32",
    show_default=True,
    help="Of the factors that are written.",
)


@declare(
    "merge-lora",
    examples=(
        "mtk merge-lora --adapter ONE --adapter TWO -o OUT",
        "mtk merge-lora --adapter ONE --adapter TWO --weight 0.7 --weight 0.3 --rank 16 -o OUT",
        "mtk merge-lora --adapter ONE --adapter TWO --combination ties_svd --density 0.2 -o OUT",
        "mtk merge-lora --adapter KOHYA.safetensors --adapter PEFT --base PIPELINE -o OUT",
    ),
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    required=True,
    help="A PEFT folder, diffusers or Kohya file; repeat it for each, the order counts.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    help="Of an adapter; give none (all 1) or one for each, in their order.",
)
@click.option(
    "--combination",
    default="cat",
    show_default=True,
    metavar="NAME",
    help="cat (the exact sum), linear, ties, magnitude_prune, dare_linear, dare_ties, "
    "svd, or one of these with _svd.",
)
@click.option(
    "--rank",
    type=int,
    help="Of the result; what it loses is measured. [default: exact]",
)
@click.option(
    "--density",
    type=float,
    default=1.0,
    show_default=True,
    help="Part of the entries that ties, dare and magnitude_prune keep.",
)
@click.option(
    "--sign-method",
    default="total",
    show_default=True,
    metavar="total|frequency",
    help="How ties and dare_ties elect signs.",
)
@click.option(
    "--clamp",
    type=float,
    metavar="QUANTILE",
    help="For types with svd: cut larger entries of the factors down to this quantile.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the types with dare."
)
@click.option(
    "--base", help="The model they belong to: checks names, reconciles file formats."
)
@click.option(
    "--component",
    metavar="NAME",
    help="Only this part of adapters for a pipeline, such as unet.",
)
@dtype_option
@output_option
@overwrite_option
@dry_run_option
@json_option
@quiet_option
def command(
    *,
    adapters: tuple[str, ...],
    weights: tuple[float, ...],
    combination: str,
    base: str | None,
    dtype: str,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> ExitCode:
    """Merge LoRA adapters into one LoRA adapter.

    The result is a folder that peft or diffusers loads; it appears when it is complete.
    To merge adapters into their base, or by any other method, give them to mtk merge:

    mtk merge -m task_arithmetic --base BASE --expert ONE --expert TWO -o OUT
    """
    check_output(output, [*adapters, base], dtype, overwrite=overwrite, dry_run=dry_run)
    prepare = lora_function("combine:prepare")
    request = prepare(
        adapters,
        list(weights) or None,
        combination.replace("-", "_"),
        base=None if base is None else _open(base),
        **settings,
    )
    if dry_run:
        return rehearse(request, output, dtype, as_json=as_json, quiet=quiet)
    assert output is not None
    return write(
        request, output, dtype, overwrite=overwrite, as_json=as_json, quiet=quiet
    )


def _open(base: str) -> Checkpoint:
    from mtk.loading import load
    from mtk.opening import open_model

    return open_model(base, "base", load())


def lora_function(name: str) -> Callable[..., Any]:
    """A function of the plugin for LoRA adapters, or an error that says how to get it."""
    from importlib.util import find_spec

    from mtk.loading import resolve

    if find_spec("mtk_adapters_lora") is None:
        raise UsageError(
            f"LoRA adapters need the plugin {_PLUGIN}, which is not installed\n"
            "Install it beside mtk-cli; mtk plugins lists what is there"
        )
    function: Callable[..., Any] = resolve(f"mtk_adapters_lora.{name}")
    return function


def check_output(
    output: Path | None,
    inputs: list[str | None],
    dtype: str,
    *,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Refuse a bad output before anything is computed."""
    if output is None:
        if not dry_run:
            raise UsageError(
                "--output is missing: say where to write, or add --dry-run"
            )
        return
    paths = [Path(item) for item in inputs if item is not None]
    check = lora_function("saving:check_output")
    check(output, paths, dtype=dtype, overwrite=overwrite)


def rehearse(
    request: Any, output: Path | None, dtype: str, *, as_json: bool, quiet: bool
) -> ExitCode:
    """Say what a request would do."""
    plan = request.describe()
    plan["bytes"] = plan.pop("numbers") * _WIDTHS[dtype]
    plan["path"] = output
    if as_json:
        render.json_text({"dry_run": True, **plan})
    elif not quiet:
        for label, value in {**plan, "bytes": render.size(plan["bytes"])}.items():
            render.line(f"{label.replace('_', ' ') + ':':13} {_text(value)}")
    return ExitCode.DONE


def write(
    request: Any,
    output: Path,
    dtype: str,
    *,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Carry a request out, and report what was lost."""
    from mtk_cli.progress import Reporter

    with Reporter(quiet=quiet) as report:
        new = request.run(report)
        report("writing")
        path = new.save(output, dtype=dtype, overwrite=overwrite)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    ranks = sorted({update.rank for update in new.updates.values()})
    if as_json:
        render.json_text(
            {
                "path": path,
                "bytes": size,
                "format": new.file_format,
                "modules": {
                    name: {"rank": u.rank, "relative_error": u.relative_error}
                    for name, u in new.updates.items()
                },
                "relative_error": new.relative_error,
                "left_out": dict(new.left_out),
                "notes": new.notes,
            }
        )
    elif not quiet:
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        render.line(
            f"{path}: {render.size(size)}, {len(new.updates)} modules of rank {span}"
        )
        render.line(f"lost by truncation: {new.relative_error:.3%} of the update")
        for note in new.notes:
            render.note(note)
    return ExitCode.DONE


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
