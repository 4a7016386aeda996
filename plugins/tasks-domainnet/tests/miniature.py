"""Small folders of the layout that the tracks read, and tiny models of the real classes.

Also loaded, by its path, by what tests these tracks with other distributions.
"""

from __future__ import annotations

import json

import torch

from mtk.loading import resolve
from mtk.training import Regime
from mtk_tasks_domainnet.cells import CIFAR, Grid

torch.set_num_threads(1)

# As in the real groups, nail is in both.
MINI = Grid(
    domains=("clipart", "real"),
    groups={"tool": ("hammer", "nail"), "office": ("alarm_clock", "nail")},
)
CLASSES = ("alarm_clock", "hammer", "nail")
COLOURS = {"alarm_clock": (220, 40, 40), "hammer": (40, 200, 60), "nail": (30, 40, 210)}
TRAIN, TEST = 10, 4  # images per class and domain
LENGTH, WIDTH = 16, 16  # of the text encoder
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


def put_ability(root):
    from PIL import Image

    for name, colour in (("cloud", "white"), ("orchid", "purple")):
        folder = root / "ability" / CIFAR / name
        folder.mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")


def put_root(root):
    """Data and CLIP."""
    put_images(root)
    put_ability(root)
    put_clip(root / "ViT-B-32-laion2b_s34b_b79k")


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


def put_tokenizer(folder):
    """One token per letter, as the vocabulary of CLIP begins."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [
        *letters,
        *(f"{c}</w>" for c in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    special = dict.fromkeys(("eos_token", "unk_token", "pad_token"), words[-1])
    special["bos_token"] = words[-2]
    folder.mkdir(parents=True)
    vocabulary = {word: place for place, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(words)


def put_scheduler(folder, kind):
    from diffusers import DDIMScheduler

    DDIMScheduler(
        prediction_type=kind,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")


def put_pipeline(folder):
    """A folder in the layout of Stable Diffusion 2.1, random and tiny."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = put_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=WIDTH,
            use_linear_projection=True,
        ).save_pretrained(folder / "unet")
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=8,
        ).save_pretrained(folder / "vae")
        config = CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
        )
        encoder = CLIPTextModel(config)
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text(config.to_json_string())
    save_file(encoder.state_dict(), folder / "text_encoder" / "model.safetensors")
    put_scheduler(folder, "v_prediction")
    (folder / "model_index.json").write_text("{}")
