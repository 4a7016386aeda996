"""One track and seed, opened: models, data and statistics for measuring methods."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtk.checkpoint import SafetensorsCheckpoint, StateDict
from mtk.errors import CheckpointError
from mtk.job import Job, takes
from mtk.live import LiveTask
from mtk.loading import resolve
from mtk.models import folder_of
from mtk.randomness import stream
from mtk.statistics import collect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from mtk.adapters import Checkpoint
    from mtk.declare import Method, Task, Track
    from mtk.loading import Registry
    from mtk.results import Merged


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
        self._live = resolve(track.target)(
            cache=folder_of(cache, track), seed=seed, options=dict(options)
        )
        self._adapter = resolve(registry.adapter(track.adapter).item.target)
        self._metrics = {
            name: registry.metric(name).item
            for task in track.tasks
            for name in task.metrics[:1]
        }
        paths = found["paths"]
        self.base: Checkpoint = self._adapter.open(Path(paths["base"]))
        self.experts: list[Checkpoint] = [
            self._adapter.open(Path(p)) for p in paths["experts"]
        ]
        self.module: nn.Module = self._adapter.build(Path(paths["base"]))
        self._data: dict[tuple[str, str], Any] = {}

    def open(self, path: Path) -> Checkpoint:
        """Any checkpoint of this track."""
        opened: Checkpoint = self._adapter.open(path)
        return opened

    def higher_is_better(self, task: Task) -> bool:
        """Direction of the metric that counts for a task."""
        return self._metrics[task.metrics[0]].higher_is_better

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
        return LiveTask(
            name=name,
            module=self.module,
            forward=lambda module, inputs: self._live.logits(module, name, inputs),
            inputs=data["inputs"],
            labels=data["labels"] if labelled else None,
        )

    def score(
        self,
        tensors: Mapping[str, Tensor],
        split: str,
        tasks: Iterable[str],
        context: Any = None,
    ) -> dict[str, list[float]]:
        """Item scores of each task for the model with these weights."""
        self.module.load_state_dict(dict(tensors), strict=True)
        result = {}
        with torch.no_grad(), context or nullcontext():
            for name in tasks:
                data = self.data(name, split)
                predictions = self._live.predict(self.module, name, data["inputs"])
                metric = self._metrics[self._task(name).metrics[0]]
                score = resolve(metric.target)
                references = data["labels"].tolist()
                result[name] = score(
                    predictions=list(predictions), references=references
                )
        return result

    def _task(self, name: str) -> Any:
        return next(task for task in self.track.tasks if task.name == name)

    def score_merged(
        self, merged: Merged, split: str, *, held_in_only: bool
    ) -> dict[str, list[float]]:
        """Item scores of a merged model of any output kind.

        A per-task result is scored on the held-in tasks only: an unseen task has no code.
        """
        held_in = [task.name for task in self.track.held_in]
        names = held_in if held_in_only else [task.name for task in self.track.tasks]
        if merged.method.output == "per_task":
            return {
                name: self.score(merged.task(index), split, [name])[name]
                for index, name in enumerate(held_in)
            }
        is_routed = merged.method.output == "routed"
        context = merged.routed(self.module) if is_routed else None
        return self.score(merged.tensors, split, names, context)

    def statistics(
        self, method: Method, params: Mapping[str, Any]
    ) -> tuple[dict[str, list[Checkpoint]], float]:
        """The statistics a method needs, from the cache or computed; and their seconds."""
        given = {
            p.name: params[p.name] for p in method.params if p.stage == "statistic"
        }
        result: dict[str, list[Checkpoint]] = {}
        seconds = 0.0
        for name in method.needs.statistics:
            labelled = given.get("estimator") == "empirical"
            tasks = self.live_tasks(method.needs.split, labelled=labelled)
            result[name] = []
            for index, task in enumerate(tasks):
                opened, spent = self._statistic(
                    name, index, task, method.needs.split, given
                )
                result[name].append(opened)
                seconds += spent
        return result, seconds

    def _statistic(
        self,
        name: str,
        index: int,
        task: LiveTask,
        split: str,
        given: Mapping[str, Any],
    ) -> tuple[Checkpoint, float]:
        from safetensors.torch import save

        from mtk.files import replace_file

        relevant = {
            k: v for k, v in given.items() if name == "fisher" or k != "estimator"
        }
        expert_hash = self.found["hashes"]["experts"][index]
        identity = [
            name,
            expert_hash,
            task.name,
            split,
            self.seed,
            self.track.version,
            relevant,
        ]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[
            :24
        ]
        folder = self._cache / "statistics"
        folder.mkdir(parents=True, exist_ok=True)
        path, cost = folder / f"{name}-{key}.safetensors", folder / f"{name}-{key}.json"
        label = f"{name} of expert {index}"
        try:
            return SafetensorsCheckpoint([path], label), float(
                json.loads(cost.read_text())
            )
        except (CheckpointError, OSError, ValueError):
            pass
        start = time.perf_counter()
        expert = self.experts[index]
        tensors = {
            n: expert.read(n)
            for n in expert.names()
            if takes(self.track.merge, expert.info(n))
        }
        values = collect(name, task, tensors, seed=self.seed, **relevant)
        seconds = time.perf_counter() - start
        replace_file(path, [save(values)])
        replace_file(cost, [json.dumps(seconds).encode()])
        return StateDict(values, label), seconds

    def random_experts(self) -> list[Checkpoint]:
        """Experts whose task vectors are random, with the true norm of every tensor."""
        result: list[Checkpoint] = []
        for index, expert in enumerate(self.experts):
            state = {}
            for name in expert.names():
                value, base = expert.read(name), self.base.read(name)
                if not value.is_floating_point():
                    state[name] = value
                    continue
                delta = value.float() - base.float()
                noise = torch.randn(
                    delta.shape,
                    generator=stream(self.seed, "random delta", index, name),
                )
                noise *= delta.norm() / noise.norm().clamp_min(1e-12)
                state[name] = (base.float() + noise).to(value.dtype)
            result.append(StateDict(state, f"random expert {index}"))
        return result

    def job(
        self, method: Method, params: Mapping[str, Any], experts: Sequence[Checkpoint]
    ) -> tuple[Job, float]:
        """A merge of this track's experts; and the seconds its statistics took."""
        statistics, seconds = self.statistics(method, params)
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
            statistics=statistics,
            only=self.track.merge,
            tasks=tasks,
        )
        return job, seconds
