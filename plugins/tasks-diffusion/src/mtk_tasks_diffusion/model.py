"""The generator: a diffusers UNet small enough to sample from on one CPU thread.

Flow matching: at time ``t`` in 0..1 an image ``x`` and noise ``e`` are mixed as
``(1 - t) x + t e``, and the network predicts the velocity ``e - x``. There is no
autoencoder. Squares of 2 x 2 pixels are laid into four channels before the network and
back after it, which is exact and four times as fast.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from mtk_tasks_diffusion.cells import BLANK, WORDS
from mtk_tasks_diffusion.data import SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
PATCH = 2
WORD_WIDTH = 32
STEPS = 4  # of the sampler; 8, 16 and 32 were not judged better
GUIDANCE = 1.5
_TRAIN_TIMESTEPS = 1000  # what diffusers calls time 1

UNET_CONFIG: dict[str, Any] = {
    "sample_size": SIZE // PATCH,
    "in_channels": PATCH**2,
    "out_channels": PATCH**2,
    "block_out_channels": (48,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D",),
    "norm_num_groups": 8,
    "attention_head_dim": 6,
    "cross_attention_dim": WORD_WIDTH,
    "use_linear_projection": True,
}


def build(seed: int = 0) -> nn.Module:
    """Return a freshly initialised UNet; global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _explicit(_unet_class()(**UNET_CONFIG))


def load(folder: Path) -> nn.Module:
    """Read a folder of diffusers into a float32 model in evaluation mode."""
    from safetensors.torch import load_file

    kind = _unet_class()
    config = kind.load_config(folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        unet = kind.from_config(config)
    unet.load_state_dict(load_file(str(folder / WEIGHTS_NAME)))
    return _explicit(unet.float().eval())


def save(unet: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model as a folder that diffusers' ``from_pretrained`` loads."""
    from safetensors.torch import save as encoded

    folder.mkdir(parents=True, exist_ok=True)
    unet.save_config(folder)
    weights = {
        name: tensor.detach().to(dtype).contiguous()
        for name, tensor in unet.state_dict().items()
    }
    # Encoded first, because files that safetensors opens itself are private.
    content = encoded(weights, metadata={"format": "pt"})
    (folder / WEIGHTS_NAME).write_bytes(content)


def _unet_class() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel


def _explicit(unet: Any) -> nn.Module:
    """Attention written out: torch's fused kernel has no rule for per-example gradients."""
    from diffusers.models.attention_processor import AttnProcessor

    unet.set_attn_processor(AttnProcessor())
    result: nn.Module = unet
    return result


@lru_cache(maxsize=1)
def word_vectors() -> Tensor:
    """The frozen embedding of the words: signs from a hash, ``(words, WORD_WIDTH)``.

    Nothing is learned or stored. Words are nearly, but not quite, orthogonal.
    """
    rows = []
    for word in WORDS:
        raw = hashlib.sha256(f"word {word}".encode()).digest()
        bits = [byte >> i & 1 for byte in raw for i in range(8)]
        rows.append(bits[:WORD_WIDTH])
    return torch.tensor(rows, dtype=torch.float32) * 2 - 1


def velocity(unet: Any, noisy: Tensor, time: Tensor, words: Tensor) -> Tensor:
    """Predict the velocity.

    Args:
        unet: the UNet, or anything called like it.
        noisy: mixtures of image and noise, ``(n, 1, SIZE, SIZE)``.
        time: 0 is the image and 1 the noise, ``(n,)``.
        words: positions in ``WORDS``, ``(n, 2)``.

    Returns:
        ``(n, 1, SIZE, SIZE)``.
    """
    folded = functional.pixel_unshuffle(noisy, PATCH)  # (n, 4, SIZE/2, SIZE/2)
    states = word_vectors()[words].to(noisy)  # (n, 2, WORD_WIDTH)
    (predicted,) = unet(folded, time * _TRAIN_TIMESTEPS, states, return_dict=False)
    return functional.pixel_shuffle(predicted, PATCH)


def guided(
    unet: Any, noisy: Tensor, time: Tensor, words: Tensor, guidance: float
) -> Tensor:
    """The velocity without a prompt, and ``guidance`` times what the prompt adds to it.

    Arguments and result as of `velocity`; both are computed in one batch.
    """
    blank = torch.full_like(words, WORDS.index(BLANK))
    both = velocity(
        unet,
        torch.cat([noisy, noisy]),
        torch.cat([time, time]),
        torch.cat([words, blank]),
    )
    asked, plain = both.chunk(2)
    return plain + guidance * (asked - plain)


def sample(
    unet: Any,
    noise: Tensor,
    words: Tensor,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Turn noise into images by Euler steps of diffusers' flow matching scheduler.

    Args:
        unet: the UNet.
        noise: where every image starts, ``(n, 1, SIZE, SIZE)``.
        words: positions in ``WORDS``, ``(n, 2)``.
        steps: of the scheduler, each with two evaluations of the network.
        guidance: classifier-free; 1 is none.

    Returns:
        Images in -1..1, ``(n, 1, SIZE, SIZE)``.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    kind: Any = FlowMatchEulerDiscreteScheduler
    scheduler = kind(num_train_timesteps=_TRAIN_TIMESTEPS)
    # Given, because the scheduler's own last step goes from 0.001 to 0 and does nothing.
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    images = noise
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            time = (timestep / _TRAIN_TIMESTEPS).expand(len(noise))
            predicted = guided(unet, images, time, words, guidance)
            (images,) = scheduler.step(predicted, timestep, images, return_dict=False)
    return images.clamp(-1.0, 1.0)
