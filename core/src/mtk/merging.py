"""``mtk.merge``: from models and a method's name to a merged model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.parameters import complete

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.declare import Method
    from mtk.job import Job
    from mtk.loading import Registry
    from mtk.results import Merged

    Model = Path | str | Mapping[str, Tensor] | Checkpoint


def merge(
    method: str | Method,
    *,
    experts: Sequence[Model],
    base: Model | None = None,
    params: Mapping[str, Any] | None = None,
    statistics: Mapping[str, Sequence[Model]] | Sequence[Model] | None = None,
    tasks: Sequence[Any] = (),
    only: Sequence[str] = ("*",),
    masks: Mapping[str, Tensor] | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    registry: Registry | None = None,
) -> Merged:
    """Merge experts into one model.

    Args:
        method: a method's name (``ties``, ``my-package:ties``) or declaration.
        experts: paths, state dicts, or open checkpoints.
        base: the common starting model, where the method needs one. A base that is given
            to a method that needs none only decides dtypes and untouched tensors.
        params: values by name; what is absent has its declared default.
        statistics: name -> one file or state dict per expert. A plain sequence will do
            for a method that needs one statistic.
        tasks: model scope only: one :class:`mtk.live.LiveTask` per expert.
        only: tensor-name patterns; all other tensors are taken from the base.
        masks: keep masks ``mask.EXPERT.TENSOR`` that replace a random draw.
        overwrite: replace the output if it exists.
        registry: plugins to use instead of the installed ones.
        output: a ``.safetensors`` file; static results are streamed into it and not
            kept in memory.

    Returns:
        The merged tensors (unless written), and a report of what was done.

    Raises:
        UsageError: the request is wrong; nothing was written.
        MethodError: the method failed; nothing was written.
    """
    job = prepare(
        method,
        experts=experts,
        base=base,
        params=params,
        statistics=statistics,
        tasks=tasks,
        only=only,
        masks=masks,
        output=output,
        overwrite=overwrite,
        registry=registry,
    )
    return execute(job, None if output is None else Path(output))


def prepare(
    method: str | Method,
    *,
    experts: Sequence[Model],
    base: Model | None = None,
    params: Mapping[str, Any] | None = None,
    statistics: Mapping[str, Sequence[Model]] | Sequence[Model] | None = None,
    tasks: Sequence[Any] = (),
    only: Sequence[str] = ("*",),
    masks: Mapping[str, Tensor] | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    registry: Registry | None = None,
) -> Job:
    """Open and check everything that :func:`merge` needs; read no tensor.

    Arguments are those of :func:`merge`. The job can be executed, or only looked at.
    """
    from mtk import loading
    from mtk.files import check_target
    from mtk.job import Job

    if output is not None:
        inputs = [
            Path(item) for item in [base, *experts] if isinstance(item, str | Path)
        ]
        check_target(Path(output), inputs, overwrite=overwrite)
    registry = registry or loading.load()
    declared = registry.method(method).item if isinstance(method, str) else method
    opened_base = None if base is None else open_model(base, "base", registry)
    sources = [
        open_model(expert, f"expert {i}", registry, opened_base)
        for i, expert in enumerate(experts)
    ]
    values = complete(
        declared.params, params or {}, owner=declared.name, experts=len(sources)
    )
    _check_needs(declared, sources, opened_base, tasks)
    return Job(
        method=declared,
        experts=sources,
        base=opened_base,
        params=values,
        statistics=_statistics(declared, statistics, len(sources), registry),
        only=only,
        masks=masks,
        tasks=tasks,
    )


def execute(
    job: Job, target: Path | None = None, *, workers: int | None = None
) -> Merged:
    """Run a job; write a static result to ``target`` tensor by tensor, or keep it.

    ``workers`` threads share the tensors; by default one per processor, at most four.
    The result is the same for every number of them.
    """
    from mtk.engine import run, write
    from mtk.measure import Measure
    from mtk.results import Merged, metadata
    from mtk.writing import layout, open_output

    merged = Merged(method=job.method, params=dict(job.params), report=job.report)
    infos = layout(job.first.info(name) for name in job.first.names())
    names = [info.name for info in infos]
    with Measure() as measured:
        if target is not None and job.method.output == "static":
            head = metadata(job.method, job.params)
            with open_output(target, infos, head) as output:
                write(job, names, output, workers)
            merged.path = target
        else:
            _collect(job, merged, run(job, names, workers))
            if target is not None:
                merged.save(target, overwrite=True)
                merged.path = target
    job.report.seconds, job.report.peak_bytes = measured.seconds, measured.peak_bytes
    return merged


def _collect(job: Job, merged: Merged, stream: Any) -> None:
    from mtk.results import PerTask, Routed

    if job.method.output == "per_task":
        merged.codes = [{} for _ in job.experts]
    for name, value in stream:
        if isinstance(value, PerTask):
            merged.tensors[name] = value.shared
            for codes, code in zip(merged.codes, value.codes, strict=True):
                codes[name] = dict(code)
            merged.dtypes[name] = job.first.info(name).dtype
            if job.method.needs.base and job.base is not None:
                merged.base[name] = job.base.read(name)
        elif isinstance(value, Routed):
            merged.tensors[name] = value.value
            if value.parts:
                layer = job.first.info(name).layer
                merged.routing.setdefault(layer, {}).update(value.parts)
        else:
            merged.tensors[name] = value


def open_model(
    model: Model, label: str, registry: Registry, base: Checkpoint | None = None
) -> Checkpoint:
    """A path, a state dict or an open checkpoint, as a checkpoint.

    The ``base`` is for adapters whose files hold differences to it.
    """
    from collections.abc import Mapping

    from mtk.checkpoint import StateDict
    from mtk.loading import resolve

    if isinstance(model, Mapping):
        return StateDict(model, label)
    if not isinstance(model, str | Path):
        return model
    path = Path(model)
    if not path.exists():
        raise CheckpointError(f"{label}: no such file or folder: {path}")
    # Plain checkpoints come last: a folder of an adapter holds safetensors files as well.
    for provided in sorted(registry.adapters, key=lambda p: p.item.kind == "full"):
        target = resolve(provided.item.target)
        if target.matches(path):
            opened: Checkpoint = target.open(path, base=base)
            return opened
    known = ", ".join(provided.item.name for provided in registry.adapters) or "none"
    raise CheckpointError(
        f"{label}: no installed adapter opens {path}\n"
        f"Adapters: {known} (mtk list-adapters); safetensors files and folders are read"
    )


def _statistics(
    method: Method,
    given: Mapping[str, Sequence[Model]] | Sequence[Model] | None,
    experts: int,
    registry: Registry,
) -> dict[str, list[Checkpoint]]:
    from collections.abc import Mapping

    needed = method.needs.statistics
    if not isinstance(given, Mapping):
        if given and len(needed) != 1:
            need = " and ".join(needed) or "none"
            raise UsageError(
                f"{method.name} needs statistics: {need}; name what you give"
            )
        given = dict.fromkeys(needed, given or ())
    files = {}
    for name in needed:
        models = given.get(name) or ()
        if len(models) != experts:
            raise UsageError(
                f"{method.name} needs the statistic {name!r} of each of {experts} experts; "
                f"{len(models)} given\nGive --statistics once per expert, in their order"
            )
        files[name] = [
            open_model(model, f"{name} of expert {i}", registry)
            for i, model in enumerate(models)
        ]
    return files


def _check_needs(
    method: Method,
    experts: Sequence[Checkpoint],
    base: Checkpoint | None,
    tasks: Sequence[Any],
) -> None:
    needs, count = method.needs, len(experts)
    low, high = needs.experts
    if count < low or (high is not None and count > high):
        takes = (
            str(low)
            if low == high
            else f"at least {low}"
            if high is None
            else f"{low} to {high}"
        )
        raise UsageError(f"{method.name} takes {takes} experts, not {count}")
    if needs.base is True and base is None:
        raise UsageError(f"{method.name} needs the base model; add --base")
    for source in experts:
        if source.kind not in needs.checkpoints:
            raise UsageError(
                f"{method.name} does not merge {source.kind} checkpoints ({source.label})"
            )
    if needs.data != "none" and len(tasks) != count:
        raise UsageError(
            f"{method.name} needs {needs.data} data of each expert's task, and runs in "
            "mtk bench\nFrom Python, give mtk.merge(..., tasks=[...]), one per expert"
        )
