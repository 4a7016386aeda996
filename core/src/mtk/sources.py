"""Opening what a recipe names: stages, LoRA adapters, vocabularies, and the donor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.assembly import Opened, layers_of, sources_of
from mtk.errors import CheckpointError, UsageError, first_line
from mtk.opening import Allowed, Input, open_input

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk.adapters import Checkpoint, Layout
    from mtk.loading import Registry
    from mtk.opening import Model
    from mtk.recipes import Recipe, Source
    from mtk.vocabulary import Vocabulary

MOST_LINES = 3
_WORDS = ("donor", "base", "union")


class Opener:
    """Opens the sources of one recipe, each once.

    Args:
        recipe: what names them.
        models: source name -> model, where the name is not its path.
        registry: the installed adapters and methods.
        allowed: what the user has agreed to.
    """

    def __init__(
        self,
        recipe: Recipe,
        models: Mapping[str, Model],
        registry: Registry,
        allowed: Allowed,
    ) -> None:
        self._recipe, self._models = recipe, models
        self._registry, self._allowed = registry, allowed
        self._stages = {stage.name: stage for stage in recipe.stages}
        self._changes: dict[str, Any] = {}
        self.inputs: dict[str, Input] = {}
        self.notes: list[str] = []

    def paths(self) -> list[Path]:
        """All local files and folders that the recipe and its stages name."""
        found: list[Path] = []
        for recipe in (self._recipe, *self._recipe.stages):
            for source in sources_of(recipe):
                model = self._models.get(source.path, source.path)
                found += [Path(model)] if isinstance(model, str | Path) else []
                found += [Path(source.adapter)] if source.adapter else []
        return [path for path in found if path.exists()]

    def models(self) -> tuple[Opened | None, list[Any]]:
        """The models of the recipe, or those of each slab."""
        recipe = self._recipe
        if recipe.slabs:
            slabs = []
            for slab in recipe.slabs:
                base = self._base(slab.base or recipe.base)
                experts = [self._open(s, "expert", base) for s, _, _ in slab.sources]
                slabs.append((slab, Opened(experts=experts, base=base)))
            self._changes["layers"] = layers_of(recipe.slabs)
            self._same_vocabulary()
            return None, slabs
        if not recipe.experts:
            raise UsageError(f"{recipe.where or recipe.method}: no experts to merge")
        base = self._base(recipe.base)
        experts, wrong = [], []
        for number, source in enumerate(recipe.experts):
            try:
                experts.append(self._open(source, f"expert {number}", base))
            except CheckpointError as error:
                wrong.append(error)
        if wrong:
            raise _joined(wrong)
        return self._united(Opened(experts=experts, base=base)), []

    def _base(self, source: Source | None) -> Checkpoint | None:
        return None if source is None else self._open(source, "base", None)

    def _open(self, source: Source, label: str, base: Checkpoint | None) -> Checkpoint:
        found = self._input(source.path, label, base).checkpoint
        if source.adapter:
            found = self._input(source.adapter, label, found).checkpoint
        if source.rename:
            from mtk.views import with_prefixes

            found = with_prefixes(found, source.rename)
        return found

    def _input(self, name: str, label: str, base: Checkpoint | None) -> Input:
        if name not in self.inputs:
            if name in self._stages:
                self.inputs[name] = self._stage(self._stages[name])
            else:
                self.inputs[name] = open_input(
                    self._models.get(name, name),
                    label,
                    self._registry,
                    base,
                    self._allowed,
                )
        return self.inputs[name]

    def _stage(self, stage: Recipe) -> Input:
        """An earlier stage, as the input of this recipe. It may name stages itself."""
        from mtk.computed import Computed
        from mtk.request import Request

        earlier = self._recipe.stages
        known = earlier[: [each.name for each in earlier].index(stage.name)]
        inner = replace(stage, stages=(*stage.stages, *known))
        opener = Opener(inner, self._models, self._registry, self._allowed)
        request = Request(recipe=inner, models=self._models)
        found = request.parts(opener, self._registry)
        for name, item in opener.inputs.items():
            self.inputs.setdefault(name, item)
        self.notes += [
            f"{stage.name}: {note}" for note in (*stage.notes, *opener.notes)
        ]
        donor, _ = opener.layout()
        like = opener.inputs.get(donor)
        return Input(
            name=stage.name,
            checkpoint=Computed(found, stage.name),
            target=_Like(like) if like else None,
            path=Path(stage.name) if like else None,
            computed=True,
        )

    def _united(self, models: Opened) -> Opened:
        """The models under one vocabulary, if theirs differ and a policy allows it."""
        from mtk.vocabulary import Rows, plan

        recipe = self._recipe
        sources = [*([recipe.base] if recipe.base else []), *recipe.experts]
        policy = "union" if recipe.tokenizer == "union" else recipe.vocabulary
        found = [self._vocabulary(source) for source in sources]
        made = plan(
            found,
            [self.inputs[source.path].name for source in sources],
            policy=policy,
            base=0 if recipe.base else None,
            donor=self._tokens(),
        )
        if made is None:
            return models
        opened = [*([models.base] if models.base else []), *models.experts]
        rows = [Rows(opened, number, made) for number in range(len(opened))]
        self._changes |= {"rows": made.rows, "added_tokens": made.added}
        self.notes.append(
            f"vocabulary: {policy}, {made.rows} rows, {len(made.added)} tokens added"
        )
        count = len(rows) - len(models.experts)
        return Opened(experts=rows[count:], base=rows[0] if count else None)

    def _vocabulary(self, source: Source) -> Vocabulary | None:
        if source.rename:
            return None  # a part of a larger model; its rows are compared as they are
        return self.inputs[source.path].vocabulary()

    def _same_vocabulary(self) -> None:
        from mtk.vocabulary import plan

        if self._recipe.vocabulary != "refuse" or self._recipe.tokenizer == "union":
            raise UsageError("models with unlike vocabularies cannot be stacked")
        inputs = list(self.inputs.values())
        plan([i.vocabulary() for i in inputs], [i.name for i in inputs])

    def _tokens(self) -> Vocabulary | None:
        """The vocabulary of the tokenizer that the result will have."""
        return self._tokenizer_donor().vocabulary()

    def _tokenizer_donor(self) -> Input:
        words = self._recipe.tokenizer
        if words not in _WORDS:
            return self._input(words, "tokenizer", None)
        if words == "base" and self._recipe.base is not None:
            return self._input(self._recipe.base.path, "base", None)
        return self._donor()

    def _first(self) -> Source:
        """The source that gives names and dtypes."""
        recipe = self._recipe
        if recipe.base is not None:
            return recipe.base
        return recipe.experts[0] if recipe.experts else recipe.slabs[0].sources[0][0]

    def _donor(self) -> Input:
        recipe = self._recipe
        name = recipe.donor or self._first().path
        if name == "base" and recipe.base is not None:
            name = recipe.base.path
        return self._input(name, "donor", None)

    def layout(self) -> tuple[str, Layout]:
        """The donor's name, and its layout with what the merge changes in it."""
        from mtk.adapters import Changes

        donor = self._donor()
        layout = donor.layout()
        first = self.inputs[self._first().path]
        if first is not donor:
            layout = replace(first.layout(), files=layout.files, family=layout.family)
        changes = Changes(dtype=self._recipe.dtype, **self._changes)
        tokens = self._tokenizer_donor()
        if tokens is not donor:
            changes = replace(changes, tokenizer=tokens.layout())
        if changes != Changes() and layout.files:
            if not hasattr(donor.target, "adapt"):
                raise UsageError(
                    f"{donor.name}: its config cannot be changed to fit the merged model"
                )
            layout = donor.target.adapt(layout, changes)
        return donor.name, layout


class _Like:
    """The adapter of an earlier stage's donor, for the stage's result."""

    def __init__(self, donor: Input) -> None:
        self._donor = donor

    def layout(self, _path: Path) -> Layout:
        """As the donor is stored."""
        return self._donor.layout()

    def vocabulary(self, _path: Path) -> Vocabulary | None:
        """As the donor's."""
        return self._donor.vocabulary()

    def adapt(self, layout: Layout, changes: Any) -> Layout:
        """As the donor's adapter does it."""
        adapted: Layout = self._donor.target.adapt(layout, changes)
        return adapted


def _joined(errors: Sequence[CheckpointError]) -> CheckpointError:
    """All of one error, or the first lines of several."""
    if len(errors) == 1:
        return errors[0]
    lines = [first_line(error) for error in errors]
    if len(lines) > MOST_LINES:
        more = len(lines) - MOST_LINES + 1
        lines = [*lines[: MOST_LINES - 1], f"and {more} more models cannot be opened"]
    return CheckpointError("\n".join(lines))
