"""lm-evaluation-harness as a library: its tasks, its prompts, and its scores of items.

A JSONL file becomes a task of the harness too, so that prompts, likelihoods and
generation are the same code for both.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mtk.errors import UsageError, first_line
from mtk.parameters import suggestion
from mtk_tasks_lmeval.jsonl import own_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from mtk_tasks_lmeval.spec import Cell, Source, Spec


def wrap(spec: Spec, model: nn.Module, tokenizer: Any) -> Any:
    """A model as the harness takes it."""
    with quietly():
        return HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=spec.batch_size,
            max_length=spec.max_length,
            truncation=True,
        )


def load_task(spec: Spec, cell: Cell, source: Source) -> Any:
    """A task of the harness: one of its own, of a folder of the user's, or a file.

    Raises:
        UsageError: there is no such task, it is a group, or its data cannot be had.
    """
    where = f"{spec.path}: cell {cell.name!r}"
    if source.data is not None:
        given: Any = own_task(cell, source.data, where)
        manager = TaskManager(include_defaults=False)
    else:
        given, manager = source.task, _manager(cell, source.task, where)
    try:
        with quietly(), network(allowed=spec.download):
            loaded = manager.load([given])["tasks"]
    except Exception as error:
        raise UsageError(
            f"{where}: the task {source.label!r} could not be loaded\n"
            f"{_why(error, download=spec.download)}"
        ) from error
    if len(loaded) != 1:
        raise UsageError(
            f"{where}: {source.label!r} is a group of {len(loaded)} tasks\n"
            f"Make a cell of each: {', '.join(sorted(loaded)[:4])} ..."
        )
    (task,) = loaded.values()
    return task


def _why(error: Exception, *, download: bool) -> str:
    """What was raised, and what to do about it where that is known."""
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__:
        return f"{type(error.__cause__).__name__}: {first_line(error.__cause__)}"
    said = f"{type(error).__name__}: {first_line(error)}"
    far = isinstance(error, ConnectionError) or "find cache" in said
    if far and not download:
        return f"{said}\nIts data are not on this machine; add download = true to fetch"
    if far:
        return f"{said}\nIs that its name, and is the Hub within reach?"
    if isinstance(error, FileNotFoundError):
        return f"{said}\nPaths in task files are read from the folder you run mtk in"
    return said


def _manager(cell: Cell, name: str, where: str) -> TaskManager:
    """An index that knows the task; the folders of the user's come first."""
    known: list[str] = []
    if cell.include:
        with quietly():
            manager = TaskManager(
                include_path=[str(folder) for folder in cell.include],
                include_defaults=False,
            )
        if name in manager.all_tasks:
            return manager
        known += manager.all_tasks
    broken = _broken(cell)
    shipped = _shipped()
    if name in shipped.all_tasks:
        return shipped
    close = suggestion(name, [*known, *shipped.all_tasks])
    raise UsageError(
        f"{where}: lm-evaluation-harness has no task {name!r}{close}\n"
        f"{broken or 'A task file of your own is found through include_path'}"
    )


@lru_cache(maxsize=1)
def _shipped() -> TaskManager:
    """The index of all the harness's own tasks, which takes seconds."""
    with quietly():
        return TaskManager()


def _broken(cell: Cell) -> str:
    """A task file of the user's that the harness passes over, because it is no YAML."""
    for folder in cell.include:
        for file in sorted(folder.rglob("*.yaml")):
            try:
                for _ in yaml.parse(file.read_bytes()):  # its grammar only
                    pass
            except (OSError, yaml.YAMLError) as error:
                mark = getattr(error, "problem_mark", None)
                place = f"{file}, line {mark.line + 1}" if mark else str(file)
                why = getattr(error, "problem", None) or first_line(error)
                return f"{place}: not read, as it is no YAML: {why}"
    return ""


def count(task: Any) -> int:
    """How many items a task has."""
    return len(task.eval_docs)


