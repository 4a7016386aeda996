"""Pickled checkpoints (``.bin .pt .pth .ckpt``): opened only when the user asks for it.

A pickle is a program. It is listed first, without running it, and refused if it names
anything but plain dense tensors; then ``torch.load(weights_only=True)`` maps the file into
memory, and what comes out must lie in the file entry by entry. Nothing is tried again with
fewer checks, and a file called ``.safetensors`` never comes here.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, first_line
from mtk.files import belongs, state_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torch import Tensor

    from mtk.declare import TensorInfo

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# The first release without CVE-2025-32434 and CVE-2026-24747.
OLDEST_TORCH = (2, 10)
WEIGHTS = "pytorch_model.bin"
INDEX = f"{WEIGHTS}.index.json"
MOST_INDEX_BYTES = 100_000_000
# A model of 50,000 tensors has 2 million instructions in 5 MB.
MOST_PICKLE_BYTES = 32_000_000
MOST_INSTRUCTIONS = 4_000_000
# Tied tensors are stored once and count twice.
MOST_EXPANSION = 2
_DENSE = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(
        f"torch.{kind}Storage"
        for kind in (
            "Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
        )
    ),
}  # fmt: skip
# What stands beside the tensors of a training checkpoint.
_BESIDE = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    *(
        f"torch.{name}"
        for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32")
    ),
}


def is_pickle(path: Path) -> bool:
    """Whether this is a pickled file, or a folder that has only pickled weights."""
    if path.is_dir():
        return not any(path.glob("*.safetensors")) and any(
            (path / name).is_file() for name in (WEIGHTS, INDEX)
        )
    return path.suffix in SUFFIXES and path.is_file()


def refusal(path: Path) -> str:
    """What to say about a pickled checkpoint that nobody asked to open."""
    return (
        f"{path} is a pickled checkpoint: loading such a file can run code\n"
        "Convert it to safetensors, or, if you trust it, add --allow-pickle"
    )


def open_pickle(path: Path, label: str) -> PickledCheckpoint:
    """Open a pickled file or folder lazily; its tensors stay in the file.

    Raises:
        CheckpointError: it is anything but a dict of plain dense tensors, or this torch
            is too old to open it.
    """
    _check_torch()
    files = _files(path) if path.is_dir() else [path]
    tensors: dict[str, tuple[Tensor, Path]] = {}
    for file in files:
        for name, tensor in _load(file).items():
            if name in tensors:
                raise CheckpointError(f"{path}: {name!r} stands in two files")
            tensors[name] = tensor, file
    return PickledCheckpoint(files, tensors, label)


class PickledCheckpoint:
    """The tensors of pickled files, mapped into memory."""

    kind = "full"

    def __init__(
        self,
        files: Iterable[Path],
        tensors: Mapping[str, tuple[Tensor, Path]],
        label: str,
    ) -> None:
        from mtk.checkpoint import describe, settle_roles

        if not tensors:
            raise CheckpointError(f"{label}: no tensors in it")
        self.label = label
        self.files = tuple(files)
        self._tensors = tensors
        self._states = {file: state_of(file) for file in self.files}
        self._infos = settle_roles(
            {
                name: describe(name, tensor.shape, tensor.dtype)
                for name, (tensor, _) in tensors.items()
            }
        )

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """One tensor, backed by the memory map where it is stored in order."""
        tensor, file = self._tensors[name]
        if state_of(file) != self._states[file]:
            raise CheckpointError(f"{file} changed while it was being read")
        return tensor.contiguous()

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat, in memory of their own."""
        return self.read(name).view(-1)[start:end].clone()


def _check_torch() -> None:
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise CheckpointError(
            f"torch {torch.__version__} does not open pickled files safely; "
            f"install {'.'.join(map(str, OLDEST_TORCH))} or newer, or convert the file"
        )


def _files(folder: Path) -> list[Path]:
    """The one pickled file of a folder, or those that its index names."""
    names, index = [WEIGHTS], folder / INDEX
    if not (folder / WEIGHTS).is_file():
        try:
            with index.open("rb") as handle:
                text = handle.read(MOST_INDEX_BYTES + 1)
            if len(text) > MOST_INDEX_BYTES:
                raise ValueError(f"more than {MOST_INDEX_BYTES:,} bytes")
            names = sorted(set(json.loads(text)["weight_map"].values()))
        except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{index}: not an index of shards: {error}"
            ) from error
        except AttributeError as error:
            raise CheckpointError(f"{index}: weight_map is not a table") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                f"{index} names {name!r}, which is not a file beside it"
            )
        if Path(name).suffix not in SUFFIXES or not belongs(folder, folder / name):
            raise CheckpointError(
                f"{index} names {name!r}, which is no pickled file of the folder"
            )
    return [folder / name for name in names]


