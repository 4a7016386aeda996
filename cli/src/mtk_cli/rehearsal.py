"""``mtk merge --dry-run``: all checks of a merge, and none of its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk_cli import render
from mtk_cli.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk.merging import Plan


def rehearse(
    request: Mapping[str, Any], *, workers: int | None, as_json: bool, quiet: bool
) -> ExitCode:
    """Check a request as :func:`mtk.merge` does; say what it would do and cost.

    Only headers and configs are read. Every mismatch is listed, not just the first.
    """
    from mtk.job import mismatches
    from mtk.merging import prepare

    plan = prepare(**request, strict=False)
    jobs = [part.job for part in (*plan.stages, *plan.parts)]
    # Jobs of one recipe share their models, and some of what is wrong with them.
    found_wrong = (text.splitlines()[0] for job in jobs for text in mismatches(job))
    wrong = list(dict.fromkeys(found_wrong))
    found = {**_facts(plan), **({} if wrong else _costs(plan, workers))}
    found |= {"path": request["output"], "mismatches": wrong}
    if as_json:
        render.json_text({"dry_run": True, **found})
    elif not quiet:
        _write(found)
    if wrong and not as_json:
        many = f"{len(wrong)} mismatches" if len(wrong) > 1 else "1 mismatch"
        render.error(f"{many}; nothing was merged, and nothing can be: {wrong[0]}")
    return ExitCode.USAGE if wrong else ExitCode.DONE


def _facts(plan: Plan) -> dict[str, Any]:
    infos = plan.infos()
    merged = sum(
        part.job.merged(part.job.first.info(name))
        for part in plan.parts
        for name in part.names
    )
    job = plan.parts[0].job
    return {
        "method": ", ".join(dict.fromkeys(p.job.method.name for p in plan.parts)),
        "result": plan.output.replace("_", "-"),
        "params": dict(job.params),
        "base": None if job.base is None else job.base.label,
        "experts": [expert.label for expert in job.experts],
        "tensors": len(infos),
        "merged": merged,
        "copied": len(infos) - merged,
        "config from": plan.donor,
        "notes": list(plan.notes),
    }


def _costs(plan: Plan, workers: int | None) -> dict[str, Any]:
    from mtk.estimates import expected_bytes, expected_seconds
    from mtk.memory import expected_memory
    from mtk.shards import size_of

    jobs = [part.job for part in (*plan.stages, *plan.parts)]
    return {
        "reads": sum(expected_bytes(job) for job in jobs),
        "memory": max(expected_memory(job, workers) for job in jobs),
        "disk": sum(size_of(info) for info in plan.infos().values()),
        "seconds": sum(expected_seconds(job, workers) for job in jobs),
    }


def _write(found: Mapping[str, Any]) -> None:
    for label, value in found.items():
        if label == "mismatches" or (label == "notes" and not value):
            continue
        text = _text(value)
        if label in {"reads", "disk", "memory"}:
            text = render.size(value)
        elif label == "seconds":
            text = (
                f"about {value:.0f} s from a warm cache" if value >= 1 else "below 1 s"
            )
        render.line(f"{label + ':':13} {text}")
    for text in found["mismatches"]:
        render.line(f"{'mismatch:':13} {text}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return render.pairs(value) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
