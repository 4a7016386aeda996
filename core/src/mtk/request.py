"""A request to merge, from arguments or from a recipe file, made into a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.opening import Allowed, check_needs, open_statistics
from mtk.recipes import Recipe, Source
from mtk.sources import Opener

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtk.assembly import Part
    from mtk.declare import Method
    from mtk.loading import Registry
    from mtk.merging import Plan
    from mtk.opening import Model

DTYPES = ("float32", "float16", "bfloat16", "float64")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")
POLICIES = ("refuse", "base", "union")


def is_recipe(method: str | Path | Method | Recipe, registry: Registry) -> bool:
    """Whether this is a recipe or the path of one, and not a method."""
    if isinstance(method, Recipe | Path):
        return True
    if not isinstance(method, str):
        return False
    return Path(method).suffix in {".toml", *_suffixes(registry)}


def _suffixes(registry: Registry) -> dict[str, Any]:
    return {
        suffix: provided.item.target
        for provided in registry.recipes
        for suffix in provided.item.suffixes
    }


def read_recipe(source: Any, registry: Registry) -> Recipe:
    """The recipe at a path, by the format that its name says."""
    from mtk.loading import resolve
    from mtk.recipe_toml import read

    if isinstance(source, Recipe):
        return source
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"no such recipe: {path}")
    if path.suffix == ".toml":
        return read(path)
    formats = _suffixes(registry)
    if path.suffix not in formats:
        known = ", ".join([".toml", *sorted(formats)])
        raise UsageError(f"{path}: recipes are files that end in {known}")
    recipe: Recipe = resolve(formats[path.suffix])(path)
    return recipe


@dataclass(slots=True, kw_only=True)
class Request:
    """A recipe, with what cannot stand in one.

    Args:
        models: source name -> model, where the name is not its path.
        declared: the method itself, where it was given as a declaration.
        given: ``masks`` and ``tasks`` for the jobs.
    """

    recipe: Recipe
    models: Mapping[str, Model] = field(default_factory=dict)
    declared: Method | None = None
    statistics: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def plan(
        self,
        registry: Registry,
        output: Path | None = None,
        *,
        overwrite: bool = False,
        hub: bool = False,
        allow_pickle: bool = False,
        strict: bool = True,
    ) -> Plan:
        """Open everything and check it; not ``strict``: leave mismatches to be listed."""
        from mtk.job import check_structure, takes
        from mtk.merging import Plan

        for each in (self.recipe, *self.recipe.stages):
            _check_words(each)
        allowed = Allowed(hub=hub, pickle=allow_pickle)
        opener = Opener(self.recipe, self.models, registry, allowed)
        if output is not None:
            _check_output(output, opener.paths(), overwrite=overwrite)
        made = self.parts(opener, registry)
        donor, layout = opener.layout()
        outputs = {part.job.method.output for part in made}
        plan = Plan(
            parts=made,
            layout=layout,
            recipe=self.recipe,
            inputs={i.name: i for i in opener.inputs.values() if not i.computed},
            stages=opener.computed(),
            donor=donor,
            notes=[*self.recipe.notes, *opener.notes, *_left_behind(output)],
        )
        folder = output is not None and output.suffix != ".safetensors"
        if outputs != {"static"} and (len(made) > 1 or folder):
            kind = min(outputs - {"static"}).replace("_", "-")
            raise UsageError(
                f"{self.recipe.method} gives a {kind} result, which is one file by "
                "itself\nWrite it to NAME.safetensors, with one method and no slabs"
            )
        infos = plan.infos().values()
        if not any(takes(self.recipe.only, info) for info in infos):
            patterns = ", ".join(self.recipe.only)
            raise UsageError(f"no floating-point tensor matches {patterns}")
        for part in (*plan.stages, *made) if strict else ():
            check_structure(part.job)
        return plan

    def parts(self, opener: Opener, registry: Registry) -> list[Part]:
        """The jobs of the recipe, with everything open."""
        from mtk.assembly import parts

        def find(name: str) -> Method:
            if self.declared is not None and name == self.declared.name:
                return self.declared
            return registry.method(name).item

        given = dict(self.given)
        models, slabs = opener.models()
        method = find(self.recipe.method)
        if models is not None:
            check_needs(method, models.experts, models.base, given.get("tasks", ()))
            given["statistics"] = open_statistics(
                method, self.statistics, len(models.experts), registry
            )
        made = parts(self.recipe, find, models, slabs, **given)
        for part in made:
            job = part.job
            for statistic in set(job.method.needs.statistics) - set(job.statistics):
                raise UsageError(
                    f"{job.method.name} needs the statistic {statistic!r}, which neither "
                    f"a rule nor a slab nor a stage of a recipe can have\n"
                    f"Merge with --method {job.method.name} and --statistics instead"
                )
            if job.method.needs.roles:
                for source in job.sources:
                    getattr(source, "settle", lambda: None)()
            check_needs(job.method, job.experts, job.base, job.tasks)
        return made


def _check_words(recipe: Recipe) -> None:
    for what, value, known in (
        ("dtype", recipe.dtype, (None, *DTYPES)),
        ("vocabulary", recipe.vocabulary, POLICIES),
    ):
        if value not in known:
            words = ", ".join(str(word) for word in known if word)
            place = f"{recipe.where}: " if recipe.where else ""
            raise UsageError(f"{place}{what} is {value!r}; write one of {words}")
    size = recipe.shard_size
    if size is not None and (type(size) is not int or size < 1):
        raise UsageError(f"shard_size is {size!r}; give a number of bytes")


def _left_behind(output: Path | None) -> list[str]:
    """A word about partial folders of runs that were interrupted."""
    from mtk.folders import stale

    found = [] if output is None else stale(output)
    if not found:
        return []
    return [f"left behind by an interrupted merge, to be removed: {found[0]}"]


def _check_output(path: Path, inputs: list[Path], *, overwrite: bool) -> None:
    from mtk.files import check_target
    from mtk.folders import check_folder

    if path.suffix in PICKLES:
        raise UsageError(f"{path}: write a folder, or a file called NAME.safetensors")
    check = check_target if path.suffix == ".safetensors" else check_folder
    check(path, inputs, overwrite=overwrite)


def from_arguments(
    method: str | Method,
    *,
    experts: Sequence[Model],
    base: Model | None,
    params: Mapping[str, Any] | None = None,
    statistics: Any = None,
    tasks: Sequence[Any] = (),
    only: Sequence[str] = ("*",),
    masks: Mapping[str, Tensor] | None = None,
    **words: Any,
) -> Request:
    """A request from the arguments of :func:`mtk.merge`."""
    models: dict[str, Model] = {}
    paths = {str(m) for m in (base, *experts) if isinstance(m, str | Path)}

    def source(model: Model, label: str) -> Source:
        if isinstance(model, str | Path):
            return Source(path=str(model))
        name = label
        while name in paths:
            name += " in memory"
        models[name] = model
        return Source(path=name)

    named = method if isinstance(method, str) else method.name
    recipe = Recipe(
        method=named,
        base=None if base is None else source(base, "base"),
        experts=tuple(source(e, f"expert {i}") for i, e in enumerate(experts)),
        params=dict(params or {}),
        only=tuple(only),
        **words,
    )
    return Request(
        recipe=recipe,
        models=models,
        declared=None if isinstance(method, str) else method,
        statistics=statistics,
        given={"masks": masks, "tasks": tasks},
    )
