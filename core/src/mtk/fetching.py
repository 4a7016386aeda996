"""Downloads of tracks from the Hub, begun only where the user asked for them."""

from __future__ import annotations

import importlib
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_MINUTE, _PATIENCE = 60.0, 10.0  # seconds


def library(name: str, install: str) -> Any:
    """A module that not every installation has; ``install`` is pip's argument.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"--download needs {name.partition('.')[0]}, which is not installed\n"
            f'pip install "{install}"'
        ) from error


class Host:
    """The Hub's address, asked once in a while whether anybody answers there.

    Its clients try every file several times, and say so in lines of their own.
    """

    def __init__(self) -> None:
        self._silent_at = -_MINUTE

    def check(self, instead: str) -> None:
        """Refuse to begin where nobody answers, and for a minute after that."""
        constants: Any = importlib.import_module("huggingface_hub.constants")
        utils: Any = importlib.import_module("huggingface_hub.utils")
        if constants.HF_HUB_OFFLINE:
            return  # the clients look into their caches, and try nothing else
        if time.monotonic() - self._silent_at < _MINUTE:
            raise UsageError("not tried, for the same reason")
        try:
            utils.get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
        except Exception as error:  # whatever the Hub's client raises
            self._silent_at = time.monotonic()
            raise UsageError(
                f"{constants.ENDPOINT} could not be reached: {first_line(error)}\n"
                f"Nothing was lost, and no other file is tried now. {instead}"
            ) from error


host = Host()


@contextmanager
def explained(what: str, instead: str) -> Iterator[None]:
    """A block that downloads: every failure says what was wanted, and what to do instead.

    The library ``huggingface_hub`` must be there.
    """
    host.check(instead)
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # whatever the Hub's client raises
        raise UsageError(
            f"{what} could not be had from the Hub: {first_line(error)}\n{instead}"
        ) from error
