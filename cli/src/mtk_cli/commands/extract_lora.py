"""``mtk extract-lora``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mtk_cli.commands.merge_lora import (
    check_output,
    dry_run_option,
    dtype_option,
    lora_function,
    output_option,
    overwrite_option,
    rehearse,
    write,
)
from mtk_cli.options import declare, json_option, quiet_option

if TYPE_CHECKING:
    from pathlib import Path

    from mtk_cli.exits import ExitCode


@declare(
    "extract-lora",
    examples=(
        "mtk extract-lora --base BASE TUNED --rank 32 -o OUT",
        "mtk extract-lora --base BASE TUNED --rank 8 --only '*self_attn*' -o OUT",
        "mtk extract-lora --base PIPELINE TUNED --rank 16 --only 'unet/*' -o OUT",
    ),
)
@click.argument("tuned")
@click.option("--base", required=True, help="The model that was fine-tuned.")
@click.option(
    "--rank",
    type=int,
    required=True,
    help="Of every weight; what it loses is measured.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Extract only weights whose name fits, as in '*q_proj*'; may be repeated.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the randomised SVD."
)
@dtype_option
@output_option
@overwrite_option
@dry_run_option
@json_option
@quiet_option
def command(
    *,
    tuned: str,
    base: str,
    rank: int,
    only: tuple[str, ...],
    seed: int,
    dtype: str,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Approximate a full fine-tune TUNED by a LoRA adapter of its base.

    Every changed linear weight becomes factors of the given rank. Changes of norms,
    biases, embeddings and convolutions cannot; they are counted and reported.
    """
    check_output(output, [tuned, base], dtype, overwrite=overwrite, dry_run=dry_run)
    prepare = lora_function("extract:prepare")
    request = prepare(base, tuned, rank, only=only or ("*",), seed=seed)
    if dry_run:
        return rehearse(request, output, dtype, as_json=as_json, quiet=quiet)
    assert output is not None
    return write(
        request, output, dtype, overwrite=overwrite, as_json=as_json, quiet=quiet
    )
