"""``mtk merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import CheckpointError, UsageError, first_line
from mtk.parameters import parse
from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import (
    complete_method,
    declare,
    json_option,
    param_option,
    quiet_option,
)
from mtk_cli.selection import one_method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtk.declare import Method
    from mtk.results import Merged

# Longer lists of tensor names are cut in the text, never in the JSON.
MOST_NAMES = 5
EXPERTS = "--expert E0.safetensors --expert E1.safetensors"
STATISTICS = "--statistics F0.safetensors --statistics F1.safetensors"


@declare(
    "merge",
    examples=(
        f"mtk merge --method average {EXPERTS} -o OUT.safetensors",
        f"mtk merge --method ties --base B.safetensors {EXPERTS} -o OUT.safetensors",
        f"mtk merge --method fisher {EXPERTS} {STATISTICS} -o OUT.safetensors",
        "mtk merge --method ties --help",
    ),
)
@click.option(
    "-m",
    "--method",
    required=True,
    metavar="NAME|FILE.py",
    shell_complete=complete_method,
    help="The method, or a one-file plugin.",
)
@click.option("--base", help="The common starting model.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    required=True,
    help="A model to merge; repeat it for each, the order counts.",
)
@click.option(
    "--statistics",
    multiple=True,
    metavar="[NAME=]FILE",
    help="A statistic of an expert; repeat it in the order of the experts.",
)
@click.option(
    "--masks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Keep masks that replace the random draw of a stochastic method.",
)
@param_option
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Merge only tensors whose name fits, as in 'visual.*'; may be repeated.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write; needed unless --dry-run is given.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--dry-run", is_flag=True, help="Check everything, and write nothing.")
@json_option
@quiet_option
def command(
    *,
    method: str,
    base: str | None,
    experts: tuple[str, ...],
    statistics: tuple[str, ...],
    masks: Path | None,
    params: tuple[str, ...],
    only: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Merge checkpoints into one safetensors file.

    The file appears when it is complete, or not at all. All tensors that no --only
    pattern fits are taken from the base, or else from the first expert.
    """
    if output is None and not dry_run:
        raise UsageError("--output is missing: say where to write, or add --dry-run")
    registry, provided = one_method(method)
    request: dict[str, Any] = {
        "experts": experts,
        "base": base,
        "params": parse(params),
        "statistics": _statistics(provided.item, statistics),
        "only": only or ("*",),
        "output": output,
        "overwrite": overwrite,
        "registry": registry,
    }
    if dry_run:
        from mtk_cli.rehearsal import rehearse

        rehearsal = rehearse(provided.item, **request)
        if as_json:
            render.json_text({"dry_run": True, **rehearsal})
        elif not quiet:
            for label, text in rehearsal.items():
                render.line(f"{label.replace('_', ' ') + ':':13} {_text(text)}")
        return ExitCode.DONE
    import mtk

    loaded = None if masks is None else _load_masks(masks)
    merged = mtk.merge(provided.item, masks=loaded, **request)
    if as_json:
        render.json_text(_as_json(merged))
    elif not quiet:
        _write_result(merged)
    return ExitCode.DONE


def _statistics(method: Method, given: Sequence[str]) -> Any:
    """``FILE`` each, or ``NAME=FILE`` each for methods that need several statistics."""
    named: dict[str, list[str]] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if equals and name in method.needs.statistics:
            named.setdefault(name, []).append(file)
    if not named:
        return list(given)
    if sum(map(len, named.values())) != len(given):
        raise UsageError("--statistics: write NAME=FILE for all of them, or for none")
    return named


def _load_masks(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file: {first_line(error)}"
        ) from error


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return render.pairs(value) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _as_json(merged: Merged) -> dict[str, Any]:
    report = merged.report
    return {
        "method": merged.method.name,
        "output": merged.method.output,
        "params": merged.params,
        "path": merged.path,
        "bytes": merged.path.stat().st_size if merged.path else None,
        "added_bytes": merged.added_bytes(),
        "seconds": report.seconds,
        "peak_bytes": report.peak_bytes,
        "passes": report.passes,
        "tied": report.tied,
        "copied": report.copied,
        "without_statistic": report.without_statistic,
    }


def _write_result(merged: Merged) -> None:
    report, path = merged.report, merged.path
    written = render.size(path.stat().st_size) if path else "nothing"
    render.line(
        f"{path}: {written}, {report.seconds:.2f} s, "
        f"peak memory {render.size(report.peak_bytes)}"
    )
    render.line(f"{merged.method.name} {render.pairs(merged.params)}".rstrip())
    for name, twin in report.tied.items():
        render.line(f"tied: {name} is the same tensor as {twin}, and was merged once")
    for statistic, names in report.without_statistic.items():
        render.line(f"averaged, without a {statistic} statistic: {_some(names)}")
    if report.copied:
        render.line(f"not merged, copied as they are: {_some(report.copied)}")
    if merged.method.output == "per_task":
        render.line(
            f"A per-task result for {len(merged.codes)} tasks. To get a checkpoint: "
            f"mtk export {path} --task 0 -o TASK0.safetensors"
        )
    elif merged.method.output == "routed":
        render.line(
            "A routed result, for use from Python: "
            f"merged = mtk.load_merged({str(path)!r}), then: with merged.routed(model)"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown
