"""``python -m mtk_cli`` is the command ``mtk``."""

from __future__ import annotations

from mtk_cli.main import run

run()
