"""One track and seed, opened: models, data and statistics for measuring methods."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtk import scoring
from mtk.checkpoint import StateDict
from mtk.collecting import Collected, kept
from mtk.described import described
from mtk.errors import CheckpointError
from mtk.job import Job, takes
from mtk.live import LiveTask, put_weights
from mtk.loading import resolve
from mtk.models import folder_of
from mtk.randomness import stream
from mtk.statistics import collect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from mtk.adapters import Checkpoint
    from mtk.declare import Method, Track
    from mtk.loading import Registry
    from mtk.results import Merged
    from mtk.scoring import Score

    Scored = dict[str, dict[str, Score]]  # task -> metric -> score

_PNG = b"\x89PNG\r\n\x1a\n"


class Session:
    """Everything that measuring one method on one track and seed needs."""

    def __init__(
        self,
        registry: Registry,
        track: Track,
        *,
        seed: int,
        options: Mapping[str, Any],
        cache: Path,
        found: Mapping[str, Any],
    ) -> None:
        self.track, self.seed, self.found, self._cache = track, seed, found, cache
        self._options = dict(options)
        self._live = resolve(track.target)(
            cache=folder_of(cache, track), seed=seed, options=dict(options)
        )
        self._metrics = {
            name: registry.metric(name).item
            for task in track.tasks
            for name in task.metrics
        }
        adapter = registry.adapter(track.adapter).item
        self._adapter = resolve(adapter.target)
        # Adapters of kind lora hold changes; the model that they change is a full one.
        self._view = adapter.views[0] if adapter.kind == "lora" else None
        whole = registry.adapter("full").item.target if self._view else adapter.target
        self._whole = resolve(whole)
        paths = found["paths"]
        self.base: Checkpoint = self._whole.open(Path(paths["base"]))
        self.experts: list[Checkpoint] = [self.open(Path(p)) for p in paths["experts"]]
        build = getattr(self._live, "build", None) or self._whole.build
        module: nn.Module = build(Path(paths["base"]))
        self.module = module.eval().requires_grad_(False)
        self.base, *self.experts = (
            described(source, self.module) for source in (self.base, *self.experts)
        )
        self._data: dict[tuple[str, str], Any] = {}

    def open(self, path: Path) -> Checkpoint:
        """Any checkpoint of this track; an adapter as its product on the base."""
        opened: Checkpoint
        if self._view and self._adapter.matches(path):
            opened = self._adapter.open(path, view=self._view, base=self.base)
        else:
            opened = self._whole.open(path)
        return opened

    def data(self, task: str, split: str) -> Any:
        """A split of a task, kept after the first use."""
        if (task, split) not in self._data:
            self._data[task, split] = self._live.data(task, split)
        return self._data[task, split]

    def live_tasks(self, split: str, *, labelled: bool) -> list[LiveTask]:
        """The held-in tasks as methods and statistics see them."""
        return [
            self._live_task(task.name, split, labelled) for task in self.track.held_in
        ]

    def _live_task(self, name: str, split: str, labelled: bool) -> LiveTask:
        data = self.data(name, split)
        gram_mask = getattr(self._live, "gram_mask", None)
        return LiveTask(
            name=name,
            module=self.module,
            forward=lambda module, inputs: self._live.outputs(module, name, inputs),
            inputs=data["inputs"],
            labels=data["labels"] if labelled else None,
            output=self.track.output,
            mask=self._optional("mask", name),
            targets=self._optional("targets", name) if labelled else None,
            gram_mask=gram_mask
            and (lambda module, inputs: gram_mask(module, name, inputs)),
        )

    def _optional(self, part: str, task: str) -> Callable[[Any], Tensor] | None:
        """A function of the track that it need not have, for one task."""
        function = getattr(self._live, part, None)
        return None if function is None else lambda inputs: function(task, inputs)

    def score(
        self,
        tensors: Mapping[str, Tensor],
        split: str,
        tasks: Iterable[str],
        context: Any = None,
        *,
        first_only: bool = False,
    ) -> Scored:
        """Scores of the model with these weights; by the first metric of each, or all."""
        put_weights(self.module, tensors)
        result = {}
        with torch.no_grad(), context or nullcontext():
            for name in tasks:
                data, metrics = self.data(name, split), self._task(name).metrics
                predictions = self._live.predict(self.module, name, data["inputs"])
                labels = data["labels"]
                references = labels.tolist() if hasattr(labels, "tolist") else labels
                result[name] = {
                    metric: scoring.score(
                        self._metrics[metric], list(predictions), list(references)
                    )
                    for metric in metrics[: 1 if first_only else None]
                }
        return result

    def sheet(self, tensors: Mapping[str, Tensor], context: Any = None) -> bytes | None:
        """The track's picture of what this model makes; None if it draws none."""
        draw = getattr(self._live, "sheet", None)
        if draw is None:
            return None
        put_weights(self.module, tensors)
        with torch.no_grad(), context or nullcontext():
            picture: bytes = draw(self.module)
        if not picture.startswith(_PNG):
            raise CheckpointError(f"{self.track.name}: its sheet is no PNG")
        return picture

    def _task(self, name: str) -> Any:
        return next(task for task in self.track.tasks if task.name == name)

    def score_merged(self, merged: Merged, split: str, *, held_in_only: bool) -> Scored:
        """Scores of a merged model of any output kind.

        A per-task result is scored on its held-in tasks, because an unseen task has no
        code, and on base ability, where it is the mean over the tasks' models.
        """
        track = self.track
        tasks = track.held_in if held_in_only else track.tasks
        if merged.method.output == "per_task":
            states = (merged.task(index) for index in range(len(merged.codes)))
            return self.score_each(states, split, held_in_only=held_in_only)
        return self.score(
            merged.tensors,
            split,
            [task.name for task in tasks],
            self.context(merged),
            first_only=held_in_only,
        )

    def score_each(
        self,
        states: Iterable[Mapping[str, Tensor]],
        split: str,
        *,
        held_in_only: bool = False,
    ) -> Scored:
        """One model per held-in task, scored on that; and the mean of all on abilities."""
        abilities = () if held_in_only else self.track.abilities
        found: Scored = {}
        cells: dict[str, list[Any]] = {task.name: [] for task in abilities}
        for task, state in zip(self.track.held_in, states, strict=True):
            scored = self.score(
                state, split, [task.name, *cells], first_only=held_in_only
            )
            found[task.name] = scored.pop(task.name)
            for name, cell in scored.items():
                cells[name].append(cell)
        return found | {name: scoring.mean(each) for name, each in cells.items()}

    def context(self, merged: Merged) -> Any:
        """What a merged model needs around its forward pass; None for most."""
        return merged.routed(self.module) if merged.method.output == "routed" else None

    def statistics(self, method: Method, params: Mapping[str, Any]) -> Collected:
        """The statistics a method needs, from the cache or computed."""
        given = {
            p.name: params[p.name] for p in method.params if p.stage == "statistic"
        }
        result = Collected()
        for name in method.needs.statistics:
            labelled = given.get("estimator") == "empirical"
            for index, task in enumerate(
                self.live_tasks(method.needs.split, labelled=labelled)
            ):
                result.add(
                    name,
                    *self._statistic(name, index, task, method.needs.split, given),
                )
        return result

    def _statistic(
        self,
        name: str,
        index: int,
        task: LiveTask,
        split: str,
        given: Mapping[str, Any],
    ) -> tuple[Checkpoint, Mapping[str, Any]]:
        params = {
            k: v for k, v in given.items() if name == "fisher" or k != "estimator"
        }
        expert, hashes = self.experts[index], self.found["hashes"]
        identity = {
            "base": hashes["base"],
            "expert": hashes["experts"][index],
            "track": [self.track.name, self.track.version, self._options],
            "merge": self.track.merge,
            "task": task.name,
            "split": split,
            "seed": self.seed,
            "params": params,
        }

        def make(tell: Callable[[str], None]) -> dict[str, Tensor]:
            tensors = {
                n: expert.read(n)
                for n in expert.names()
                if takes(self.track.merge, expert.info(n))
            }
            return collect(name, task, tensors, seed=self.seed, tell=tell, **params)

        folder, label = self._cache / "statistics", f"{name} of expert {index}"
        return kept(folder, name, identity, label, make)

    def random_experts(self) -> list[Checkpoint]:
        """Experts whose task vectors are random, with the true norm of every tensor.

        What an expert does not change (all but a few layers, for LoRA) stays as it is.
        """
        result: list[Checkpoint] = []
        for index, expert in enumerate(self.experts):
            state = {}
            for name in expert.names():
                value, base = expert.read(name), self.base.read(name)
                if not value.is_floating_point():
                    state[name] = value
                    continue
                delta = value.float() - base.float()
                if not bool(delta.any()):
                    state[name] = base
                    continue
                noise = torch.randn(
                    delta.shape,
                    generator=stream(self.seed, "random delta", index, name),
                )
                noise *= delta.norm() / noise.norm().clamp_min(1e-12)
                state[name] = (base.float() + noise).to(value.dtype)
            label = f"random expert {index}"
            result.append(described(StateDict(state, label), self.module))
        return result

    def job(
        self, method: Method, params: Mapping[str, Any], experts: Sequence[Checkpoint]
    ) -> tuple[Job, Collected]:
        """A merge of this track's experts, and what its statistics took."""
        # Tensors outside the merge are the base's wherever the model is run.
        put_weights(self.module, {n: self.base.read(n) for n in self.base.names()})
        collected = self.statistics(method, params)
        tasks: list[LiveTask] = []
        if method.needs.data != "none":
            tasks = self.live_tasks(
                method.needs.split, labelled=method.needs.data == "labelled"
            )
        job = Job(
            method=method,
            experts=experts,
            base=self.base,
            params=params,
            statistics=collected.files,
            only=self.track.merge,
            tasks=tasks,
        )
        return job, collected
