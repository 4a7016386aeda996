"""The scans of a two-pass method: sums over all tensors, or over each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk._calls import Caller, blamed
from mtk._reading import Reader
from mtk._units import Unit, cut, join, sliceable, whole, with_part
from mtk.job import own_params
from mtk.loading import resolve
from mtk.pipeline import ordered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mtk._calls import Frame
    from mtk.declare import Scan
    from mtk.job import Job


def runs(job: Job, scan: Scan, params: Mapping[str, Any]) -> bool:
    """Whether a scan has anything to do."""
    if any(params[name] not in values for name, values in scan.when.items()):
        return False
    if scan.needed is None:
        return True
    return bool(resolve(scan.needed)(**own_params(job.method, params)))


def scanned_names(job: Job) -> list[str]:
    """The tensors that scans see: merged ones, tied ones once."""
    return [
        name
        for name in job.first.names()
        if name not in job.report.tied and job.merged(job.first.info(name))
    ]


class Sums:
    """The sums of a job's scans.

    ``total`` are those over all tensors; :meth:`own` gives those of one tensor.
    """

    def __init__(self, job: Job, frame: Frame) -> None:
        self.total: dict[str, Any] | None = None
        self.read = False  # whether a pass has read, and checked, all tensors
        self._job, self._frame = job, frame
        self._finished: dict[tuple[int, str], dict[str, Any]] = {}
        self._callers: dict[tuple[Reader, int], Caller] = {}
        known = [job.params, *({**job.params, **own} for own in job.varied.values())]
        # Scans that are kept apart for each tensor, and run for some.
        self.apart = [
            number
            for number, scan in enumerate(job.method.scans)
            if scan.each and any(runs(job, scan, params) for params in known)
        ]
        if job.method.scope != "two-pass":
            return
        self.total = {}
        for number, scan in enumerate(job.method.scans):
            if not scan.each and runs(job, scan, job.params):
                self._pass(number, scan)

    def running(self) -> list[Scan]:
        """All scans that run, at least for some tensors."""
        job = self._job
        return [
            scan
            for number, scan in enumerate(job.method.scans)
            if number in self.apart or (not scan.each and runs(job, scan, job.params))
        ]

    def own(
        self, name: str, reader: Reader, before: int | None = None
    ) -> dict[str, Any]:
        """The sums of one tensor, by the scans ahead of number ``before``."""
        sums: dict[str, Any] = {}
        for number in self.apart:
            if before is not None and number >= before:
                break
            sums |= self._one(number, name, reader, sums)
        return sums

    def _one(
        self, number: int, name: str, reader: Reader, sums: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The sums of one tensor by one scan; what is finished is kept."""
        job = self._job
        scan, params = job.method.scans[number], job.params_of(name)
        if not runs(job, scan, params):
            return {}
        if (number, name) in self._finished:
            return self._finished[number, name]
        caller = self._callers.get((reader, number))
        if caller is None:
            caller = Caller(job, self._frame, reader, scan.target, self.total)
            self._callers[reader, number] = caller
        found = self._sum(scan, caller, whole(job, name), sums)
        if scan.finish is not None:
            found = self._finish(scan, {**sums, **found}, params)
            self._finished[number, name] = found
        return found

    def _pass(self, number: int, scan: Scan) -> None:
        """One reading of all tensors; sums are added in the order of the names."""
        job, frame = self._job, self._frame
        reader = Reader(frame.lane, frame.meter, check=not self.read)
        caller = Caller(job, frame, reader, scan.target, self.total)
        apart = bool(self.apart) and self.apart[0] < number

        def work(unit: Unit) -> dict[str, Any]:
            with torch.no_grad(), frame.lane.context():
                own = self.own(unit.name, reader, number) if apart else {}
                return self._sum(scan, caller, unit, own)

        sums: dict[str, Any] = {}
        job.report.passes += 1
        for found in ordered(self._units(scan, apart=apart), work, frame.workers):
            add(sums, found)
        if scan.finish is not None:
            sums = self._finish(scan, {**(self.total or {}), **sums}, job.params)
        self.total = {**(self.total or {}), **sums}
        self.read = True

    def _units(self, scan: Scan, *, apart: bool) -> list[Unit]:
        job, names = self._job, scanned_names(self._job)
        if not scan.slices or job.method.stochastic or apart or not with_part(job):
            return [whole(job, name) for name in names]
        units = (
            join(job, names, self._frame.scanned)
            if scan.slices == "model"
            else [whole(job, name) for name in names]
        )
        return cut(units, lambda _: True, self._frame.unit)

    def _sum(
        self, scan: Scan, caller: Caller, unit: Unit, own: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a scan counts in one unit."""
        sums: dict[str, Any] = {}
        for found in self._calls(scan, caller, unit, own):
            add(sums, found)
        return sums

    def _calls(
        self, scan: Scan, caller: Caller, unit: Unit, own: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        if len(unit.spans) > 1:
            yield caller.joined(unit.spans)
        elif scan.slices:
            for _start, found in caller.slices(unit, self._frame.scanned, own):
                yield found
        else:
            yield caller.whole(unit.name, own)

    def _finish(
        self, scan: Scan, summary: Mapping[str, Any], params: Mapping[str, Any]
    ) -> dict[str, Any]:
        with blamed(self._job):
            result: dict[str, Any] = resolve(scan.finish)(
                summary=summary, **own_params(self._job.method, params)
            )
        return result


def add(sums: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Add numbers and tensors to sums, in the sums' own memory where that goes."""
    for key, given in found.items():
        value = given.cpu() if isinstance(given, torch.Tensor) else given
        known = sums.get(key)
        if known is None:
            # A copy: inputs' memory is used again, and the sum grows in place.
            sums[key] = value.clone() if isinstance(value, torch.Tensor) else value
        elif (
            isinstance(known, torch.Tensor)
            and isinstance(value, torch.Tensor)
            and (known.shape, known.dtype) == (value.shape, value.dtype)
            and known.is_contiguous()
        ):
            known.add_(value)
        else:
            sums[key] = known + value


def whole_tensors(job: Job, sums: Sums) -> bool:
    """Whether the merge needs whole tensors, and not slices."""
    return not sliceable(job, sums.running())
