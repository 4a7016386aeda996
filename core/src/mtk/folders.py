"""Model folders that appear complete or not at all.

A folder is written under ``OUT.partial-<random>`` beside its place: weights, companions,
``README.md``, and ``manifest.json`` last. Every file is synced, and the folder is renamed
when everything is in it. Whatever happens before leaves no folder that is accepted: one
that is still called partial is refused by :func:`check_manifest`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.files import file_mode, open_plain, state_of, sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MANIFEST = "manifest.json"
CARD = "README.md"
PARTIAL = ".partial-"
_LEFT_BEHIND = re.compile(r"\.partial-[0-9a-f]{8}$")
# Room that must be free, as a multiple of what will be written.
RESERVE = 1.05
# A manifest lists some hundreds of files.
MOST_MANIFEST_BYTES = 20_000_000
# What makes up the weights of a folder.
_WEIGHTS = ("*.safetensors", "*.safetensors.index*.json")
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


def check_folder(
    path: Path, inputs: Iterable[Path] = (), *, overwrite: bool = False
) -> None:
    """Refuse a place where a result folder must not be written."""
    if path.name in {"", ".."}:
        raise UsageError(f"{path}: name the folder itself, as in {path / 'OUT'}")
    if _LEFT_BEHIND.search(path.name):
        raise UsageError(f"{path} is a name for unfinished folders; choose another")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f"{path} is not a plain folder; choose another output")
    target = path.resolve()
    for source in inputs:
        there = source.resolve()
        if _overlap(there, target):
            raise UsageError(
                f"{path} and the input {source} overlap; inputs are never overwritten"
            )
    if not path.exists():
        return
    if not overwrite:
        raise UsageError(f"{path} exists; choose another output or add --overwrite")
    _check_ours(path)


def _overlap(one: Path, two: Path) -> bool:
    """Whether one is the other, or lies in it; under whatever names."""
    return any(_same(place, two) for place in (one, *one.parents)) or any(
        _same(place, one) for place in two.parents
    )


def _same(one: Path, two: Path) -> bool:
    return one == two or (one.exists() and two.exists() and one.samefile(two))


def _check_ours(path: Path) -> None:
    """Refuse to replace a folder that holds anything which mtk did not write."""
    if not any(path.iterdir()):
        return
    try:
        manifest = _manifest(path)
    except CheckpointError:
        manifest = None
    if manifest is None:
        raise UsageError(
            f"{path} was not written by mtk (no {MANIFEST} of its own), so it is not "
            "replaced\nRemove it yourself, or choose another output"
        )
    known = {MANIFEST, *manifest["outputs"]}
    for place, folders, files in os.walk(path):
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*files, *linked]):
            file = Path(place) / name
            if file.relative_to(path).as_posix() not in known:
                raise UsageError(
                    f"{file} was not written by mtk, so {path} is not replaced\n"
                    "Move it away, or choose another output"
                )


def check_space(path: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(path.parent).free
    if free < RESERVE * size:
        raise UsageError(
            f"{path.parent} has {free / 1e9:.2f} GB free; the result needs "
            f"{RESERVE * size / 1e9:.2f} GB"
        )


def stale(path: Path) -> list[Path]:
    """Partial folders that interrupted runs left beside ``path``."""
    start = f"{path.name}{PARTIAL}"
    if not path.parent.is_dir():
        return []
    return sorted(
        place
        for place in path.parent.iterdir()
        if place.name.startswith(start) and _LEFT_BEHIND.search(place.name)
    )


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty partial folder; at the end, put it in place of ``path``.

    Files are to be synced by whoever writes them (:func:`put_file`).
    """
    partial = path.with_name(f"{path.name}{PARTIAL}{secrets.token_hex(4)}")
    try:
        partial.mkdir(mode=0o700)
        try:
            yield partial
            _open_up(partial)
            _place(partial, path, overwrite=overwrite)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(f"{path} could not be written: {error}") from error


def _open_up(folder: Path) -> None:
    """Modes as if the user had made everything, and all names on the disk."""
    for place, folders, files in os.walk(folder):
        for name in files:
            (Path(place) / name).chmod(file_mode(0o666))
        for name in folders:
            (Path(place) / name).chmod(file_mode(0o777))
        sync(Path(place))
    folder.chmod(file_mode(0o777))