def samples(
    spec: Spec, cell: Cell, lm: Any, task: Any, places: Sequence[int]
) -> list[dict[str, Any]]:
    """What the harness logged of each item, in the order of the places.

    Args:
        spec: the track.
        cell: decides few-shot examples and the filter.
        lm: a model, see :func:`wrap`.
        task: see :func:`load_task`.
        places: numbers of items; each once.
    """
    name = task.task_name
    # simple_evaluate does the same, and asks the system about itself for seconds.
    with same_randomness(), quietly(), network(allowed=spec.download):
        _configure(cell, task)
        found = evaluate(
            lm=lm,
            task_dict={"tasks": {name: task}},
            # In ascending order, or the harness gives the items each other's numbers.
            samples={name: sorted(places)},
            apply_chat_template=spec.chat_template,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
        )
    assert found is not None
    logged = found["samples"][name]
    filters = list(dict.fromkeys(sample["filter"] for sample in logged))
    wanted = cell.filter or filters[0]
    if wanted not in filters:
        raise UsageError(
            f"{spec.path}: cell {cell.name!r}: {name!r} has no filter {wanted!r}"
            f"{suggestion(wanted, filters)}\nIts filters: {', '.join(filters)}"
        )
    _ranks_upwards(spec, cell, found["higher_is_better"].get(name, {}))
    by_place = {s["doc_id"]: s for s in logged if s["filter"] == wanted}
    return [by_place[place] for place in places]


def _ranks_upwards(spec: Spec, cell: Cell, directions: dict[str, bool]) -> None:
    for metric in () if cell.source.data else cell.metrics:
        if directions.get(metric) is False:
            raise UsageError(
                f"{spec.path}: cell {cell.name!r}: {metric} is better when lower\n"
                "mtk ranks and averages scores of items that are better when higher"
            )


def _configure(cell: Cell, task: Any) -> None:
    """Few-shot examples as ``simple_evaluate`` sets them, from the start of its draws."""
    given = task.get_config("num_fewshot")
    if given is None or (cell.num_fewshot is not None and given != 0):
        task.set_config(key="num_fewshot", value=cell.num_fewshot or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def requests(
    spec: Spec, cell: Cell, task: Any, lm: Any, places: Sequence[int]
) -> list[tuple[str, str]]:
    """Prompt and right answer of each item, as the harness would ask for them."""
    with same_randomness(), quietly():
        _configure(cell, task)
        task.build_all_requests(
            samples=sorted(places),
            apply_chat_template=spec.chat_template,
            chat_template=lm.apply_chat_template if spec.chat_template else None,
            fewshot_as_multiturn=True,
        )
    pairs: dict[int, tuple[str, str]] = {}
    in_order = sorted(places)
    for instance in task.instances:
        pair = _right(task, instance)
        if pair is not None:
            pairs[in_order[instance.doc_id]] = pair
    lost = [place for place in places if place not in pairs]
    if lost:
        raise UsageError(
            f"{spec.path}: cell {cell.name!r}: item {lost[0]} has no right answer"
        )
    return [pairs[place] for place in places]


def _right(task: Any, instance: Any) -> tuple[str, str] | None:
    """Prompt and continuation of a request; None if it asks for a wrong answer."""
    kind, target = task.OUTPUT_TYPE, task.doc_to_target(instance.doc)
    if kind == "loglikelihood_rolling":
        return "", instance.args[0]
    if kind == "generate_until":
        answer = target[0] if isinstance(target, list) else target
        return instance.args[0], f"{task.config.target_delimiter}{answer}"
    if kind == "loglikelihood":
        return instance.args[0], instance.args[1]
    if isinstance(target, list):
        target = target[0]
    if isinstance(target, str):
        choices = task.doc_to_choice(instance.doc)
        target = choices.index(target) if target in choices else -1
    right: bool = instance.idx == (0 if task.multiple_input else target)
    return (instance.args[0], instance.args[1]) if right else None


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """Give torch and numpy their random state back: the harness seeds them."""
    before, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(arrays)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the harness's progress bars, and without advice for its command line."""
    # What datasets logs as an error is raised as well.
    loggers = {"lm_eval": logging.ERROR, "datasets": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in loggers}
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def network(*, allowed: bool) -> Iterator[None]:
    """Read data sets from the local cache only, unless the user said otherwise."""
    import datasets
    import huggingface_hub.constants as hub

    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    if not allowed:
        datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before
