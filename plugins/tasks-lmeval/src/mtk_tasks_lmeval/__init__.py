"""Tracks of one's own for mtk: a TOML file, and lm-evaluation-harness."""

from __future__ import annotations

from mtk_tasks_lmeval.track_file import load_track

__all__ = ["load_track"]
