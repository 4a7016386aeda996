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
from mtk_cli.progress import MergeProgress
from mtk_cli.selection import one_method, registry_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtk.declare import Method
    from mtk.loading import Registry
    from mtk.results import Merged

# Longer lists of tensor names are cut in the text, never in the JSON.
MOST_NAMES = 5
EXPERTS = "--expert E0 --expert E1"
STATISTICS = "--statistics F0.safetensors --statistics F1.safetensors"


@declare(
    "merge",
    examples=(
        f"mtk merge --method average {EXPERTS} -o OUT",
        f"mtk merge --method ties --base B {EXPERTS} -p density=0.2 -o OUT",
        "mtk merge recipe.toml OUT",
        "mtk merge mergekit_config.yml OUT",
        f"mtk merge --method fisher {EXPERTS} {STATISTICS} -o OUT.safetensors",
        "mtk merge --method ties --help",
    ),
)
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "-m",
    "--method",
    metavar="NAME|FILE.py",
    shell_complete=complete_method,
    help="The method, or a one-file plugin.",
)
@click.option("--base", help="The common starting model.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
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
@click.option("--dtype", help="Of the result: float32, float16, bfloat16 or float64.")
@click.option("--donor", help="The model that gives config and tokenizer.")
@click.option(
    "--tokenizer", help="donor, union, base, or a folder with tokenizer files."
)
@click.option(
    "--vocabulary",
    type=click.Choice(["refuse", "base", "union"]),
    help="What to do with vocabularies that differ.",
)
@click.option("--shard-size", metavar="SIZE", help="Largest file of weights, as 5GB.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder, or NAME.safetensors, to write; needed unless --dry-run is given.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--hub", is_flag=True, help="Download models named by an id of the Hub.")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read .bin and .pt files too, as plain weights.",
)
@click.option("--push", metavar="REPO", help="Upload the result to the Hub, privately.")
@click.option("--workers", type=click.IntRange(1), help="Threads.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--dry-run", is_flag=True, help="Check everything, and write nothing.")
@json_option
@quiet_option
def command(
    *,
    recipe: Path | None,
    out: Path | None,
    method: str | None,
    statistics: tuple[str, ...],
    masks: Path | None,
    params: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    shard_size: str | None,
    push: str | None,
    workers: int | None,
    device: str,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> ExitCode:
    """Merge checkpoints into a model folder, or into one safetensors file.

    What to merge stands in the options or in a recipe: TOML, or mergekit's YAML. The
    output appears when it is complete, or not at all. Config, tokenizer and all tensors
    that no --only pattern fits come from the base, or else from the first expert.
    """
    named = (method, given["experts"])
    target = _target(recipe, out, output, named=named, dry_run=dry_run)
    if push is not None:
        _check_push(push, target)
    request: dict[str, Any] = {key: value for key, value in given.items() if value}
    own = {
        "method": method,
        "param": params,
        "statistics": statistics,
        "masks": masks,
        "shard-size": shard_size,
    }
    if recipe is None:
        registry, asked = _from_options(own, dry_run=dry_run)
        request |= asked
    else:
        registry = registry_for([])
        for name, value in {**own, **given}.items():
            if value and name not in {"hub", "allow_pickle"}:
                raise UsageError(
                    f"a recipe says everything itself; leave out --{name.replace('_', '-')}"
                )
        request["method"] = recipe
    request |= {"output": target, "overwrite": overwrite, "registry": registry}
    if dry_run:
        from mtk_cli.rehearsal import rehearse

        return rehearse(request, workers=workers, as_json=as_json, quiet=quiet)
    with MergeProgress(quiet=quiet or as_json) as progress:
        merged = progress.run(
            request, target, public=bool(push), workers=workers, device=device
        )
    for note in [] if quiet else merged.notes:
        render.note(note)
    address = _push(push, target) if push and target else None
    if as_json:
        render.json_text({**_as_json(merged), "pushed": address})
    elif not quiet:
        _write_result(merged)
        if address:
            render.line(f"pushed to {address}")
    return ExitCode.DONE


def _from_options(
    own: Mapping[str, Any], *, dry_run: bool
) -> tuple[Registry, dict[str, Any]]:
    """The method with what belongs to it."""
    if own["method"] is None:
        raise UsageError("say how to merge: --method NAME, or a recipe file")
    registry, provided = one_method(own["method"])
    asked: dict[str, Any] = {
        "method": provided.item,
        "params": parse(own["param"]),
        "statistics": _statistics(provided.item, own["statistics"]),
    }
    if own["shard-size"] is not None:
        from mtk.recipe_toml import parse_size

        asked["shard_size"] = parse_size(own["shard-size"], "--shard-size")
    if own["masks"] is not None and not dry_run:
        asked["masks"] = _load_masks(own["masks"])
    return registry, asked


def _target(
    recipe: Path | None,
    out: Path | None,
    output: Path | None,
    *,
    named: tuple[str | None, Sequence[str]],
    dry_run: bool,
) -> Path | None:
    method, experts = named
    if recipe is None and method is not None and not experts:
        raise UsageError("nothing to merge: give --expert MODEL once for each model")
    if method is not None and recipe is not None and out is None and output is None:
        raise UsageError(
            f"say where to write with -o {recipe}; a lone path is a recipe"
        )
    if out is not None and output is not None:
        raise UsageError(f"two outputs are given: {out} and {output}")
    target = out or output
    if target is None and not dry_run:
        again = f"mtk merge {recipe} OUT" if recipe else "--output OUT"
        raise UsageError(f"--output is missing: write {again}, or add --dry-run")
    return target


def _check_push(repo: str, target: Path | None) -> None:
    """Refuse before the merge what could not be uploaded after it."""
    from mtk.hub import is_hub_id

    if target is None or target.suffix == ".safetensors":
        raise UsageError("--push uploads a folder: give a folder as the output")
    if not is_hub_id(repo):
        raise UsageError(f"--push {repo}: write OWNER/NAME, a repository of the Hub")


def _push(repo: str, folder: Path) -> str:
    from mtk.hub import push

    return push(folder, repo)


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


def _as_json(merged: Merged) -> dict[str, Any]:
    report = merged.report
    return {
        "method": merged.method.name,
        "output": merged.method.output,
        "params": merged.params,
        "path": merged.path,
        "bytes": _bytes(merged.path),
        "notes": merged.notes,
        "donor": merged.donor,
        "parts": merged.parts,
        "added_bytes": merged.added_bytes(),
        "seconds": report.seconds,
        "peak_bytes": report.peak_bytes,
        "passes": report.passes,
        "tied": report.tied,
        "copied": report.copied,
        "without_statistic": report.without_statistic,
    }


def _bytes(path: Path | None) -> int | None:
    """What was written, in all."""
    if path is None:
        return None
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)


def _write_result(merged: Merged) -> None:
    report, path = merged.report, merged.path
    written = render.size(_bytes(path) or 0)
    render.line(
        f"{path}: {written}, {report.seconds:.2f} s, "
        f"peak memory {render.size(report.peak_bytes)}"
    )
    if len(merged.parts) > 1:
        render.line(
            ", ".join(f"{name} ({n} tensors)" for name, n in merged.parts.items())
        )
    else:
        render.line(f"{merged.method.name} {render.pairs(merged.params)}".rstrip())
    if path and path.is_dir():
        render.line(f"config and tokenizer of {merged.donor}")
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
