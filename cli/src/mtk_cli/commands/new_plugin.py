"""``mtk new-plugin``."""

from __future__ import annotations

import re
from importlib import metadata, resources
from pathlib import Path
from string import Template

import click

from mtk.errors import UsageError
from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option, quiet_option

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@declare(
    "new-plugin",
    examples=("mtk new-plugin my-merge", "mtk new-plugin my-merge --output ~/my-merge"),
)
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder to make; default ./mtk-NAME.",
)
@json_option
@quiet_option
def command(name: str, output: Path | None, as_json: bool, quiet: bool) -> ExitCode:
    """Write a small plugin package with one merging method, ready to install.

    NAME is in lower case with hyphens. The package is called mtk-NAME.
    """
    slug = _slug(name)
    files = render_template(slug)
    folder = output or Path(f"mtk-{slug}")
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists; choose another --output")
    if not folder.parent.is_dir():
        raise UsageError(f"the folder {folder.parent} does not exist")
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    if as_json:
        render.json_text({"folder": folder, "files": [folder / file for file in files]})
    else:
        for file in files:
            render.line(str(folder / file))
    if not quiet:
        method = slug.replace("-", "_")
        render.note(
            f"Next: pip install -e {folder} && mtk check {method} && "
            f"mtk bench --method {method}"
        )
    return ExitCode.DONE


def _slug(name: str) -> str:
    slug = name.replace("_", "-").removeprefix("mtk-")
    if not _NAME.fullmatch(slug):
        raise UsageError(
            f"{name!r} is no name for a plugin; write lower-case letters, digits and "
            "hyphens, for example my-merge"
        )
    try:
        version = metadata.version(f"mtk-{slug}")
    except metadata.PackageNotFoundError:
        return slug
    raise UsageError(f"mtk-{slug} {version} is installed already; choose another name")


def render_template(slug: str) -> dict[str, str]:
    """File name -> text of a plugin package called ``mtk-<slug>``."""
    method = slug.replace("-", "_")
    words = {"slug": slug, "method": method, "module": f"mtk_{method}"}
    template = resources.files("mtk_cli") / "template"
    files = {}
    for source in sorted(template.iterdir(), key=lambda item: item.name):
        name = source.name.removesuffix(".in").replace("module.py", f"mtk_{method}.py")
        files[name] = Template(source.read_text(encoding="utf-8")).substitute(words)
    return files
