"""``mtk.merge``: from models and a method, or from a recipe, to a merged model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from mtk.adapters import Layout
    from mtk.assembly import Part
    from mtk.declare import Method, TensorInfo
    from mtk.job import Job
    from mtk.loading import Registry
    from mtk.opening import Input, Model
    from mtk.recipes import Recipe
    from mtk.results import Merged, Report


@dataclass(slots=True, kw_only=True)
class Plan:
    """A merge that is ready to run: everything is open, nothing is read.

    Args:
        parts: the jobs, and the tensors that come from each.
        layout: how the result is stored.
        recipe: the request.
        inputs: every model that is read, by the name the user gave it.
        stages: the parts of all earlier stages.
        donor: the model that gives layout, config and tokenizer.
        notes: what was decided on the way, for the user to know.
    """

    parts: list[Part]
    layout: Layout
    recipe: Recipe
    inputs: dict[str, Input] = field(default_factory=dict)
    stages: list[Part] = field(default_factory=list)
    donor: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def method(self) -> Method:
        """The method of the first part."""
        return self.parts[0].job.method

    @property
    def output(self) -> str:
        """``static``, ``per_task`` or ``routed``."""
        return self.method.output

    def infos(self) -> dict[str, TensorInfo]:
        """All tensors of the result."""
        from mtk.assembly import result

        return result(self.parts)


def merge(
    method: str | Path | Method | Recipe,
    *,
    experts: Sequence[Model] = (),
    base: Model | None = None,
    params: Mapping[str, Any] | None = None,
    statistics: Mapping[str, Sequence[Model]] | Sequence[Model] | None = None,
    tasks: Sequence[Any] = (),
    only: Sequence[str] = ("*",),
    masks: Mapping[str, Tensor] | None = None,
    dtype: str | None = None,
    donor: str | None = None,
    tokenizer: str = "donor",
    vocabulary: str = "refuse",
    shard_size: int | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    hub: bool = False,
    allow_pickle: bool = False,
    workers: int | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    registry: Registry | None = None,
) -> Merged:
    """Merge experts into one model.

    Args:
        method: a method's name (``ties``, ``my-package:ties``) or declaration; or a
            recipe, or the path of one (``merge.toml``, mergekit's ``config.yml``), which
            then says everything down to ``shard_size``.
        experts: paths, state dicts, or open checkpoints.
        base: the common starting model, where the method needs one. A base that is given
            to a method that needs none only decides dtypes and untouched tensors.
        params: values by name; what is absent has its declared default. A
            :class:`mtk.recipes.Gradient` or :class:`mtk.recipes.Choice` varies it over
            layers and tensors.
        statistics: name -> one file or state dict per expert. A plain sequence will do
            for a method that needs one statistic.
        tasks: model scope only: one :class:`mtk.live.LiveTask` per expert.
        only: tensor-name patterns; all other tensors are taken from the base.
        masks: keep masks ``mask.EXPERT.TENSOR`` that replace a random draw.
        dtype: of the result (``bfloat16`` ...); by default the donor's.
        donor: the model folder that gives config and tokenizer; by default the base, or
            else the first expert.
        tokenizer: ``donor``, ``union``, or the path of a folder with tokenizer files.
        vocabulary: ``refuse`` models with unlike vocabularies, keep the ``base``'s, or
            take the ``union``.
        shard_size: most bytes of one file of weights.
        output: a folder, or a ``.safetensors`` file; static results are streamed into it
            and not kept in memory.
        overwrite: replace the output if it exists.
        hub: download models that are given by an id of the Hugging Face Hub.
        allow_pickle: read ``.bin`` and ``.pt`` files too, without running their code.
        workers: threads; the result is the same for every number of them.
        device: ``cpu`` or ``cuda``.
        progress: is told how many bytes of inputs were read since the last call.
        registry: plugins to use instead of the installed ones.

    Returns:
        The merged tensors (unless written), and a report of what was done.

    Raises:
        UsageError: the request is wrong; nothing was written.
        MethodError: the method failed; nothing was written.
    """
    plan = prepare(
        method,
        experts=experts,
        base=base,
        params=params,
        statistics=statistics,
        tasks=tasks,
        only=only,
        masks=masks,
        dtype=dtype,
        donor=donor,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        shard_size=shard_size,
        output=output,
        overwrite=overwrite,
        hub=hub,
        allow_pickle=allow_pickle,
        registry=registry,
    )
    return execute(
        plan,
        None if output is None else Path(output),
        overwrite=overwrite,
        workers=workers,
        device=device,
        progress=progress,
    )


def prepare(
    method: str | Path | Method | Recipe,
    *,
    experts: Sequence[Model] = (),
    base: Model | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    hub: bool = False,
    allow_pickle: bool = False,
    registry: Registry | None = None,
    strict: bool = True,
    **given: Any,
) -> Plan:
    """Open and check everything that :func:`merge` needs; read no tensor.

    Arguments are those of :func:`merge`. The plan can be executed, or only looked at;
    without ``strict``, :func:`mtk.job.mismatches` tells what does not fit.
    """
    from mtk import loading
    from mtk.recipes import Recipe
    from mtk.request import Request, from_arguments, is_recipe, read_recipe

    registry = registry or loading.load()
    if is_recipe(method, registry):
        request = Request(recipe=read_recipe(method, registry))
        odd = [name for name, value in given.items() if value not in _DEFAULTS[name]]
        if experts or base is not None or odd:
            what = ", ".join([*(["experts or base"] if experts or base else []), *odd])
            raise UsageError(f"a recipe says everything itself; leave out {what}")
    else:
        assert not isinstance(method, Path | Recipe)
        request = from_arguments(method, experts=experts, base=base, **given)
    return request.plan(
        registry,
        None if output is None else Path(output),
        overwrite=overwrite,
        hub=hub,
        allow_pickle=allow_pickle,
        strict=strict,
    )


_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "params": (None, {}),
    "statistics": (None, (), []),
    "tasks": ((),),
    "only": (("*",), ["*"]),
    "masks": (None,),
    "dtype": (None,),
    "donor": (None,),
    "tokenizer": ("donor",),
    "vocabulary": ("refuse",),
    "shard_size": (None,),
}


def execute(
    plan: Plan | Job,
    target: Path | None = None,
    *,
    overwrite: bool = True,
    workers: int | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Merged:
    """Run a plan; write a static result to ``target`` tensor by tensor, or keep it.

    ``workers`` threads share the tensors; by default one per processor, at most four.
    The result is the same for every number of them.
    """
    from mtk.engine import run
    from mtk.measure import Measure

    if not isinstance(plan, Plan):
        plan = _of_job(plan)
    merged = _empty(plan)
    options: dict[str, Any] = {"device": device, "progress": progress}
    with Measure() as measured:
        if target is not None and plan.output == "static":
            _write(plan, target, merged, workers, options, overwrite=overwrite)
            merged.path = target
        else:
            for part in plan.parts:
                _collect(
                    part.job, merged, run(part.job, part.names, workers, **options)
                )
            if target is not None:
                merged.save(target, overwrite=True)
                merged.path = target
    merged.report = _joined(part.job.report for part in plan.parts)
    merged.report.seconds, merged.report.peak_bytes = (
        measured.seconds,
        measured.peak_bytes,
    )
    return merged


def _empty(plan: Plan) -> Merged:
    from mtk.results import Merged

    first = plan.parts[0].job
    merged = Merged(
        method=first.method,
        params=dict(first.params),
        notes=list(plan.notes),
        donor=plan.donor,
    )
    for part in plan.parts:
        name = part.job.method.name
        merged.parts[name] = merged.parts.get(name, 0) + len(part.names)
    return merged


def _of_job(job: Job) -> Plan:
    from mtk.adapters import Layout
    from mtk.assembly import Part
    from mtk.recipes import Recipe

    return Plan(
        parts=[Part(job=job, names=tuple(job.first.names()))],
        layout=Layout(),
        recipe=Recipe(method=job.method.name, params=job.params),
    )


def _write(
    plan: Plan,
    target: Path,
    merged: Merged,
    workers: int | None,
    options: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Stream the parts into a file or a folder."""
    from mtk.engine import write
    from mtk.provenance import write_folder
    from mtk.shards import order, sole, write_file
    from mtk.shards import plan as spread

    alone = target.suffix == ".safetensors"
    layout = sole(plan.layout) if alone else plan.layout
    most = sys.maxsize if alone else plan.recipe.shard_size
    shards = spread(layout, plan.infos().values(), most)

    def fill(weights: Any) -> None:
        for part in plan.parts:
            names = order(layout, shards, part.names)
            write(part.job, names, weights, workers, **options)

    if alone:
        write_file(target, layout, shards, merged.metadata(), fill)
    else:
        write_folder(plan, target, shards, merged.metadata(), fill, overwrite=overwrite)


def _collect(job: Job, merged: Merged, stream: Any) -> None:
    from mtk.results import PerTask, Routed

    if job.method.output == "per_task":
        merged.codes = merged.codes or [{} for _ in job.experts]
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


def _joined(reports: Iterable[Report]) -> Report:
    """One report for all jobs."""
    first, *others = reports
    total = replace(first)
    for report in others:
        total.passes = max(total.passes, report.passes)
        total.tied = total.tied | report.tied
        total.copied = total.copied + report.copied
        for statistic, names in report.without_statistic.items():
            known = total.without_statistic.get(statistic, [])
            total.without_statistic[statistic] = known + names
    return total
