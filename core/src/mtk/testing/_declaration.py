"""Checks of what is declared, before anything is merged."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from mtk.errors import MtkError
from mtk.loading import resolve
from mtk.parameters import complete
from mtk.testing._checks import Check, Failed, NotApplicable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mtk.declare import Method
    from mtk.testing._checks import Subject

# Everything a method can receive besides its parameters.
RESERVED = ("base", "info", "summary", "random", "tasks", "fisher", "gram")
_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_IMPORT = """
import importlib, sys
module = importlib.import_module({module!r})
list(module.mtk_methods() or ())
print("torch" in sys.modules)
"""


def no_torch(subject: Subject) -> None:
    """Import the declaring module in a new process, and see whether torch came along."""
    if subject.plugin is None:
        raise NotApplicable("given as a declaration, not by an installed plugin")
    if not subject.installed:
        raise NotApplicable("a plugin in one file may import torch")
    code = _IMPORT.format(module=subject.plugin.module).strip()
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(  # noqa: S603  this interpreter, on code written here
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failed(f"{subject.plugin.module} does not import alone: {last}", code)
    if done.stdout.split() != ["False"]:
        raise Failed(f"importing {subject.plugin.module} imports torch", code)


def targets(subject: Subject) -> None:
    """Everything the declaration names can be imported and called."""
    for role, target, _ in _functions(subject.method):
        try:
            found = resolve(target)
        except MtkError as error:
            raise Failed(f"{role}: {error}", _resolving(subject, target)) from error
        if not callable(found):
            raise Failed(
                f"{role}: {target!r} is a {type(found).__name__}, not a function",
                _resolving(subject, target),
            )


def _resolving(subject: Subject, target: object) -> str:
    if isinstance(target, str):
        return f"from mtk.loading import resolve\nresolve({target!r})"
    return subject.lookup()


def signature(subject: Subject) -> None:
    """Target, scans, decode and route take the declared keywords and need no others."""
    wrong = []
    for role, target, keywords in _functions(subject.method):
        found = inspect.signature(resolve(target)).parameters
        loose = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values())
        named = {n: p for n, p in found.items() if p.kind not in _VARIADIC}
        wrong += [
            f"{role} does not accept {n!r}, which is declared"
            for n in keywords - set(named)
            if not loose
        ]
        wrong += [
            f"{role} requires {name!r}, which is not declared"
            for name in sorted(set(named) - keywords)
            if named[name].default is inspect.Parameter.empty
        ]
        wrong += [
            f"{role} takes {name!r} by position only"
            for name, p in named.items()
            if p.kind is inspect.Parameter.POSITIONAL_ONLY
        ]
    if wrong:
        raise Failed("\n".join(sorted(wrong)), _inspecting(subject))


def nothing_undeclared(subject: Subject) -> None:
    """No function waits for an input that the declaration does not ask for."""
    for role, target, keywords in _functions(subject.method):
        for name in inspect.signature(resolve(target)).parameters:
            if name in RESERVED and name not in keywords:
                raise Failed(
                    f"{role} has the keyword {name!r}, which the declaration does not "
                    "ask for and which therefore never arrives",
                    _inspecting(subject),
                )


def _inspecting(subject: Subject) -> str:
    return (
        "import inspect, mtk\nfrom mtk.loading import resolve\n"
        f"{subject.lookup()}\nprint(inspect.signature(resolve(method.target)))"
    )


def _functions(method: Method) -> Iterator[tuple[str, Any, set[str]]]:
    """(role, target, keywords it is called with) of every function a method names."""
    needs = method.needs
    params = {
        param.name
        for param in method.params
        if param.stage == "merge" and not (method.stochastic and param.name == "seed")
    }
    keywords = {"experts", *needs.statistics, *params}
    keywords |= {"base"} if needs.base else set()
    keywords |= {"info"} if needs.info else set()
    keywords |= {"random"} if method.stochastic else set()
    keywords |= {"tasks"} if needs.data != "none" else set()
    keywords |= {"summary"} if method.scope == "two-pass" else set()
    yield "target", method.target, keywords
    for i, scan in enumerate(method.scans):
        yield f"scan {i}", scan.target, keywords
    if method.decode is not None:
        yield "decode", method.decode, {"shared", "code"} | keywords & {"base"}
    if method.route is not None:
        everything = {param.name for param in method.params}
        yield "route", method.route, {"x", "parts"} | everything


def grid(subject: Subject) -> None:
    """The default and every grid point are complete, valid and different."""
    method = subject.method
    points = list(method.grid)
    for point in points:
        try:
            complete(method.params, point, owner=method.name)
        except MtkError as error:
            raise Failed(f"{point}: {error}") from error
    for i, point in enumerate(points):
        if point in points[:i]:
            raise Failed(f"the grid point {point} stands twice in {len(points)} points")


def summary(subject: Subject) -> None:
    """One line that says what the method does."""
    text = subject.method.summary
    if not text.strip() or "\n" in text:
        raise Failed(f"the summary is {text!r}; write one line")


def paper(subject: Subject) -> None:
    """A source, or a word on why there is none."""
    if not subject.method.paper.strip():
        raise Failed(
            'paper is empty; give "arXiv:NUMBER", a URL, or why there is none, for '
            'example "unpublished"'
        )


CHECKS = (
    Check(
        "declaration.no-torch",
        "A plugin module that imports torch makes every command many times slower.",
        no_torch,
    ),
    Check(
        "declaration.targets",
        "What a declaration names is imported on first use, and must then be there.",
        targets,
    ),
    Check(
        "declaration.signature",
        "A function is called with exactly the keywords that are declared.",
        signature,
        ("declaration.targets",),
    ),
    Check(
        "declaration.grid",
        "The benchmark tries every grid point, so each must be valid and new.",
        grid,
    ),
    Check(
        "declaration.summary",
        "The summary is what users choose by in lists.",
        summary,
    ),
    Check(
        "declaration.paper",
        "A result can only be compared with the literature if its source is known.",
        paper,
    ),
)
