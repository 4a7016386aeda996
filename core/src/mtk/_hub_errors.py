"""What goes wrong with the Hub, in two lines."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mtk.errors import MtkError, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

# Tokens, should a server repeat one.
_SECRET = re.compile(r"hf_\w{8,}")


def need(what: str) -> None:
    """Refuse where the optional library is missing."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{what} needs huggingface_hub ({first_line(error)})\n"
            'Install it: pip install "mtk-core[hub]"'
        ) from error


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the library raises into two lines."""
    try:
        yield
    except MtkError:
        raise
    except Exception as error:
        raise UsageError(_explain(error, repo, revision)) from error


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    # The library hides an answer of the Hub behind "not in the cache".
    if isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__
    place = f"{constants.ENDPOINT}/{repo}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated: its authors decide who may download it\n"
            f"Ask for access at {place}, then {login}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the Hub has no model {repo}, or does not show it to you\n"
            f"Check the name; if the model is private, {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repo} has no branch, tag or commit {revision or 'main'!r}\n"
            f"Its branches and tags are listed at {place}/tree/main"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in {401, 403}:
            return f"the Hub refuses this for {repo} (HTTP {status})\nTo be let in, {login}"
        said = _SECRET.sub("hf_...", first_line(Exception(error.server_message or "")))
        return (
            f"{repo}: the Hub answered with HTTP {status}\n{said or 'Try again later'}"
        )
    unreachable = (
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        errors.OfflineModeIsEnabled,
    )
    # Errors of the connection come from httpx, or httpx2 since version 2 of the library.
    if isinstance(error, unreachable) or type(error).__module__.startswith("httpx"):
        return (
            f"{constants.ENDPOINT} is out of reach, so {repo} is neither read nor written\n"
            "Check the connection and HF_HUB_OFFLINE; a complete earlier download is used"
        )
    return f"{repo}: {type(error).__name__}: {_SECRET.sub('hf_...', first_line(error))}"
