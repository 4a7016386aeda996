"""The class of all commands, and the options that mean the same in each."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from mtk_cli.main import SUMMARIES, write_examples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_SEEDS = 1000
_SEEDS = re.compile(r"(\d+)(?:\.\.(\d+))?")


class Command(click.Command):
    """A command whose help leads with examples.

    With ``--method NAME`` beside ``--help``, the help ends with that method's parameters.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, hidden=True)
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, and keep them as they were."""
        # --help answers before the other options are read, so keep them for it.
        ctx.meta["mtk.args"] = list(args)
        return super().parse_args(ctx, args)

    def format_help_text(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Lead with examples."""
        write_examples(formatter, self.examples)
        super().format_help_text(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """End with the parameters of the named methods."""
        named = list(_values_of("--method", ctx.meta.get("mtk.args", [])))
        if named and any("--method" in param.opts for param in self.params):
            from mtk_cli.declared import write_parameters

            write_parameters(formatter, named)
        super().format_epilog(ctx, formatter)


class Commands(click.Group):
    """A command with commands of its own, whose help leads with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_help_text(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Lead with examples."""
        write_examples(formatter, self.examples)
        super().format_help_text(ctx, formatter)


def _values_of(option: str, args: Sequence[str]) -> list[str]:
    after = [
        value
        for name, value in pairwise(args)
        if name == option and not value.startswith("-")
    ]
    prefix = f"{option}="
    joined = [arg.removeprefix(prefix) for arg in args if arg.startswith(prefix)]
    return list(dict.fromkeys([*after, *joined]))


def declare(
    name: str, *, examples: Sequence[str]
) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare the command ``name``; its summary stands in :mod:`mtk_cli.main`."""
    return click.command(
        name, cls=Command, examples=examples, short_help=SUMMARIES[name]
    )


class Seeds(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """``0``, ``0..4`` (both ends included) or ``0,2,3``."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the text into seeds."""
        if isinstance(value, tuple):
            return value
        seeds: list[int] = []
        for part in str(value).split(","):
            match = _SEEDS.fullmatch(part.strip())
            if not match:
                self.fail(f"{value!r}: write 0, 0..4 or 0,2,3", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < first + MOST_SEEDS:
                self.fail(
                    f"{part!r} is no range of 1 to {MOST_SEEDS} seeds", param, ctx
                )
            seeds += range(first, last + 1)
        return tuple(seeds)


def complete_method(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[str]:
    """Names for shell completion."""
    from mtk.loading import load

    names = {provided.item.name for provided in load().methods}
    return sorted(name for name in names if name.startswith(incomplete))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print no messages.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Print more.")
param_option = click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the method; may be repeated.",
)
