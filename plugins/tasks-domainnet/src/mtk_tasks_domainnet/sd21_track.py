"""The track ``domainnet-sd21``: Stable Diffusion 2.1 with LoRA on DomainNet's grid."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk import roots
from mtk.errors import UsageError
from mtk_tasks_domainnet import inventory, model_files
from mtk_tasks_domainnet.cells import (
    DOMAINNET,
    HEAD_SCOPES,
    MULTITASK,
    SD21_VERSION,
    SPLITS,
    Grid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from mtk.images import Generated
    from mtk.roots import Part
    from mtk.training import Regime
    from mtk_tasks_domainnet.sd21_generating import Generator

    Report = Callable[[str, float], None]

NAME = "domainnet-sd21"
REPO = "stabilityai/stable-diffusion-2-1"
FILES = model_files.SD21
JUDGE = "judge"
_PACKAGES = ("diffusers", "peft", "transformers")
_INSTALL = "mtk-tasks-domainnet[generation]"
_DEFAULTS: Mapping[str, Any] = {
    "head_scope": HEAD_SCOPES[0],
    "images": 20,
    "steps": 25,
    "guidance": 7.5,
}
# Items of the other splits; a cell's test split has as many as the option says.
_ITEMS = {"train": 64, "validation": 16}
_SPREAD = 1000


class DomainNetSd21:
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
            seed: of the adapters' training.
            options: ``head_scope``, ``images``, ``steps`` and ``guidance``.
            grid: another one than DomainNet's, for a track of one's own.
            regime: of all training, other than ours.
        """
        unknown = set(options) - set(_DEFAULTS)
        if unknown:
            raise UsageError(f"{NAME} has no option {min(unknown)!r}")
        self.options: Mapping[str, Any] = {**_DEFAULTS, **options}
        if self.options["head_scope"] not in HEAD_SCOPES:
            raise UsageError(f"head_scope is one of {', '.join(HEAD_SCOPES)}")
        self.cache, self.seed, self.grid = Path(cache), seed, grid
        self._given = regime
        self._words = roots.words(seed, options, _DEFAULTS)

    def prepare(self, report: Report) -> Mapping[str, object]:
        """The models, which ``mtk tracks prepare`` has made or imported."""
        from mtk_tasks_domainnet.sd21_data import FOLDER

        root = roots.need_root(self.cache, NAME)
        roots.need_all(self._parts(root, quick=True), NAME, root, self._words)
        report("models ready", 1.0)
        return {
            "base": root / FOLDER / "unet",
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
        from mtk_tasks_domainnet import clip_track, download
        from mtk_tasks_domainnet.clip_data import FOLDER as CLIP_FOLDER
        from mtk_tasks_domainnet.sd21_data import FOLDER

        if name == "weights":
            download.weights(REPO, FILES, root / FOLDER, report)
        elif name == "judge weights":
            download.weights(
                clip_track.REPO, clip_track.FILES, root / CLIP_FOLDER, report
            )
        else:
            download.data(root, self.grid, name, report)

    def make(
        self, root: Path, name: str, report: Report, *, device: str = "cpu"
    ) -> None:
        """Train an adapter or the multitask adapter, or go on with it; or the judge."""
        from mtk_tasks_domainnet import diffusion, sd21_recipes
        from mtk_tasks_domainnet.sd21_data import Sd21Data

        parts = [p for p in self.parts(root) if p["kind"] not in ("expert", MULTITASK)]
        roots.need_all(self._needed(parts, name), NAME, root, self._words)
        data, folder = Sd21Data(root, self.grid), self.place(root, name)
        base = self._base(root, name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if name == JUDGE:
            from mtk_tasks_domainnet.sd21_judging import make_judge

            report("looking at real images", 0.0)
            facts = {"track": NAME, "made": JUDGE, "base": base}
            make_judge(data, folder, facts)
            return
        regime = self._regime(name)
        cells = self.grid.held_in if name == MULTITASK else (name,)
        unet = diffusion.load_unet(data.folder / "unet")
        model = sd21_recipes.adapted(unet, seed=regime.seed)
        progress = sd21_recipes.train(
            model,
            [data.training(cell) for cell in cells],
            data.scheduler,
            regime=regime,
            state=roots.training_state(folder),
            identity=model_files.identity(
                model_files.hash_of(data.folder, FILES), data.chosen(cells)
            ),
            report=lambda text, share: report(f"{name}: {text}", share),
            device=device,
        )

        def fill(work: Path) -> None:
            sd21_recipes.save_adapter(model, work)

        facts = model_files.facts(NAME, name, base, regime, progress)
        roots.finish(folder, fill, facts)

    def adopt(self, root: Path, name: str, source: Path) -> None:
        """Import a LoRA adapter of the UNet's attention, as PEFT writes it."""
        from mtk_tasks_domainnet.sd21_adopting import adopt
        from mtk_tasks_domainnet.sd21_data import FOLDER

        if name == JUDGE:
            raise UsageError("the judge is made, not imported")
        facts = {
            "track": NAME,
            "made": name,
            "base": self._base(root, name),
            "imported": str(source),
        }
        adopt(source, root / FOLDER / "unet", self.place(root, name), facts)

    def build(self, path: Path) -> nn.Module:
        """The UNet of a folder in diffusers' layout."""
        from mtk_tasks_domainnet import diffusion

        return diffusion.load_unet(path)

    def data(self, task: str, split: str) -> dict[str, Any]:
        """Return one split of one cell, or of the neutral prompts.

        Returns:
            ``inputs``: ``latents`` of real images, ``(n, c, h, w)``; ``noise``, which they
            are mixed with and images are generated from; ``time`` int64 ``(n,)``;
            ``prompt`` int64 ``(n,)``, among the task's prompts. ``labels``: n `Wanted`.
            ``ids``: a number for each noise, which no two items share.
        """
        if split not in SPLITS:
            raise UsageError(f"no split named {split!r}; the splits are {SPLITS}")
        count = int(_ITEMS.get(split, self.options["images"]))
        return self._generator.items(task, split, count)

    def outputs(
        self, model: nn.Module, task: str, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Return what the UNet predicts at the inputs' times, ``(n, numbers)``."""
        return self._generator.predicted(model, task, inputs)

    def targets(
        self,
        task: str,  # noqa: ARG002  the contract of tracks passes it
        inputs: Mapping[str, Tensor],
    ) -> Tensor:
        """Return what it should predict: noise or velocity, ``(n, numbers)``."""
        return self._generator.targets(inputs)

    def predict(
        self, model: nn.Module, task: str, inputs: Mapping[str, Tensor]
    ) -> list[Generated]:
        """Generate the images of a task, and let the judge look at them."""
        return self._generator.judged(model, task, inputs)

    def sheet(self, model: nn.Module) -> bytes:
        """The first test image of every held-in cell as a PNG, one row per domain."""
        return self._generator.sheet(model)

    def place(self, root: Path, name: str) -> Path:
        """The folder of an adapter, or of the judge, which knows no seed."""
        track = f"{NAME}-{SD21_VERSION}"
        if name == JUDGE:
            return root / "mtk" / track / JUDGE
        return roots.made(root, track, self.seed, name)

    @cached_property
    def _generator(self) -> Generator:
        from mtk_tasks_domainnet.sd21_data import Sd21Data
        from mtk_tasks_domainnet.sd21_generating import Generator

        root = roots.need_root(self.cache, NAME)
        return Generator(
            Sd21Data(root, self.grid), self.place(root, JUDGE), self.options
        )

    def _needed(self, parts: list[Part], name: str) -> list[Part]:
        if name == JUDGE:
            return [p for p in parts if p["kind"] in ("weights", "data", "package")]
        needed = inventory.needed(parts, self.grid, name)
        return [p for p in needed if p["name"] != "judge weights"]

    def _base(self, root: Path, name: str) -> str:
        """What tells the weights that a model stands on from others; empty without."""
        from mtk_tasks_domainnet import clip_track
        from mtk_tasks_domainnet.clip_data import FOLDER as CLIP_FOLDER
        from mtk_tasks_domainnet.sd21_data import FOLDER

        if name == JUDGE:
            return model_files.hash_of(root / CLIP_FOLDER, clip_track.FILES)
        return model_files.hash_of(root / FOLDER, model_files.SD21_DECIDING)

    def _parts(self, root: Path, *, quick: bool) -> list[Part]:
        from mtk_tasks_domainnet import clip_track
        from mtk_tasks_domainnet.clip_data import FOLDER as CLIP_FOLDER
        from mtk_tasks_domainnet.sd21_data import FOLDER

        clip = clip_track.REPO
        found = [
            roots.package_part(_PACKAGES, _INSTALL),
            model_files.weights_part("weights", root / FOLDER, FILES, f"{REPO} (Hub)"),
            model_files.weights_part(
                "judge weights", root / CLIP_FOLDER, clip_track.FILES, f"{clip} (Hub)"
            ),
            *inventory.data_parts(root, self.grid, quick=quick),
        ]
        judge = roots.model_part(
            self.place(root, JUDGE),
            JUDGE,
            kind="judge",
            ready=all(p["there"] for p in self._needed(found, JUDGE)),
            base=self._base(root, JUDGE),
        )
        base = self._base(root, MULTITASK)
        return [
            *found,
            judge,
            *(
                roots.model_part(
                    self.place(root, name),
                    name,
                    kind=MULTITASK if name == MULTITASK else "expert",
                    ready=all(p["there"] for p in self._needed(found, name)),
                    steps=self._regime(name).steps,
                    base=base,
                )
                for name in (*self.grid.held_in, MULTITASK)
            ),
        ]

    def _regime(self, name: str) -> Regime:
        from mtk_tasks_domainnet import sd21_recipes

        usual = sd21_recipes.MULTITASK if name == MULTITASK else sd21_recipes.EXPERT
        chosen = self._given or usual
        return replace(chosen, seed=chosen.seed + _SPREAD * self.seed)
