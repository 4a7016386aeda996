"""Looking at unfamiliar checkpoints: structure, numbers, and what sets one apart.

Checks are tripwires. A backdoor can be trained so that it passes all of them, so a result
without findings means "no anomaly found by these checks" and nothing more.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mtk.companions import beside, licence
from mtk.errors import CheckpointError
from mtk.loading import load
from mtk.opening import Allowed, open_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.loading import Registry
    from mtk.opening import Model

# |robust z| above this is reported; 3.5 is the usual cut for the median-based score.
Z_LIMIT = 3.5
# The scale is at least this share of the median: with few experts the median deviation
# alone would flag clean ones.
Z_FLOOR = 0.05
DUPLICATE_COSINE = 0.98
# A spectrum is taken of matrices up to this many entries; larger ones are counted.
LARGEST_MATRIX = 1 << 24
NOTHING_FOUND = "no anomaly found by these checks"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at: which check, where, and what was seen."""

    check: str
    model: str
    message: str


@dataclass(slots=True, kw_only=True)
class Difference:
    """What sets one model apart from the base.

    Args:
        norm: ||tau|| / ||theta_0|| over all floating-point tensors.
        unchanged: share of entries equal to the base's.
        cosine: mean cosine of its task vector with those of the others.
        spike: largest sigma_1 of a matrix of tau, over the edge
            std * (sqrt(m) + sqrt(n)) that pure noise would have.
        energy: largest share of a matrix's squared norm in its first singular triple.
        row: largest change of an embedding row, over the median row's.
        z: robust z-score of each of these among the models of one kind.
    """

    model: str
    norm: float = 0.0
    unchanged: float = 0.0
    cosine: float | None = None
    spike: float | None = None
    energy: float | None = None
    row: float | None = None
    z: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Inspection:
    """What :func:`inspect` saw."""

    model: str
    kind: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    roles: dict[str, int]
    differences: list[Difference] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped_spectra: int = 0
    licence: str = ""

    @property
    def verdict(self) -> str:
        """One honest line."""
        count = len(self.findings)
        return f"{count} finding{'s'[: count != 1]}" if count else NOTHING_FOUND


def inspect(
    model: Model,
    *,
    against: Model | None = None,
    others: Sequence[Model] = (),
    allow_pickle: bool = False,
    registry: Registry | None = None,
) -> Inspection:
    """Print-ready facts about a checkpoint; nothing in it is run.

    Args:
        model: path, state dict or open checkpoint.
        against: its base; adds norms, unchanged entries, spectra and embedding rows.
        others: experts of the same base and kind; adds cosines and robust z-scores
            (these from three models on).
        allow_pickle: read ``.bin`` and ``.pt`` files too, without running their code.
        registry: plugins to use instead of the installed ones.

    Raises:
        CheckpointError: a file is damaged, or names and shapes do not fit.
    """
    registry = registry or load()
    allowed = Allowed(pickle=allow_pickle)
    start = None
    if against is not None:
        start = open_input(against, "base", registry, allowed=allowed)
    base = None if start is None else start.checkpoint
    inputs = [
        open_input(each, label, registry, base, allowed)
        for label, each in [
            ("model", model),
            *((f"other {i}", other) for i, other in enumerate(others)),
        ]
    ]
    if others and base is None:
        raise CheckpointError(
            "to compare with other models, give their base: --against"
        )
    group = [item.checkpoint for item in inputs]
    result = _structure(group[0])
    result.licence = licence(inputs[0])
    for label, check, message in beside(start, inputs):
        result.findings.append(Finding(check, label, message))
    for checkpoint in group:
        result.findings += _numbers(checkpoint)
    if base is not None:
        for checkpoint in group:
            _check_fit(base, checkpoint)
            result.findings += _dtypes(base, checkpoint)
        if not any(finding.check == "numbers" for finding in result.findings):
            result.differences = _differences(base, group, result)
            _score(result)
    return result


def _structure(checkpoint: Checkpoint) -> Inspection:
    infos = [checkpoint.info(name) for name in checkpoint.names()]
    sizes = [torch.Size(info.shape).numel() for info in infos]
    widths = [getattr(torch, info.dtype).itemsize for info in infos]
    return Inspection(
        model=checkpoint.label,
        kind=checkpoint.kind,
        tensors=len(infos),
        parameters=sum(sizes),
        bytes=sum(size * width for size, width in zip(sizes, widths, strict=True)),
        dtypes=_count(info.dtype for info in infos),
        roles=_count(info.role for info in infos),
    )


