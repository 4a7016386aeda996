"""Stable Diffusion in its parts, read from a folder in diffusers' layout.

``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler`` are loaded from local
safetensors files only; whether the UNet predicts the noise or the velocity is the
scheduler's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtk.errors import CheckpointError, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
TARGETS = ("epsilon", "v_prediction")


def load_unet(folder: Path) -> nn.Module:
    """The UNet of a pipeline's ``unet`` folder, float32, without gradients."""
    from diffusers import UNet2DConditionModel

    unet: nn.Module = _loaded(UNet2DConditionModel, folder)
    return unet


def load_vae(folder: Path) -> Any:
    """The autoencoder of a pipeline."""
    from diffusers import AutoencoderKL

    return _loaded(AutoencoderKL, folder / "vae")


def _loaded(kind: Any, folder: Path) -> Any:
    try:
        model = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} could not be loaded: {first_line(error)}"
        ) from error
    return model.float().eval().requires_grad_(False)


def load_scheduler(folder: Path, *, sampling: bool) -> Any:
    """The schedule of a pipeline: for training, or as a deterministic sampler."""
    import diffusers

    kind: Any = diffusers.DDIMScheduler if sampling else diffusers.DDPMScheduler
    config = kind.load_config(folder / "scheduler", local_files_only=True)
    scheduler = kind.from_config(
        {k: v for k, v in config.items() if not k.startswith("_")}
    )
    if scheduler.config.prediction_type not in TARGETS:
        raise UsageError(
            f"{folder}: the scheduler's prediction_type is "
            f"{scheduler.config.prediction_type!r}, not one of {', '.join(TARGETS)}"
        )
    return scheduler


def embed(folder: Path, prompts: Sequence[str]) -> Tensor:
    """What the text encoder makes of some prompts, (n, length, width)."""
    from transformers import CLIPTextModel, CLIPTokenizer

    quiet = _without_bars()
    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(
            str(folder / "tokenizer"), local_files_only=True
        )
        encoder: Any = CLIPTextModel.from_pretrained(
            str(folder / "text_encoder"),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} could not be loaded: {first_line(error)}"
        ) from error
    finally:
        quiet()
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=encoder.config.max_position_embeddings,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        states: Tensor = encoder.eval()(tokens)[0]
    return states


def _without_bars() -> Callable[[], None]:
    """Silence transformers' progress bars; call the result to have them back."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    return bars.enable_progress_bar if shown else lambda: None


def encode(vae: Any, images: Tensor) -> Tensor:
    """Images in -1..1, (n, 3, s, s), to scaled latents; the mean, nothing is drawn."""
    with torch.no_grad():
        latents: Tensor = vae.encode(images).latent_dist.mode()
    return latents * float(vae.config.scaling_factor)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents to whole numbers, uint8 (n, 3, s, s)."""
    with torch.no_grad():
        images: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    pixels = (images.clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).cpu()


def target(scheduler: Any, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What the UNet is to predict: the noise, or the velocity of v-prediction."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: Tensor = scheduler.get_velocity(latents, noise, time)
    return velocity


def predicted(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    noise: Tensor,
    time: Tensor,
    states: Tensor,
) -> Tensor:
    """The UNet's prediction for latents mixed with noise at some times, (n, c, h, w)."""
    noisy = scheduler.add_noise(latents, noise, time)
    (found,) = unet(noisy, time, encoder_hidden_states=states, return_dict=False)
    result: Tensor = found
    return result


def sample(
    unet: Any,
    scheduler: Any,
    noise: Tensor,
    states: Tensor,
    blank: Tensor,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """Latents from noise by DDIM, which draws nothing on the way.

    Args:
        unet: the UNet.
        scheduler: of :func:`load_scheduler`, for sampling.
        noise: where every image starts, ``(n, c, h, w)``.
        states: of the prompts, ``(n, length, width)``.
        blank: of the empty prompt, ``(1, length, width)``.
        steps: evaluations of the network.
        guidance: weight of the prompt against the empty prompt; 1 leaves that out.
    """
    scheduler.set_timesteps(steps)
    latents: Tensor = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for time in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, time)
            (made,) = unet(
                scaled, time, encoder_hidden_states=states, return_dict=False
            )
            if guidance != 1:
                without = blank.expand(len(noise), -1, -1)
                (plain,) = unet(
                    scaled, time, encoder_hidden_states=without, return_dict=False
                )
                made = plain + guidance * (made - plain)
            latents = scheduler.step(made, time, latents, return_dict=False)[0]
    return latents
