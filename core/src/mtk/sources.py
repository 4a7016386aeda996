"""Opening what a recipe names: stages, LoRA adapters, vocabularies, and the donor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.assembly import Opened, layers_of, sources_of
from mtk.computed import Computed
from mtk.errors import CheckpointError, UsageError, first_line
from mtk.opening import Allowed, Input, open_input
from mtk.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk.adapters import Checkpoint, Layout
    from mtk.assembly import Part
    from mtk.loading import Registry
    from mtk.opening import Model
    from mtk.recipes import Recipe, Source
    from mtk.vocabulary import Plan as VocabularyPlan

MOST_LINES = 3
# Stages that build on each other are opened, and computed, one inside the other.
MOST_STAGES = 50
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
        if len(recipe.stages) > MOST_STAGES:
            raise UsageError(
                f"{recipe.where or recipe.method}: {len(recipe.stages)} stages; at most "
                f"{MOST_STAGES} are merged in one run"
            )
        self._stages = {stage.name: stage for stage in recipe.stages}
        self._changes: dict[str, Any] = {}
        self._made: VocabularyPlan | None = None
        self.inputs: dict[str, Input] = {}
        self.notes: list[str] = []

    def paths(self) -> list[Path]:
        """All local files and folders that the recipe and its stages name."""
        found: list[Path] = []
        for recipe in (self._recipe, *self._recipe.stages):
            sources = sources_of(recipe)
            names = [recipe.donor, recipe.tokenizer, *(s.path for s in sources)]
            names += [source.adapter for source in sources]
            for name in set(names) - {None, *_WORDS, *self._stages}:
                model = self._models.get(name or "", name)
                found += [Path(model)] if isinstance(model, str | Path) else []
        return [path for path in found if path.exists()]

    def computed(self) -> list[Part]:
        """The parts of all stages that were opened."""
        found = [i.checkpoint for i in self.inputs.values() if i.computed]
        return [p for each in found if isinstance(each, Computed) for p in each.parts]

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
            from mtk.views import Over, with_prefixes

            found = with_prefixes(found, source.rename)
            if base is not None:
                found = Over(found, base)
        return found

    def _input(self, name: str, label: str, base: Checkpoint | None = None) -> Input:
        """What a name stands for, opened once; adapters once for each base."""
        own = name if base is None else f"{name} on {base.label}"
        found = self.inputs.get(own) or self.inputs.get(name)
        if found is None:
            if name in self._stages:
                found = self._stage(self._stages[name])
            else:
                model = self._models.get(name, name)
                allowed = self._allowed
                found = open_input(model, label, self._registry, base, allowed)
            self.notes += [f"{name}: {note}" for note in found.notes()]
            alone = found.checkpoint.kind == "full"
            self.inputs[name if alone else own] = found
        return found

    def _stage(self, stage: Recipe) -> Input:
        """An earlier stage, as the input of this recipe. It may name stages itself."""
        from mtk.request import Request

        earlier = self._recipe.stages
        known = earlier[: [each.name for each in earlier].index(stage.name)]
        inner = replace(stage, stages=(*stage.stages, *known))
        opener = Opener(inner, self._models, self._registry, self._allowed)
        request = Request(recipe=inner, models=self._models)
        found = request.parts(opener, self._registry)
        for name, item in opener.inputs.items():
            self.inputs[f"{stage.name}: {name}"] = item
        theirs = tuple(f"{name}: " for name in self._stages)
        own = [note for note in opener.notes if not note.startswith(theirs)]
        self.notes += [f"{stage.name}: {note}" for note in (*stage.notes, *own)]
        target = opener.like()
        return Input(
            name=stage.name,
            checkpoint=Computed(found, stage.name),
            target=target,
            path=Path(stage.name) if target else None,
            computed=True,
        )

    def like(self) -> _Like | None:
        """How the result is stored, where that is known, for a stage to be built on."""
        donor, layout = self.layout()
        found = self._donor()
        if found.path is None:
            return None
        made = self._made
        tokens = found.vocabulary()
        if made is not None:
            tokens = Vocabulary(
                tokens=made.tokens, rows=made.rows, tensors=made.tensors
            )
        return _Like(donor, layout, tokens, getattr(found.target, "adapt", None))

    def _united(self, models: Opened) -> Opened:
        """The models under one vocabulary, if theirs differ and a policy allows it."""
        from mtk.vocabulary import Rows, plan

        recipe = self._recipe
        sources: list[tuple[Source, Checkpoint | None]] = []
        sources += [(recipe.base, None)] if recipe.base else []
        sources += [(expert, models.base) for expert in recipe.experts]
        policy = "union" if recipe.tokenizer == "union" else recipe.vocabulary
        found = [self._vocabulary(source, base) for source, base in sources]
        made = plan(
            found,
            [self._input(s.path, "", b).name for s, b in sources],
            policy=policy,
            base=0 if recipe.base else None,
            donor=self._tokens(),
        )
        if made is None:
            return models
        self._made = made
        opened = [*([models.base] if models.base else []), *models.experts]
        rows = [Rows(opened, number, made) for number in range(len(opened))]
        self._changes |= {"rows": made.rows, "added_tokens": made.added}
        self.notes.append(
            f"vocabulary: {policy}, {made.rows} rows, {len(made.added)} tokens added"
        )
        count = len(rows) - len(models.experts)
        return Opened(experts=rows[count:], base=rows[0] if count else None)

    def _vocabulary(self, source: Source, base: Checkpoint | None) -> Vocabulary | None:
        if source.rename:
            return None  # a part of a larger model; its rows are compared as they are
        found = self._input(source.path, "", base)
        if found.checkpoint.kind == "lora" and self._recipe.base is not None:
            return self._input(self._recipe.base.path, "base").vocabulary()
        return found.vocabulary()

    def _same_vocabulary(self) -> None:
        from mtk.vocabulary import plan

        if self._recipe.vocabulary != "refuse" or self._recipe.tokenizer == "union":
            raise UsageError("models with unlike vocabularies cannot be stacked")
        inner = tuple(f"{name}: " for name in self._stages)
        inputs = [
            item
            for name, item in self.inputs.items()
            if not (inner and name.startswith(inner))
        ]
        plan([i.vocabulary() for i in inputs], [i.name for i in inputs])

    def _tokens(self) -> Vocabulary | None:
        """The vocabulary of the tokenizer that the result will have."""
        return self._tokenizer_donor().vocabulary()

    def _tokenizer_donor(self) -> Input:
        words = self._recipe.tokenizer
        if words not in _WORDS:
            return self._input(words, "tokenizer")
        if words == "base":
            slabs = self._recipe.slabs
            base = self._recipe.base or (slabs[0].base if slabs else None)
            if base is not None:
                return self._input(base.path, "base")
            if self._recipe.donor is None:
                raise UsageError("the tokenizer is that of the base, but there is none")
        return self._donor()

    def _first(self) -> Source:
        """The source that gives names and dtypes."""
        recipe = self._recipe
        if recipe.base is not None:
            return recipe.base
        if recipe.experts:
            return recipe.experts[0]
        slab = recipe.slabs[0]
        return slab.base or slab.sources[0][0]

    def _donor(self) -> Input:
        recipe = self._recipe
        name = recipe.donor or self._first().path
        if name == "base" and recipe.base is not None:
            name = recipe.base.path
        return self._input(name, "donor")

    def layout(self) -> tuple[str, Layout]:
        """The donor's name, and its layout with what the merge changes in it."""
        from mtk.adapters import Changes

        donor = self._donor()
        layout = donor.layout()
        first = self._input(self._first().path, "first")
        if first is not donor:
            layout = replace(first.layout(), files=layout.files, family=layout.family)
        changes = Changes(dtype=self._recipe.dtype, **self._changes)
        tokens = self._tokenizer_donor()
        if tokens is not donor:
            changes = replace(changes, tokenizer=tokens.layout())
        if changes != Changes() and layout.files:
            if getattr(donor.target, "adapt", None) is None:
                raise UsageError(
                    f"{donor.name}: its config cannot be changed to fit the merged model"
                )
            layout = donor.target.adapt(layout, changes)
        return getattr(donor.target, "donor", donor.name), layout


class _Like:
    """Stands for the adapter of an earlier stage's result, which lies in no folder.

    Args:
        donor: the model that its config comes from.
        stored: its layout.
        tokens: its vocabulary.
        adapt: as the donor's adapter does it, if it can.
    """

    def __init__(
        self, donor: str, stored: Layout, tokens: Vocabulary | None, adapt: Any
    ) -> None:
        self.donor, self._stored, self._tokens = donor, stored, tokens
        self.adapt = adapt

    def layout(self, _path: Path) -> Layout:
        """As the donor is stored, with the changes of the stage."""
        return self._stored

    def vocabulary(self, _path: Path) -> Vocabulary | None:
        """As the stage made it."""
        return self._tokens


def _joined(errors: Sequence[CheckpointError]) -> CheckpointError:
    """All of one error, or the first lines of several."""
    if len(errors) == 1:
        return errors[0]
    lines = list(dict.fromkeys(first_line(error) for error in errors))
    if len(lines) == 1:
        return errors[0]
    if len(lines) > MOST_LINES:
        more = len(lines) - MOST_LINES + 1
        lines = [*lines[: MOST_LINES - 1], f"and {more} more models cannot be opened"]
    return CheckpointError("\n".join(lines))
