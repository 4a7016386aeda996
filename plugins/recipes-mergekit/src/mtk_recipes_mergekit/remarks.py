"""What reading a recipe decided, for the user to know; and settings nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk.parameters import suggestion
from mtk_recipes_mergekit.methods import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mtk_recipes_mergekit.methods import Row
    from mtk_recipes_mergekit.references import Reference
    from mtk_recipes_mergekit.schema import Config, Input
    from mtk_recipes_mergekit.settings import Setting


class Remarks:
    """Looks at every setting of a configuration once.

    Raises:
        UsageError: mergekit knows no such parameter, for whatever method.
    """

    def __init__(self, row: Row, config: Config) -> None:
        self._row, self._config = row, config
        self._knobs = {knob.name: knob for knob in row.knobs}
        self._found: dict[str, list[str]] = {}
        for params in (config.params, config.module_params):
            self._look(params, allowed=("all", "model", "expert"))
        for part in config.slices:
            self._look(part.params, allowed=("all", "model", "expert"))
            self._inputs(part.inputs, part.base or config.base)
        self._inputs(config.inputs, config.base)

    def collected(self) -> tuple[str, ...]:
        """All of them, the general ones first."""
        return (*self._general(), *self._config.notes, *self._placed())

    def _inputs(self, inputs: Iterable[Input], base: Reference | None) -> None:
        for entry in inputs:
            own = ("model",) if entry.model == base else ("model", "expert")
            self._look(entry.params, allowed=own)

    def _look(self, params: Mapping[str, Setting], *, allowed: tuple[str, ...]) -> None:
        for name, setting in params.items():
            if name not in PARAMETERS:
                raise UsageError(
                    f"{setting.where}: mergekit has no parameter {name!r}"
                    f"{suggestion(name, PARAMETERS)}\nOf {self._row.name}: "
                    f"{', '.join(self._knobs) or 'none'}"
                )
            knob = self._knobs.get(name)
            if knob is None or not (knob.ours or knob.only is not None):
                self._add(setting.where, f"{name} has no effect in {self._row.name}")
            elif knob.of not in allowed:
                whose = "a single model" if knob.of == "all" else "the base model"
                self._add(setting.where, f"{name} has no effect for {whose}")
            for case in setting.cases[:-1]:
                if case.text is None:
                    self._add(
                        case.where, f"cases of {name} behind this one never apply"
                    )

    def _add(self, where: str, text: str) -> None:
        self._found.setdefault(text, []).append(where)

    def _placed(self) -> Iterator[str]:
        for text, places in self._found.items():
            more = f" (and {len(places) - 1} times more)" if len(places) > 1 else ""
            yield f"{places[0]}: {text}, as in mergekit{more}"

    def _general(self) -> Iterator[str]:
        row, config = self._row, self._config
        yield f"{row.name} follows mergekit's rules and defaults, not mtk's own"
        yield from row.notes
        if config.base and row.base == "model":
            yield f"the base model {config.base.text} is one more model of {row.name}"
        if config.base and row.base == "origin":
            yield f"{row.name} works on differences to the base model, since one is named"
        if config.dtype and config.dtype != "float32":
            yield (
                f"mtk computes in float32, mergekit in {config.dtype}: results differ by "
                "mergekit's rounding"
            )
        if config.base is None:
            first = (config.inputs or config.slices[0].inputs)[0].model.path
            yield (
                f"config and tokenizer are those of {first}, the first model; without "
                "base_model mergekit takes any one"
            )
        if len(config.slices) > 1:
            yield (
                "embeddings are merged as in the first slice, final norm and head as in "
                "the last one"
            )
        counts = [len(part.inputs) for part in config.slices]
        if counts and counts[-1] > counts[0]:
            yield (
                "final norm and head are merged of all sources of the last slice; "
                f"mergekit takes the first {counts[0]} only, as many as the first slice has"
            )