def _place(partial: Path, path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        partial.rename(path)
    elif overwrite:
        _swap(partial, path)
    elif path.is_dir() and not any(path.iterdir()):
        partial.rename(path)
    else:  # someone else was faster
        raise UsageError(f"{path} exists by now; nothing was replaced")
    sync(path.parent)


def _swap(partial: Path, path: Path) -> None:
    """Exchange both names at once where the system can; then delete the old folder."""
    if _exchange(partial, path):
        shutil.rmtree(partial, ignore_errors=True)
        return
    old = path.with_name(f"{path.name}{PARTIAL}{secrets.token_hex(4)}")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, two: Path) -> bool:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    status = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(two), _EXCHANGE)
    return bool(status == 0)


def put_file(folder: Path, name: str, content: Path | bytes) -> None:
    """Write or copy one small file into a partial folder, and sync it."""
    place = folder / inside(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as out:
        if isinstance(content, bytes):
            out.write(content)
        else:
            with open_plain(content) as source:
                shutil.copyfileobj(source, out)
        out.flush()
        os.fsync(out.fileno())


def inside(name: str) -> PurePosixPath:
    """A relative path that stays in its folder, or an error."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise CheckpointError(f"{name!r} is not a path inside a folder")
    return path


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Hash everything in a partial folder and write the manifest, as its last file."""
    outputs = hashes(
        {str(file.relative_to(folder).as_posix()): file for file in files_in(folder)}
    )
    text = json.dumps({**content, "outputs": outputs}, indent=1, default=str)
    put_file(folder, MANIFEST, text.encode() + b"\n")


def files_in(folder: Path) -> list[Path]:
    """All regular files, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def hashes(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of each file."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(sha256, files.values())
        return dict(zip(files, found, strict=True))


def sha256(path: Path) -> dict[str, Any]:
    """The hash of one file, which must not change meanwhile."""
    try:
        with open_plain(path) as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError(f"{path} changed while it was being read")
    return {"sha256": digest, "bytes": after.st_size}


def check_unchanged(files: Mapping[Path, tuple[int, ...]]) -> None:
    """Refuse files that are no longer as :func:`mtk.files.state_of` found them."""
    for file, state in files.items():
        try:
            same = state_of(file) == state
        except OSError as error:
            raise CheckpointError(f"{file} could not be read: {error}") from error
        if not same:
            raise CheckpointError(f"{file} changed while it was being read")


def is_partial(path: Path) -> bool:
    """Whether this is, or lies in, a folder that an interrupted run left behind."""
    place = path.resolve()
    return any(_LEFT_BEHIND.search(part) for part in place.parts)


def check_manifest(folder: Path, *, contents: bool = False) -> dict[str, Any] | None:
    """The manifest of a folder that mtk wrote, if it fits; None where there is none.

    Names and sizes are compared; with ``contents`` the hashes too.

    Raises:
        CheckpointError: the folder is a partial one, or not what the manifest says.
    """
    if is_partial(folder):
        raise CheckpointError(
            f"{folder} is what an interrupted merge left behind; remove it"
        )
    manifest = _manifest(folder)
    if manifest is None:
        return None
    outputs = manifest["outputs"]
    for name, entry in outputs.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                f"{path} is missing or has another size than {MANIFEST} says\n"
                "The folder was changed after it was written, or copied incompletely"
            )
        if contents and sha256(path)["sha256"] != entry["sha256"]:
            raise CheckpointError(f"{path} is not the file that {MANIFEST} describes")
    for place in {folder, *((folder / name).parent for name in outputs)}:
        for pattern in _WEIGHTS:
            for file in place.glob(pattern):
                if file.relative_to(folder).as_posix() not in outputs:
                    raise CheckpointError(
                        f"{file} is not in {MANIFEST}: it was added to the merged model "
                        "later"
                    )
    return manifest


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest that mtk wrote, checked for form; None where there is none of ours."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        with file.open("rb") as handle:
            text = handle.read(MOST_MANIFEST_BYTES + 1)
        if len(text) > MOST_MANIFEST_BYTES:
            raise ValueError(f"it has more than {MOST_MANIFEST_BYTES:,} bytes")
        manifest: dict[str, Any] = json.loads(text)
        if "mtk" not in manifest:
            return None  # some other tool's manifest
        outputs = {
            str(inside(name)): {"bytes": entry["bytes"], "sha256": entry["sha256"]}
            for name, entry in manifest["outputs"].items()
        }
    except (
        OSError,
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    return {**manifest, "outputs": outputs}
