"""The command ``mtk``: a group whose commands are imported when they are used."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import MtkError, UsageError
from mtk.parameters import suggestion
from mtk_cli import __version__, render
from mtk_cli.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

SECTIONS: dict[str, dict[str, str]] = {
    "Merge and judge": {
        "bench": "Score merging methods on a track, side by side.",
        "merge": "Merge checkpoints, by options or by a recipe.",
        "merge-lora": "Merge LoRA adapters into one adapter.",
        "extract-lora": "Turn a full fine-tune into a LoRA adapter.",
        "upcycle": "Make a mixture of experts from dense models.",
        "export": "Write the checkpoint of one task of a per-task result.",
        "inspect": "Look at an unfamiliar checkpoint.",
    },
    "See what is installed": {
        "list-methods": "Merging methods.",
        "list-tasks": "Tracks and their cells.",
        "list-adapters": "Kinds of checkpoints that can be opened.",
        "list-metrics": "Metrics.",
        "tracks": "Tracks, and whether they can run here.",
        "plugins": "Where all of them come from, and what is wrong with any.",
        "show": "Everything that is declared under a name.",
    },
    "Write your own": {
        "new-plugin": "Start a plugin package with one method.",
        "check": "Test that a method keeps what it declares.",
    },
}
SUMMARIES = {name: text for part in SECTIONS.values() for name, text in part.items()}
EXAMPLES = (
    "mtk bench",
    "mtk bench --method ties --method ./my_method.py",
    "mtk merge --method ties --base BASE --expert A --expert B -o MERGED",
    "mtk merge recipe.toml MERGED",
    "mtk show ties",
)
MOST_LINES = 3


class Group(click.Group):
    """Lazy commands, errors of at most three lines, documented exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names, in the order of the help text."""
        return list(SUMMARIES)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Import a command's module; None for an unknown name."""
        if cmd_name not in SUMMARIES:
            return None
        module = importlib.import_module(
            f"mtk_cli.commands.{cmd_name.replace('-', '_')}"
        )
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a typo gets a suggestion."""
        name = args[0].replace("_", "-")
        if name not in SUMMARIES and not name.startswith("-"):
            raise click.UsageError(
                f"no command {args[0]!r}{suggestion(name, SUMMARIES)}", ctx
            )
        return super().resolve_command(ctx, [name, *args[1:]])

    def format_help_text(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Lead with examples."""
        write_examples(formatter, EXAMPLES)
        super().format_help_text(ctx, formatter)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """List the commands by purpose, importing none."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a reader that has gone away is no error."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.DONE
        return code

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and end the process with an :class:`ExitCode`."""
        given = sys.argv[1:] if args is None else list(args)
        debug = os.environ.get("MTK_DEBUG") == "1" or "--debug" in given
        try:
            code = super().main(
                given, prog_name or "mtk", complete_var, standalone_mode=False, **extra
            )
        except (Exception, KeyboardInterrupt) as error:
            if debug and not isinstance(error, click.exceptions.Abort):
                raise
            code = report_error(error)
        code = ExitCode(code or 0)
        return sys.exit(code) if standalone_mode else code


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Put real command lines at the head of a help text, never wrapped."""
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def report_error(error: BaseException) -> ExitCode:
    """Say what went wrong in at most three lines; return the exit code it means."""
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        render.error("interrupted")
        return ExitCode.INTERRUPTED
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "mtk"
        render.error(f"{error.format_message()}\n{where} --help shows what it takes")
        return ExitCode.USAGE
    if isinstance(error, MtkError):
        render.error("\n".join(str(error).splitlines()[:MOST_LINES]))
        return ExitCode.USAGE if isinstance(error, UsageError) else ExitCode.FAILED
    if isinstance(error, OSError) and error.filename:
        render.error(f"{error.filename}: {error.strerror}")
        return ExitCode.FAILED
    cause = (str(error).splitlines() or [""])[0]
    render.error(
        f"a defect of mtk or of a plugin: {type(error).__name__}: {cause}\n"
        "Run it again with MTK_DEBUG=1 to see where, and report it"
    )
    return ExitCode.FAILED


def _version() -> str:
    from importlib.metadata import version

    return f"mtk {__version__} (mtk-core {version('mtk-core')})"


@click.group(cls=Group, invoke_without_command=True)
@click.option("--version", is_flag=True, help="Show the versions and exit.")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show a traceback when something fails.",
)
@click.pass_context
def cli(ctx: click.Context, version: bool) -> int:
    """Merge neural networks, and judge merging methods fairly.

    Exit codes: 0 done, 1 ran and something failed, 2 wrong request, 3 nothing to run,
    130 interrupted.
    """
    if version:
        render.line(_version())
        ctx.exit()
    if ctx.invoked_subcommand is None:
        render.line(ctx.get_help())
    return ExitCode.DONE


def run() -> NoReturn:
    """Entry point of the script ``mtk``."""
    # Importing torch makes many objects and no garbage: looking for it there, and once
    # more at the end, takes a third of the start-up.
    gc.set_threshold(100_000, 50, 1000)
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows a "?" instead of a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    cli.main()
    raise AssertionError("cli.main ends the process")