def _load(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, after all checks."""
    import torch

    if file.suffix not in SUFFIXES or not file.is_file():
        raise CheckpointError(f"{file} is no pickled file ({', '.join(SUFFIXES)})")
    try:
        before = state_of(file)
        sizes = _check_archive(file)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        after = state_of(file)
    except CheckpointError:
        raise
    except Exception as error:  # torch and zipfile raise whatever they meet
        raise CheckpointError(
            f"{file} cannot be opened without running code: {first_line(error)}\n"
            "Convert it to safetensors where you trust it"
        ) from error
    if before != after:
        raise CheckpointError(f"{file} changed while it was being read")
    return _checked(_unwrapped(found, file), file, sizes)


def _check_archive(file: Path) -> list[int]:
    """Check the records of the archive, and what its pickle names; give their sizes."""
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"{file} is not an archive as torch.save writes it since 1.6\n"
            "Older files are pickles throughout; convert it to safetensors"
        )
    with zipfile.ZipFile(file) as archive:
        records = sorted(archive.infolist(), key=lambda record: record.header_offset)
        end = 0
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise CheckpointError(
                    f"{file}: the record {record.filename!r} is compressed or encrypted"
                )
            if record.header_offset < end:
                raise CheckpointError(
                    f"{file}: the record {record.filename!r} overlaps another one"
                )
            end = record.header_offset + record.file_size
        pickles = [r for r in records if r.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len({r.filename for r in records}) != len(records):
            raise CheckpointError(f"{file} is not an archive as torch.save writes it")
        if pickles[0].file_size > MOST_PICKLE_BYTES:
            raise CheckpointError(
                f"{file}: its pickle has {pickles[0].file_size:,} bytes, more than any list "
                "of tensors"
            )
        _check_names(archive.read(pickles[0]), file)
    return [record.file_size for record in records]


def _check_names(pickle: bytes, file: Path) -> None:
    """Refuse a pickle that names anything but dense tensors and what stands beside them."""
    last = ""
    for count, (code, value, _) in enumerate(pickletools.genops(pickle)):
        if count > MOST_INSTRUCTIONS:
            raise CheckpointError(
                f"{file}: its pickle is longer than any list of tensors"
            )
        if code.name == "BINUNICODE" and value != "storage":
            last = str(value)
        elif code.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise CheckpointError(f"{file}: its pickle has the instruction {code.name}")
        elif code.name == "GLOBAL":
            name = str(value).replace(" ", ".")
            if name not in _DENSE | _BESIDE:
                raise CheckpointError(
                    f"{file}: after {last[:80]!r} its pickle asks for {name[:80]}; only "
                    "plain dense tensors are read\n"
                    "Convert it to safetensors where you trust it"
                )


def _unwrapped(found: Any, file: Path) -> dict[Any, Any]:
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{file} holds a {type(found).__name__}, not a dict of tensors"
        )
    return found


def _checked(
    found: Mapping[Any, Any], file: Path, sizes: Sequence[int]
) -> dict[str, Tensor]:
    """The tensors, each dense and entirely in the file."""
    total, size, known = 0, sum(sizes), {0, *sizes}
    tensors = {}
    for name, value in found.items():
        what = _wrong(value, known) if isinstance(name, str) else "no name of a tensor"
        if what:
            raise CheckpointError(
                f"{file}: {str(name)[:200]!r} is {what}\n"
                "Only a dict of dense tensors is read, alone or under 'state_dict'"
            )
        total += value.numel() * value.element_size()
        if total > MOST_EXPANSION * size:
            raise CheckpointError(
                f"{file}: up to {name[:200]!r} its tensors have {total:,} bytes, the file "
                f"has {size:,}"
            )
        tensors[name] = value.detach().resolve_neg()
    return tensors


def _wrong(value: Any, sizes: Collection[int]) -> str:
    """Why a value is no tensor that can be merged; empty where it is."""
    import torch

    from mtk.checkpoint import CODES

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}"
    if (
        value.layout != torch.strided
        or value.is_quantized
        or value.device.type != "cpu"
    ):
        return "not a dense tensor"
    if value.dtype not in CODES:
        return f"of {value.dtype}, which cannot be merged"
    stored = value.untyped_storage().nbytes()
    if stored not in sizes:
        return "stored with another size than its record has"
    if value.numel() * value.element_size() > stored or any(
        step == 0 and length > 1
        for step, length in zip(value.stride(), value.shape, strict=True)
    ):
        return "an expanded view, larger than what is stored"
    return ""
