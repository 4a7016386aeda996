"""``mtk tracks prepare``: data and models of a track that are the user's to bring.

What it asks of a track is said in :class:`mtk.tracks.LiveTrack`: ``parts``, ``fetch``,
``make`` and ``adopt``. The root is noted with :func:`mtk.roots.note_root`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import MtkError, UsageError
from mtk.parameters import parse, suggestion
from mtk.track_files import is_track_file
from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import Command, json_option, quiet_option
from mtk_cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtk.declare import Track
    from mtk.roots import Part

MADE = ("judge", "expert", "multitask")
DOWNLOADED = ("weights", "data")
COLUMNS = (
    Column("part"),
    Column("kind"),
    Column("state"),
    Column("found", fold=True),
    Column("what to do", fold=True),
)


@click.command(
    "prepare",
    cls=Command,
    examples=(
        "mtk tracks prepare domainnet-clip --root DIR --dry-run",
        "mtk tracks prepare domainnet-clip --root DIR --download",
        "mtk tracks prepare domainnet-clip --root DIR --only clipart-tool --device cuda",
        "mtk tracks prepare domainnet-clip --root DIR --import-experts EXPERTS",
    ),
)
@click.argument("name")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder with data and weights; what is made goes there too.",
)
@click.option("--download", is_flag=True, help="Get what is missing from the Hub.")
@click.option(
    "--import-experts",
    "experts",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder with experts made elsewhere, each named after its cell.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="CELL",
    help="Of the experts, only this one; or multitask. May be repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A protocol field of the track; may be repeated.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to train.")
@click.option("--dry-run", is_flag=True, help="Look only; train and download nothing.")
@json_option
@quiet_option
def command(
    *,
    name: str,
    root: Path,
    download: bool,
    experts: Path | None,
    only: tuple[str, ...],
    seed: int,
    options: tuple[str, ...],
    device: str,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Check what the track NAME needs, get or train it, and say what is missing.

    Nothing is downloaded without --download. Everything that is there and whole is left
    as it is, so that the command can be stopped at any time and run again.
    """
    if dry_run and (download or experts):
        raise UsageError(
            "--dry-run looks only; leave --download and --import-experts out"
        )
    if not root.is_dir():
        raise UsageError(
            f"the folder {root} does not exist; make it, and put data there"
        )
    from mtk.roots import known_root, note_root, words
    from mtk_cli.progress import Reporter

    root = root.resolve()
    with Reporter(quiet=quiet) as report:
        report("starting", None)
        _check_device(device)
        track, live, cache = _opened(name, seed, options)
        parts = live.parts(root)
        wanted = _wanted(parts, only)
        failures: dict[str, str] = {}
        if not dry_run:
            note_root(cache, root)
            if download:
                _download(live, root, parts, report, failures)
            if experts is not None:
                _import(live, root, wanted, experts, failures)
            _make(live, root, wanted, device, report, failures)
            parts = live.parts(root)
    lost = [p for p in parts if not p["there"] and (not only or p["name"] in only)]
    if as_json:
        render.json_text(
            {
                "track": track.name,
                "root": root,
                "ready": not lost,
                "parts": parts,
                "failures": failures,
            }
        )
    else:
        _write(track, parts, failures)
        more = words(seed, parse(options), {})
        noted = known_root(cache) == root
        render.note(_remark(parts, f"{track.name}{more}", noted=noted))
    if failures:
        return ExitCode.FAILED
    return ExitCode.NOTHING if lost else ExitCode.DONE


def _check_device(name: str) -> None:
    if name != "cpu":
        from mtk.training import device_named

        device_named(name)


