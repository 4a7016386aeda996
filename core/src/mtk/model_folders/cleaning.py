"""What configs name that no loader should fetch or run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def clean(value: Any) -> Any:
    """A config without the keys that make a loader fetch or run code.

    ``auto_map`` names Python files, and an ``attn_implementation`` may name a repository
    of compiled kernels.
    """
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items() if not _runs_code(k, v)}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def _runs_code(key: str, value: Any) -> bool:
    if key.endswith("_implementation"):
        return isinstance(value, dict) or "/" in str(value)
    return key in ("auto_map", "custom_pipelines")


def fetches(config: Any) -> bool:
    """Whether a config asks for pretrained weights of another model."""
    if isinstance(config, dict):
        return bool(config.get("use_pretrained_backbone")) or any(
            fetches(value) for value in config.values()
        )
    return False


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let the libraries' own client of the Hub refuse every request."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
