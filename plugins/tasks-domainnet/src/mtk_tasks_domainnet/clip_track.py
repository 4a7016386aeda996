"""The track ``domainnet-clip``: CLIP ViT-B/32 on 24 groups of classes x 6 domains."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk import roots
from mtk.errors import UsageError
from mtk_tasks_domainnet import inventory, model_files
from mtk_tasks_domainnet.cells import (
    CIFAR,
    CLIP_VERSION,
    DOMAINNET,
    HEAD_SCOPES,
    MULTITASK,
    NAMES,
    SPLITS,
    Grid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from mtk.roots import Part
    from mtk.training import Regime
    from mtk_tasks_domainnet.clip_data import ClipData

    Report = Callable[[str, float], None]

NAME = "domainnet-clip"
REPO = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
FILES = ("open_clip_config.json", "open_clip_model.safetensors")
_DEFAULTS = {"head_scope": HEAD_SCOPES[0], "names": NAMES[0]}
# Expert i of seed s takes the protocol's seed plus _SPREAD * s, the same for all i.
_SPREAD = 1000


class DomainNetClip:
    """One instance of the track; see `mtk.tracks.LiveTrack` and ``mtk tracks prepare``."""

    def __init__(
        self,
        *,
        cache: Path,
        seed: int,
        options: Mapping[str, object],
        grid: Grid = DOMAINNET,
        regime: Regime | None = None,
    ) -> None:
        """Check the options; nothing is read yet.

        Args:
            cache: folder where the root is noted.
            seed: of the experts' training.
            options: ``head_scope`` and ``names``.
            grid: another one than DomainNet's, for a track of one's own.
            regime: of all training, other than the protocol's.
        """
        known = {"head_scope": HEAD_SCOPES, "names": NAMES}
        for key, value in options.items():
            if value not in known.get(key, ()):
                raise UsageError(f"{NAME} has no option {key}={value}")
        self.cache, self.seed, self.grid = Path(cache), seed, grid
        self.head_scope = str(options.get("head_scope", HEAD_SCOPES[0]))
        self.names = str(options.get("names", NAMES[0]))
        self._given = regime
        self._words = roots.words(seed, options, _DEFAULTS)

    def prepare(self, report: Report) -> Mapping[str, object]:
        """The models, which ``mtk tracks prepare`` has made or imported."""
        from mtk_tasks_domainnet.clip_data import FOLDER

        root = roots.need_root(self.cache, NAME)
        roots.need_all(self._parts(root, quick=True), NAME, root, self._words)
        report("models ready", 1.0)
        return {
            "base": root / FOLDER,
            "experts": [self.place(root, cell) for cell in self.grid.held_in],
            "multitask": self.place(root, MULTITASK),
        }

    def missing(self) -> list[str]:
        """What this machine lacks, one phrase each."""
        root = roots.known_root(self.cache)
        found = self._parts(root, quick=True) if root is not None else None
        return roots.lacking(found, NAME, self._words)

    def parts(self, root: Path) -> list[Part]:
        """Everything that must be there, in the order in which it is to be got."""
        return self._parts(root, quick=False)

    def fetch(self, root: Path, name: str, report: Report) -> None:
        """Download weights or data."""
        from mtk_tasks_domainnet import download
        from mtk_tasks_domainnet.clip_data import ABILITY, FOLDER

        if name == "weights":
            download.weights(REPO, FILES, root / FOLDER, report)
        elif name == f"ability/{CIFAR}":
            download.cifar(root / ABILITY, report)
        else:
            download.data(root, self.grid, name, report)

    def make(
        self, root: Path, name: str, report: Report, *, device: str = "cpu"
    ) -> None:
        """Train an expert or the multitask model, or go on with it."""
        from mtk_tasks_domainnet import clip, clip_recipes

        needed = [p for p in self.parts(root) if p["kind"] in ("weights", "data")]
        needed = inventory.needed(needed, self.grid, name)
        roots.need_all(needed, NAME, root, self._words)
        cells = self.grid.held_in if name == MULTITASK else (name,)
        scope = "joint" if name == MULTITASK else "group"
        data = self._data_of(root)
        model, regime = clip.load(data.folder), self._regime(name)
        folder, base = self.place(root, name), self._base(root)
        folder.parent.mkdir(parents=True, exist_ok=True)
        progress = clip_recipes.train(
            model,
            data.head(cells[0], scope),
            train=[data.labelled(cell, "train", scope) for cell in cells],
            validation=[data.labelled(cell, "validation", scope) for cell in cells],
            normalise=data.normalise,
            regime=regime,
            state=roots.training_state(folder),
            identity=model_files.identity(
                model_files.hash_of(data.folder, FILES), data.chosen(cells)
            ),
            report=lambda text, share: report(f"{name}: {text}", share),
            device=device,
        )
        facts = model_files.facts(NAME, name, base, regime, progress)
        self._save(root, folder, model.state_dict(), facts)

    def adopt(self, root: Path, name: str, source: Path) -> None:
        """Import an expert: a folder or file with the vision tower, or all of the model."""
        from mtk.checkpoint import SafetensorsCheckpoint
        from mtk_tasks_domainnet import clip

        folder, file = (
            self._data_of(root).folder,
            model_files.one_file(source, FILES[1]),
        )
        base = SafetensorsCheckpoint([folder / FILES[1]], str(folder))
        expert = SafetensorsCheckpoint([file], str(file))
        clip.check_same(expert, base, str(file), may_lack="visual.")
        given = set(expert.names())
        weights = {
            n: expert.read(n).to(base.read(n).dtype) if n in given else base.read(n)
            for n in base.names()
        }
        facts = {
            "track": NAME,
            "made": name,
            "base": self._base(root),
            "imported": str(file),
        }
        self._save(root, self.place(root, name), weights, facts)

    def data(self, task: str, split: str) -> dict[str, Any]:
        """Return one split of one cell, or of base ability.

        Returns:
            ``inputs`` uint8 ``(n, 3, s, s)``, a view of a file; ``labels`` int64 ``(n,)``,
            rows of the head; ``ids``, numbers of the images over all lists.
        """
        if split not in SPLITS:
            raise UsageError(f"no split named {split!r}; the splits are {SPLITS}")
        part = self._data.labelled(task, split, self.head_scope)
        return {
            "inputs": part.images,
            "labels": part.labels,
            "ids": [image.number for image in self._data.images(task, split)],
        }

    def outputs(self, model: nn.Module, task: str, inputs: Tensor) -> Tensor:
        """Return the zero-shot logits of images, ``(n, rows)``; differentiable."""
        encoder: Any = model
        embedded: Tensor = encoder.encode_image(self._data.normalise(inputs))
        return embedded @ self._data.head(task, self.head_scope).to(embedded).T

    def predict(self, model: nn.Module, task: str, inputs: Tensor) -> list[int]:
        """Return the best row of each image; of two rows of one class, the first."""
        from mtk_tasks_domainnet import clip_recipes, computing

        canonical = self._data.canonical(task, self.head_scope)
        with computing.lent(model) as device:
            head = self._data.head(task, self.head_scope).to(device)
            rows = clip_recipes.predict(model, head, inputs, self._data.normalise)
        found: list[int] = canonical[rows.cpu()].tolist()
        return found

    def place(self, root: Path, name: str) -> Path:
        """The folder of an expert or of the multitask model."""
        # Other names in the prompts make other heads, so other models.
        variant = "" if self.names == NAMES[0] else f"-{self.names}"
        return roots.made(root, f"{NAME}-{CLIP_VERSION}{variant}", self.seed, name)

    @cached_property
    def _data(self) -> ClipData:
        return self._data_of(roots.need_root(self.cache, NAME))

    def _data_of(self, root: Path) -> ClipData:
        from mtk_tasks_domainnet.clip_data import ClipData

        return ClipData(root, self.grid, self.names)

    def _base(self, root: Path) -> str:
        """What tells the base's weights from others; empty without them."""
        return model_files.hash_of(self._data_of(root).folder, FILES[1:])

    def _parts(self, root: Path, *, quick: bool) -> list[Part]:
        from mtk_tasks_domainnet.clip_data import ABILITY, FOLDER

        found = [
            model_files.weights_part("weights", root / FOLDER, FILES, f"{REPO} (Hub)")
        ]
        found += inventory.data_parts(root, self.grid, quick=quick)
        found.append(inventory.ability(root / ABILITY, self.grid, quick=quick))
        names: Sequence[str] = (*self.grid.held_in, MULTITASK)
        base = self._base(root)
        return found + [
            roots.model_part(
                self.place(root, name),
                name,
                kind=MULTITASK if name == MULTITASK else "expert",
                ready=all(p["there"] for p in inventory.needed(found, self.grid, name)),
                steps=self._regime(name).steps,
                base=base,
            )
            for name in names
        ]

    def _regime(self, name: str) -> Regime:
        from mtk_tasks_domainnet import clip_recipes

        usual = clip_recipes.MULTITASK if name == MULTITASK else clip_recipes.EXPERT
        chosen = self._given or usual
        return replace(chosen, seed=chosen.seed + _SPREAD * self.seed)

    def _save(
        self,
        root: Path,
        folder: Path,
        weights: Mapping[str, Tensor],
        facts: dict[str, Any],
    ) -> None:
        from safetensors.torch import save

        from mtk.folders import put_file

        plain = {n: t.detach().to("cpu").contiguous() for n, t in weights.items()}
        config = self._data_of(root).folder / FILES[0]

        def fill(work: Path) -> None:
            put_file(work, FILES[0], config)
            put_file(work, FILES[1], save(plain, {"format": "pt"}))

        roots.finish(folder, fill, facts)
