"""``mtk merge --dry-run``: all checks of a merge, and none of its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mtk.declare import Method
    from mtk.loading import Registry


def rehearse(
    method: Method,
    *,
    experts: Sequence[str],
    base: str | None,
    params: dict[str, Any],
    statistics: Any,
    only: Sequence[str],
    output: Path | None,
    overwrite: bool,
    registry: Registry,
) -> dict[str, Any]:
    """Check a request as :func:`mtk.merge` does; say what it would do.

    Only headers of the checkpoints are read.
    """
    from mtk.job import check_structure
    from mtk.merging import prepare

    job = prepare(
        method,
        experts=experts,
        base=base,
        params=params,
        statistics=statistics,
        only=only,
        output=output,
        overwrite=overwrite,
        registry=registry,
    )
    check_structure(job)
    infos = [job.first.info(name) for name in job.first.names()]
    merged = sum(job.merged(info) for info in infos)
    return {
        "method": method.name,
        "result": method.output.replace("_", "-"),
        "params": dict(job.params),
        "base": base,
        "experts": list(experts),
        "tensors": len(infos),
        "merged": merged,
        "copied": len(infos) - merged,
        "path": output,
    }