def _count(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _numbers(checkpoint: Checkpoint) -> list[Finding]:
    """NaN and infinity, zeros, constants, and tensors that are equal to others."""
    found, seen = [], dict[tuple[object, ...], str]()
    for name in checkpoint.names():
        tensor = checkpoint.read(name)
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            message = f"{name!r} holds {bad} NaN or infinite entries"
            found.append(Finding("numbers", checkpoint.label, message))
            continue
        if tensor.ndim < 2:
            continue
        low, high = float(tensor.min()), float(tensor.max())
        if low == high:
            what = "all zero" if low == 0 else f"all {low:g}"
            found.append(Finding("constant", checkpoint.label, f"{name!r} is {what}"))
            continue
        mark = (
            tuple(tensor.shape),
            tensor.dtype,
            low,
            high,
            float(tensor.double().sum()),
        )
        twin = seen.setdefault(mark, name)
        if twin != name and torch.equal(tensor, checkpoint.read(twin)):
            found.append(
                Finding("identical", checkpoint.label, f"{name!r} equals {twin!r}")
            )
    return found


def _check_fit(base: Checkpoint, other: Checkpoint) -> None:
    one, two = set(base.names()), set(other.names())
    if one != two:
        odd = min(one ^ two)
        has, lacks = (base, other) if odd in one else (other, base)
        raise CheckpointError(f"{odd!r} is in {has.label} but not in {lacks.label}")
    for name in one:
        if base.info(name).shape != other.info(name).shape:
            raise CheckpointError(
                f"{name!r} is {base.info(name).shape} in {base.label}, "
                f"{other.info(name).shape} in {other.label}"
            )


def _dtypes(base: Checkpoint, other: Checkpoint) -> list[Finding]:
    odd = [n for n in base.names() if base.info(n).dtype != other.info(n).dtype]
    if not odd:
        return []
    was, now = base.info(odd[0]).dtype, other.info(odd[0]).dtype
    message = f"{len(odd)} tensors have another dtype: {odd[0]!r} is {now}, was {was}"
    return [Finding("structure", other.label, message)]


def _differences(
    base: Checkpoint, group: Sequence[Checkpoint], result: Inspection
) -> list[Difference]:
    """One pass over the tensors; base and one tensor of every model are held at a time."""
    k = len(group)
    differences = [Difference(model=checkpoint.label) for checkpoint in group]
    dots = torch.zeros(k, k, dtype=torch.float64)
    base_norm, entries = 0.0, 0
    unchanged = [0] * k
    for name in base.names():
        info, start = base.info(name), base.read(name)
        if not start.is_floating_point() or start.numel() == 0:
            continue
        values = [checkpoint.read(name) for checkpoint in group]
        taus = torch.stack(
            [(value.float() - start.float()).flatten() for value in values]
        )
        dots += (taus @ taus.T).double()  # (k, k)
        base_norm += float(start.double().square().sum())
        entries += start.numel()
        for i, value in enumerate(values):
            unchanged[i] += int((value == start).sum())
            matrix = taus[i].view(start.shape)
            if info.role == "linear":
                result.skipped_spectra += not _spectrum(differences[i], matrix)
            elif info.role == "embedding":
                _rows(differences[i], matrix)
    norms = dots.diagonal().clamp_min(0).sqrt()
    cosines = dots / (norms[:, None] * norms[None]).clamp_min(1e-30)
    for i, difference in enumerate(differences):
        difference.norm = float(norms[i]) / max(base_norm**0.5, 1e-30)
        difference.unchanged = unchanged[i] / max(entries, 1)
        if k > 1:
            difference.cosine = float((cosines[i].sum() - cosines[i, i]) / (k - 1))
    for i, j in itertools.combinations(range(k), 2):
        if float(cosines[i, j]) > DUPLICATE_COSINE:
            message = f"nearly the same task vector as {group[j].label} (cosine {cosines[i, j]:.3f})"
            result.findings.append(Finding("direction", group[i].label, message))
    return differences


def _spectrum(difference: Difference, matrix: Tensor) -> bool:
    """Update spike and energy; False for a matrix that is too large."""
    if matrix.numel() > LARGEST_MATRIX:
        return False
    spread = float(matrix.std(correction=0))
    if spread == 0:
        return True
    sigma = torch.linalg.svdvals(matrix)
    m, n = matrix.shape
    edge = spread * (m**0.5 + n**0.5)
    energy = float(sigma[0].square() / sigma.square().sum())
    difference.spike = max(difference.spike or 0.0, float(sigma[0]) / edge)
    difference.energy = max(difference.energy or 0.0, energy)
    return True


def _rows(difference: Difference, matrix: Tensor) -> None:
    """Update the largest row change of an embedding, over the median of changed rows."""
    norms = matrix.flatten(1).norm(dim=1)
    changed = norms[norms > 0]
    if len(changed):
        ratio = float(changed.max() / changed.median())
        difference.row = max(difference.row or 0.0, ratio)


def robust_z(values: Sequence[float]) -> list[float]:
    """(v - median) / max(1.4826 MAD, 0.05 |median|), two-sided."""
    data = torch.tensor(values, dtype=torch.float64)
    median = data.quantile(0.5)
    scale = 1.4826 * (data - median).abs().quantile(0.5)
    scale = torch.maximum(scale, Z_FLOOR * median.abs()).clamp_min(1e-30)
    scores: list[float] = ((data - median) / scale).tolist()
    return scores


def _score(result: Inspection) -> None:
    """Robust z-scores among the models, from three on, and findings for outliers."""
    if len(result.differences) < 3:
        return
    for name in ("norm", "cosine", "spike", "row"):
        values = [getattr(difference, name) for difference in result.differences]
        if any(value is None for value in values):
            continue
        for difference, value, z in zip(
            result.differences, values, robust_z(values), strict=True
        ):
            difference.z[name] = z
            if abs(z) > Z_LIMIT:
                message = f"{name} {value:.3g} stands out among the models (z {z:+.1f})"
                result.findings.append(Finding(name, difference.model, message))
