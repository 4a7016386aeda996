"""Models from the Hugging Face Hub and merged models to it, only when asked.

Nothing here is called unless the user wrote ``--hub``, ``hf://`` or ``--push``.
``huggingface_hub`` is optional (``pip install "mtk-core[hub]"``) and imported inside
functions. Tokens are left to it: they come from ``HF_TOKEN`` or ``hf auth login``.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk._hub_choice import choose
from mtk._hub_errors import explained, need
from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from huggingface_hub import HfApi

SCHEME = "hf://"
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_ADDRESS = re.compile(
    rf"(?P<repo>(?:{_PART}/)?{_PART})(?:@(?P<revision>\w[\w./+-]{{0,200}}))?", re.ASCII
)
# A missing file of these kinds is a typing error, never a repository.
_LOCAL = (".safetensors", ".toml", ".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A downloaded snapshot: its folder, and the repository and commit it came from."""

    path: Path
    repo: str
    revision: str

    @property
    def origin(self) -> str:
        """The address that always gives these same files."""
        return f"{SCHEME}{self.repo}@{self.revision}"


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is ``org/name`` or ``org/name@revision`` and no local path.

    What begins with ``hf://`` always is, even where it is malformed.
    """
    if text.startswith(SCHEME):
        return True
    if text.endswith(_LOCAL) or os.path.lexists(text):
        return False
    return _split(text) is not None


def hint(text: str) -> str:
    """A line to append to the message for a missing path; empty if it is no Hub id."""
    if text.startswith(SCHEME) or not is_hub_id(text):
        return ""
    return f"\nIf it is a model on the Hub, add --hub or write {SCHEME}{text}"


def _split(text: str) -> tuple[str, str | None] | None:
    match = _ADDRESS.fullmatch(text.removeprefix(SCHEME))
    if match is None:
        return None
    repo, revision = match["repo"], match["revision"]
    if "/" not in repo and not text.startswith(SCHEME):
        return None
    if "--" in repo or ".." in text or repo.endswith(".git"):
        return None
    return repo, revision


def _address(text: str) -> tuple[str, str | None]:
    found = _split(text)
    if found is None:
        raise UsageError(
            f"{text!r} is no address of a model on the Hub\n"
            f"Write org/name, org/name@revision or {SCHEME}org/name@revision"
        )
    return found


def fetch(text: str, *, cache: Path | None = None) -> Fetched:
    """Download what a merge reads of a model, into the cache that transformers uses.

    Weights are safetensors files; code, pickles and other formats stay where they are.
    Without a connection, a complete earlier download of the revision is used.

    Args:
        text: ``org/name``, with ``@revision`` (branch, tag or commit) if wanted.
        cache: another folder than the usual one of ``huggingface_hub``.

    Raises:
        UsageError: whatever stands in the way, in two lines.
    """
    repo, wanted = _address(text)
    need("reading a model from the Hub")
    import huggingface_hub

    with explained(repo, wanted):
        revision = huggingface_hub.resolve_revision(
            repo, revision=wanted, cache_dir=cache
        )
        names = _names(repo, revision.resolved, cache)
        files = choose(names, repo)
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache,
            allow_patterns=[glob.escape(name) for name in files],
        )
    return Fetched(path=Path(folder), repo=repo, revision=revision.resolved)


def _names(repo: str, commit: str, cache: Path | None) -> list[str]:
    """The files of a commit; what an earlier download noted needs no network."""
    import huggingface_hub
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree: Iterable[Any] = huggingface_hub.get_cached_repo_tree(
            repo, revision=commit, cache_dir=cache
        )
    except CachedRepoTreeNotFoundError:
        tree = huggingface_hub.list_repo_tree(repo, recursive=True, revision=commit)
    # Folders have no size.
    return [entry.path for entry in tree if hasattr(entry, "size")]


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a model merged by mtk",
    overwrite: bool = False,
) -> str:
    """Upload a merged model, complete and in one commit; returns its address.

    Everything is checked first. A repository that holds files is only replaced with
    ``overwrite``; then what is not part of the new model goes in the same commit.

    Args:
        folder: written by mtk, and unchanged since, file by file.
        repo: ``org/name``, created if there is none.
        private: for a new repository; an existing public one is then refused.
        token: instead of the one that ``huggingface_hub`` finds. Never printed or kept.
        revision: another branch than ``main``, created if there is none.
        message: of the commit.
        overwrite: replace what a repository holds.

    Raises:
        UsageError: whatever stands in the way. The branch is as it was, unless the
            message says that something did not arrive.
    """
    name, at = _address(repo)
    if "/" not in name:
        raise UsageError(f"{repo!r} lacks an owner: write org/name")
    branch = revision or at
    files = _merged_files(folder)
    need("pushing to the Hub")
    import huggingface_hub

    with explained(name, branch):
        api = huggingface_hub.HfApi(token=token)
        head, old = _ready(api, name, branch, private=private, overwrite=overwrite)
        gone = old - files.keys() - {".gitattributes"}
        done = api.create_commit(
            name,
            operations=[
                *(
                    huggingface_hub.CommitOperationDelete(path_in_repo=file)
                    for file in sorted(gone)
                ),
                *(
                    huggingface_hub.CommitOperationAdd(
                        path_in_repo=file, path_or_fileobj=folder / file
                    )
                    for file in files
                ),
            ],
            commit_message=message,
            revision=branch,
            parent_commit=head,  # refused if someone else wrote meanwhile
        )
        _check_arrived(api, name, done.oid, files)
        address = f"{api.endpoint}/{name}"
    return f"{address}/tree/{branch}" if branch else address


def _merged_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file of a complete merge, with its size and hash."""
    from mtk.folders import MANIFEST, check_manifest, files_in, sha256

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    manifest = check_manifest(folder, contents=True)
    if manifest is None:
        raise UsageError(
            f"{folder} has no {MANIFEST} of mtk, so it is no complete merge\n"
            "Only folders that mtk merge wrote are pushed"
        )
    files = {
        **{name: dict(entry) for name, entry in manifest["outputs"].items()},
        MANIFEST: sha256(folder / MANIFEST),
    }
    for file in files_in(folder):
        if (name := file.relative_to(folder).as_posix()) not in files:
            raise UsageError(
                f"{file} is not part of the merge ({MANIFEST} does not name {name})\n"
                "Move it away and push again; nothing was uploaded"
            )
    return files


