"""``mtk inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option
from mtk_cli.render import Column

if TYPE_CHECKING:
    from mtk.inspection import Difference, Inspection

COLUMNS = (
    Column("model"),
    Column("norm", right=True),
    Column("unchanged", right=True),
    Column("cosine", right=True),
    Column("spike", right=True),
    Column("energy", right=True),
    Column("row", right=True),
)
LEGEND = (
    "norm: of the task vector over the base's. cosine: mean with the other models.",
    "spike: sigma_1 over the edge of noise. row: largest embedding row over the median.",
    "In brackets: robust z among the models; beyond 3.5 is a finding.",
)


@declare(
    "inspect",
    examples=(
        "mtk inspect MODEL",
        "mtk inspect EXPERT --against BASE",
        "mtk inspect EXPERT --against BASE --with OTHER1 --with OTHER2",
    ),
)
@click.argument("model")
@click.option("--against", metavar="BASE", help="The model it was fine-tuned from.")
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="MODEL",
    help="Another expert of the same base and kind; may be repeated.",
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read .bin and .pt files too, without running their code.",
)
@json_option
def command(
    *,
    model: str,
    against: str | None,
    others: tuple[str, ...],
    allow_pickle: bool,
    as_json: bool,
) -> ExitCode:
    """Look at an unfamiliar checkpoint: structure, numbers, norms, cosines and spectra.

    Of a folder also config, tokenizer, chat template, code, licence and manifest.

    The checks are tripwires: a model can be made so that it passes all of them. Nothing
    in the checkpoint is run.
    """
    import mtk

    seen = mtk.inspect(model, against=against, others=others, allow_pickle=allow_pickle)
    if as_json:
        render.json_text(_as_json(seen))
        return ExitCode.DONE
    render.line(
        f"{seen.model}: {seen.kind}, {seen.tensors} tensors, "
        f"{seen.parameters:,} parameters, {render.size(seen.bytes)}",
        "bold",
    )
    render.line(f"dtypes: {_counts(seen.dtypes)}")
    render.line(f"roles: {_counts(seen.roles)}")
    if seen.licence:
        render.line(f"licence: {seen.licence}")
    if seen.differences:
        render.line()
        render.table(COLUMNS, ("", [_line(found) for found in seen.differences]))
        render.line("\n".join(LEGEND))
    if seen.skipped_spectra:
        render.line(f"{seen.skipped_spectra} matrices are too large for a spectrum.")
    render.line()
    for finding in seen.findings:
        render.line(f"{finding.check}: {finding.model}: {finding.message}")
    render.line(seen.verdict, "bold")
    return ExitCode.DONE


def _as_json(seen: Inspection) -> dict[str, Any]:
    plain: dict[str, Any] = render.plain(seen)
    return {**plain, "verdict": seen.verdict}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def _line(found: Difference) -> list[str]:
    return [
        found.model,
        _number(found, "norm"),
        f"{100 * found.unchanged:.1f} %",
        _number(found, "cosine"),
        _number(found, "spike"),
        _number(found, "energy"),
        _number(found, "row"),
    ]


def _number(found: Difference, name: str) -> str:
    value = getattr(found, name)
    if value is None:
        return "-"
    z = found.z.get(name)
    return f"{value:.3g}" + ("" if z is None else f" ({z:+.1f})")
