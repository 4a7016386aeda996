"""``mtk upcycle``."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import DeclarationError, ParameterError, UsageError
from mtk.parameters import parse
from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option, param_option, quiet_option

if TYPE_CHECKING:
    from collections.abc import Sequence

# The plugin that does it, found by name: the command line depends on no plugin.
PLUGIN = "mtk-adapters-moe"
UPCYCLE = "mtk_adapters_moe.upcycling:upcycle"
READ = "mtk_adapters_moe.recipe:read"
PARAMS = "mtk_adapters_moe.parameters:PARAMS"
PROMPTS = '--prompt 0="Solve x + 2 = 5" --prompt 1="Write a sonnet"'


@declare(
    "upcycle",
    examples=(
        "mtk upcycle mergekit_moe.yml OUT",
        f"mtk upcycle --donor A --expert A --expert B {PROMPTS} -o OUT",
        "mtk upcycle --donor A --expert A --expert A -p gate=random -o OUT",
    ),
)
@click.argument(
    "recipe",
    required=False,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--donor", help="The model that gives all but the MLPs, and tokenizer.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    help="A model whose MLPs become an expert; repeat it for each, the order counts.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="N=TEXT",
    help="A text of the kind expert N is for; may be repeated.",
)
@click.option(
    "--negative-prompt",
    "negative_prompts",
    multiple=True,
    metavar="N=TEXT",
    help="A text that expert N is not for; may be repeated.",
)
@click.option("--shared-expert", help="A model every token uses (family qwen2_moe).")
@click.option(
    "--family",
    metavar="NAME",
    help="mixtral, qwen2_moe or qwen3_moe; the first that fits when left out.",
)
@click.option("--dtype", help="Of the result, as in bfloat16; else the donor's.")
@param_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder to write.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@json_option
@quiet_option
def command(
    *,
    recipe: Path | None,
    out: Path | None,
    donor: str | None,
    experts: tuple[str, ...],
    prompts: tuple[str, ...],
    negative_prompts: tuple[str, ...],
    shared_expert: str | None,
    family: str | None,
    dtype: str | None,
    params: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Make a mixture of experts from dense models of one shape.

    Attention, norms and embeddings come from the donor, experts are the models' MLPs, and
    routers come from the prompts, or from chance (-p gate=random) to be trained.

    Parameters: gate (hidden_gate, hidden, hidden_avg, cheap_embed, random,
    uniform_random), top_k, noise_scale, residual_scale, seed. A RECIPE is a YAML file as
    mergekit-moe takes it.
    """
    target = out or output
    if target is None or (out is not None and output is not None):
        raise UsageError(
            "give one folder to write: mtk upcycle config.yml OUT, or -o OUT"
        )
    upcycle = _find(UPCYCLE)
    named: dict[str, Any] = {
        "donor": donor,
        "experts": list(experts),
        "prompts": _by_expert("--prompt", prompts, len(experts)),
        "negative_prompts": _by_expert(
            "--negative-prompt", negative_prompts, len(experts)
        ),
        "shared_expert": shared_expert,
    }
    request = _models(recipe, {key: value for key, value in named.items() if value})
    request |= _parameters(params)
    request |= {k: v for k, v in (("family", family), ("dtype", dtype)) if v}
    _quieten()
    result = upcycle(output=target, overwrite=overwrite, **request)
    if not quiet:
        if recipe is not None:
            render.note(f"{recipe}: read as mergekit-moe does (gate_mode hidden)")
        for text in result.warnings:
            render.note(f"warning: {text}")
    if as_json:
        fields = ("path", "family", "params", "bytes", "condition", "warnings")
        render.json_text({name: getattr(result, name) for name in fields})
    elif not quiet:
        render.line(
            f"{result.path}: {result.family}, {len(request['experts'])} experts, "
            f"{render.size(result.bytes)}"
        )
        render.line(render.pairs(result.params))
    return ExitCode.DONE


def _models(recipe: Path | None, named: dict[str, Any]) -> dict[str, Any]:
    """Models and prompts: all from the recipe, or all from the command line."""
    if recipe is None:
        if not {"donor", "experts"} <= set(named):
            raise UsageError("give a recipe, or --donor and --expert for each expert")
        return named
    if named:
        option = min(named).replace("_", "-").removesuffix("s")
        raise UsageError(
            f"{recipe} says which models and prompts to use; leave out --{option}"
        )
    request: dict[str, Any] = _find(READ)(recipe)
    return request


def _find(target: str) -> Any:
    from importlib.util import find_spec

    from mtk.loading import resolve

    if find_spec(target.partition(".")[0]) is None:
        raise UsageError(
            f"mtk upcycle needs {PLUGIN}, which is not installed\n"
            f"Install it beside mtk: pip install {PLUGIN}"
        )
    try:
        return resolve(target)
    except DeclarationError as error:
        raise UsageError(
            f"{PLUGIN} is installed, but does not load: {error}"
        ) from error


def _parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Checked here for their names, so that none overrides another option."""
    from mtk.parameters import complete

    given = parse(pairs)
    declared = _find(PARAMS)
    complete(declared, given, owner="upcycle")
    return given


def _by_expert(option: str, given: Sequence[str], experts: int) -> list[list[str]]:
    """``N=TEXT`` each -> the texts of every expert; nothing for nothing."""
    if not given:
        return []
    result: list[list[str]] = [[] for _ in range(experts)]
    for pair in given:
        number, equals, text = pair.partition("=")
        if not equals or not number.isdigit() or int(number) >= experts or not text:
            raise ParameterError(
                f"{option} {pair!r}: write N=TEXT with the number of an expert, 0 to "
                f"{experts - 1}"
            )
        result[int(number)].append(text)
    return result


def _quieten() -> None:
    """No progress bars and remarks of transformers between our own lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:  # it has read them already
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