def _ready(
    api: HfApi, repo: str, branch: str | None, *, private: bool, overwrite: bool
) -> tuple[str | None, set[str]]:
    """The head to write on and the files it has, in a repository that may be written."""
    from huggingface_hub.errors import (
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        info = api.model_info(repo)
    if private and info.private is False:
        raise UsageError(
            f"{repo} exists and is public; nothing was uploaded\n"
            "Make it private, or push to another name; in Python: private=False"
        )
    if branch:
        try:
            info = api.model_info(repo, revision=branch)
        except RevisionNotFoundError:
            api.create_branch(repo, branch=branch, exist_ok=True)
            info, overwrite = api.model_info(repo, revision=branch), True
    old = {file.rfilename for file in info.siblings or ()}
    if old - {".gitattributes"} and not overwrite:
        raise UsageError(
            f"{repo} holds {len(old)} files already; nothing was uploaded\n"
            f"Push to a branch ({repo}@NAME) or elsewhere; in Python: overwrite=True"
        )
    return info.sha, old


def _check_arrived(
    api: HfApi, repo: str, commit: str, files: dict[str, dict[str, Any]]
) -> None:
    """A ``.gitignore`` in a repository drops files in silence; so look."""
    there: dict[str, Any] = {
        entry.path: entry
        for entry in api.list_repo_tree(repo, recursive=True, revision=commit)
    }
    for name, entry in files.items():
        found = there.get(name)
        lfs = getattr(found, "lfs", None)
        if getattr(found, "size", None) != entry["bytes"] or (
            lfs is not None and lfs.sha256 != entry["sha256"]
        ):
            raise UsageError(
                f"{repo} at {commit[:12]} lacks {name}, or has something else there\n"
                "Look at its .gitignore and .gitattributes, and push again"
            )
