"""Small folders of the layout that the tracks read, and tiny models of the real classes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from mtk.loading import resolve
from mtk_tasks_domainnet.cells import CIFAR, Grid
from mtk_tasks_domainnet.fitting import Regime

torch.set_num_threads(1)

MINI = Grid(domains=("clipart", "real"), groups={"tool": 2, "office": 2})
# As in the real groups, nail is in both.
GROUPS = {"tool": ["hammer", "nail"], "office": ["alarm_clock", "nail"]}
CLASSES = ("alarm_clock", "hammer", "nail")
COLOURS = {"alarm_clock": (220, 40, 40), "hammer": (40, 200, 60), "nail": (30, 40, 210)}
TRAIN, TEST = 10, 4  # images per class and domain
REGIME = Regime(rate=3e-3, batch=4, steps=6, seed=42, every=2, patience=3)

CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.3, 0.2]},
}


def put_images(root):
    """Images of every class and domain, and the official lists of them."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for domain in MINI.domains:
        suffix = "png" if domain == "clipart" else "jpg"
        for part, count in (("train", TRAIN), ("test", TEST)):
            lines = []
            for label, name in enumerate(CLASSES):
                folder = root / domain / name
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    noise = torch.randint(0, 30, (20, 28, 3), generator=generator)
                    pixels = torch.tensor(COLOURS[name]) + noise
                    if domain == "real":
                        pixels = 255 - pixels.clamp(0, 255)
                    image = Image.fromarray(
                        pixels.clamp(0, 255).to(torch.uint8).numpy()
                    )
                    file = f"{domain}_{part}_{label}_{number}.{suffix}"
                    image.save(folder / file)
                    lines.append(f"{domain}/{name}/{file} {label}\n")
            (root / f"{domain}_{part}.txt").write_text("".join(lines))
    (root / "groups.json").write_text(json.dumps(GROUPS))


def put_ability(root):
    from PIL import Image

    for name, colour in (("cloud", "white"), ("orchid", "purple")):
        folder = root / "ability" / CIFAR / name
        folder.mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")


def put_clip(folder, seed=0):
    from safetensors.torch import save_file

    open_clip = resolve("open_clip")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**CLIP_CONFIG["model_cfg"])
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG))
    weights = {name: t.contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


@pytest.fixture(scope="session")
def whole_root(tmp_path_factory):
    """Data and CLIP; read only."""
    root = tmp_path_factory.mktemp("domainnet")
    put_images(root)
    put_ability(root)
    put_clip(root / "ViT-B-32-laion2b_s34b_b79k")
    return root


@pytest.fixture
def root(whole_root, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(whole_root, tmp_path / "root")


@pytest.fixture
def cache(tmp_path, root):
    """A cache in which the root is noted."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "root.json").write_text(json.dumps({"root": str(root)}))
    return folder


def ignore(message, fraction=None):
    """A report that nobody reads."""


@pytest.fixture
def quiet():
    return ignore


@pytest.fixture
def mini():
    return MINI


@pytest.fixture
def regime():
    return REGIME
