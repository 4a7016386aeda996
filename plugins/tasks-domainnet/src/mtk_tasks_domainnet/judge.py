"""The judge of generated images: CLIP for classes, a linear probe on it for domains.

CLIP is the base of ``domainnet-clip``, which takes no part in the generation. Classes are
told zero-shot, by the mean embedding of one prompt per domain; domains by a probe that is
trained on real training images only. How often the judge is right about real validation
images, its ceiling, is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from mtk.checkpoint import SafetensorsCheckpoint
from mtk_tasks_domainnet import clip, computing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FILE_NAME = "judge.safetensors"
_BATCH = 64
_ROUNDS = 200  # of L-BFGS, far more than the probe needs
_DECAY = 1e-4
_SHARPNESS = 100.0  # CLIP's own scale of cosines


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What looks at images.

    Attributes:
        model: CLIP.
        prepare: image -> uint8 ``(3, s, s)``.
        normalise: what CLIP takes.
        head: of all classes once, ``(classes, width)``, rows of length 1.
        names: the classes.
        weight, bias: of the probe, ``(domains, width)`` and ``(domains,)``.
        domains: in the probe's order.
    """

    model: Any
    prepare: Callable[[Any], Tensor]
    normalise: Callable[[Tensor], Tensor]
    head: Tensor
    names: Sequence[str]
    weight: Tensor
    bias: Tensor
    domains: Sequence[str]

    def features(self, images: Sequence[Any]) -> Tensor:
        """Embeddings of length 1, ``(n, width)``."""
        return features(self.model, self.prepare, self.normalise, images)

    def categories(self, features: Tensor, among: Sequence[str]) -> list[str]:
        """The best class of each image among some."""
        places = torch.tensor([self.names.index(name) for name in among])
        best = (features @ self.head[places].T).argmax(1).tolist()
        return [among[place] for place in best]

    def seen_domains(self, features: Tensor) -> list[str]:
        """The domain that the probe sees in each image."""
        best = probe_scores(features, self.weight, self.bias).argmax(1).tolist()
        return [self.domains[place] for place in best]


def features(
    model: Any,
    prepare: Callable[[Any], Tensor],
    normalise: Callable[[Tensor], Tensor],
    images: Sequence[Any],
) -> Tensor:
    """CLIP's embeddings of images, of length 1, ``(n, width)``."""
    found = []
    with computing.lent(model) as device, torch.no_grad():
        for start in range(0, len(images), _BATCH):
            pixels = torch.stack(
                [prepare(image) for image in images[start : start + _BATCH]]
            )
            embedded = model.encode_image(normalise(pixels.to(device)), normalize=True)
            found.append(embedded.float().cpu())
    return torch.cat(found)


def probe_scores(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores of the domains, ``(n, domains)``."""
    return _SHARPNESS * features @ weight.T + bias


def train_probe(features: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A linear classifier by full-batch L-BFGS; deterministic.

    Args:
        features: ``(n, width)``.
        labels: ``(n,)``.
        count: of classes.
    """
    weight = torch.zeros(count, features.shape[1], requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=_ROUNDS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        scores = probe_scores(features, weight, bias)
        loss = functional.cross_entropy(scores, labels)
        loss = loss + _DECAY * _SHARPNESS**2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call,unused-ignore]
    return weight.detach(), bias.detach()


def zero_shot(
    model: Any, names: Sequence[str], prompts: Sequence[str], folder: Path
) -> Tensor:
    """The head of some classes, ``(classes, width)``: the mean of their prompts, length 1."""
    total = torch.zeros(())
    for prompt in prompts:
        texts = [prompt.format(clip.class_name(name, "spaces")) for name in names]
        embedded = clip.text_embeddings(model, texts, folder)
        total = total + functional.normalize(embedded, dim=1)
    return functional.normalize(total, dim=1)


def load(
    folder: Path, clip_folder: Path, names: Sequence[str], domains: Sequence[str]
) -> Judge:
    """Read the judge that `mtk tracks prepare` has made."""
    stored = SafetensorsCheckpoint([folder / FILE_NAME], str(folder))
    return Judge(
        model=clip.load(clip_folder),
        prepare=clip.whole_numbers(clip_folder),
        normalise=clip.normaliser(clip_folder),
        head=stored.read("head"),
        names=names,
        weight=stored.read("probe.weight"),
        bias=stored.read("probe.bias"),
        domains=domains,
    )