def _opened(name: str, seed: int, options: Sequence[str]) -> tuple[Track, Any, Path]:
    """The track, its live object, and its folder in the cache."""
    from mtk.loading import load, resolve
    from mtk.models import default_cache, folder_of
    from mtk.parameters import complete

    registry = load()
    if is_track_file(registry, name):
        raise UsageError(
            f"{name} says itself where its models are; there is nothing to prepare\n"
            f"mtk tracks list {name} says what is missing"
        )
    track = registry.track(name).item
    settings = complete(track.options, parse(options), owner=f"track {track.name}")
    cache = folder_of(default_cache(), track)
    live = resolve(track.target)(cache=cache, seed=seed, options=settings)
    if not hasattr(live, "parts"):
        raise UsageError(
            f"{track.name} makes its models on first use; there is nothing to prepare"
        )
    return track, live, cache


def _wanted(parts: Sequence[Part], only: Sequence[str]) -> list[str]:
    """Names of the experts and the like that are asked for."""
    made = [p["name"] for p in parts if p["kind"] in MADE]
    for name in only:
        if name not in made:
            raise UsageError(
                f"no expert named {name!r}{suggestion(name, made)} (held-in cells have one)"
            )
    judges = [p["name"] for p in parts if p["kind"] == "judge"]
    return [name for name in made if name in only or name in judges] if only else made


def _download(
    live: Any,
    root: Path,
    parts: Sequence[Part],
    report: Callable[..., None],
    failures: dict[str, str],
) -> None:
    """Fetch what is missing; one download may bring several parts, so look again."""
    for name in [p["name"] for p in parts if p["kind"] in DOWNLOADED]:
        now = {p["name"]: p for p in live.parts(root)}
        if not now[name]["there"]:
            _try(name, failures, live.fetch, root, name, report)


def _import(
    live: Any,
    root: Path,
    wanted: Sequence[str],
    experts: Path,
    failures: dict[str, str],
) -> None:
    """Adopt the experts that are in a folder and not yet here."""
    lost = {p["name"] for p in live.parts(root) if not p["there"]}
    found = 0
    for name in wanted:
        for place in (experts / name, experts / f"{name}.safetensors"):
            if place.exists():
                found += 1
                if name in lost:
                    _try(name, failures, live.adopt, root, name, place)
                break
    if not found:
        raise UsageError(
            f"{experts} has none of the experts {', '.join(wanted[:3])} ...\n"
            "Each is a folder or NAME.safetensors, named after its cell"
        )


def _make(
    live: Any,
    root: Path,
    wanted: Sequence[str],
    device: str,
    report: Callable[..., None],
    failures: dict[str, str],
) -> None:
    """Train what can be trained, one after the other; a failure stops none of the rest."""
    ready = [p["name"] for p in live.parts(root) if p["ready"] and p["name"] in wanted]
    for name in ready:
        if name not in failures:
            _try(name, failures, live.make, root, name, report, device=device)


def _try(
    name: str,
    failures: dict[str, str],
    act: Callable[..., None],
    *args: Any,
    **more: Any,
) -> None:
    try:
        act(*args, **more)
    except MtkError as error:
        failures[name] = str(error)


def _write(track: Track, parts: Sequence[Part], failures: dict[str, str]) -> None:
    rows = [
        (
            (p["name"], "bold"),
            p["kind"],
            _state(p, failures),
            p["note"],
            p["todo"] or "-",
        )
        for p in parts
    ]
    render.table(COLUMNS, (track.name, rows))
    for name, message in failures.items():
        render.error(f"{name}: {message}")


def _remark(parts: Sequence[Part], track: str, *, noted: bool) -> str:
    """What to do next."""
    lost = sum(not p["there"] for p in parts)
    if lost:
        return f"{lost} of {len(parts)} parts are missing"
    if not noted:
        return (
            "everything is there; without --dry-run the folder is noted for mtk bench"
        )
    return f"everything is there; mtk bench --track {track}"


def _state(part: Part, failures: dict[str, str]) -> tuple[str, str]:
    if part["there"]:
        return "there", "green"
    if part["name"] in failures:
        return "failed", "red"
    return ("can be made", "yellow") if part["ready"] else ("missing", "red")
