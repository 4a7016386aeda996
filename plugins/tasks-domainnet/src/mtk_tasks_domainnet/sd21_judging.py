"""Making the judge of ``domainnet-sd21``, and measuring its ceiling on real images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk.roots import finish
from mtk_tasks_domainnet import clip, judge, prompts
from mtk_tasks_domainnet.clip_data import FOLDER as CLIP_FOLDER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mtk_tasks_domainnet.sd21_data import Sd21Data


def make_judge(data: Sd21Data, folder: Path, told: Mapping[str, Any]) -> None:
    """Train the probe on real training images, and write it with its ceiling.

    Args:
        data: of the root.
        folder: of the judge.
        told: more for its manifest.
    """
    from safetensors.torch import save

    from mtk.folders import put_file

    clip_folder = data.root / CLIP_FOLDER
    model = clip.load(clip_folder)
    prepare, normalise = clip.whole_numbers(clip_folder), clip.normaliser(clip_folder)
    wordings = [prompts.of_domain(domain) for domain in data.grid.domains]
    head = judge.zero_shot(model, data.grid.classes, wordings, clip_folder)
    features, labels = [], []
    for place, domain in enumerate(data.grid.domains):
        pictures = data.opened(data.of_domain(domain, "train"))
        features.append(judge.features(model, prepare, normalise, pictures))
        labels += [place] * len(pictures)
    weight, bias = judge.train_probe(
        torch.cat(features), torch.tensor(labels), len(data.grid.domains)
    )
    made = judge.Judge(
        model=model,
        prepare=prepare,
        normalise=normalise,
        head=head,
        names=data.grid.classes,
        weight=weight,
        bias=bias,
        domains=data.grid.domains,
    )
    tensors = {"head": head, "probe.weight": weight, "probe.bias": bias}
    facts: dict[str, Any] = {
        **told,
        "images": len(labels),
        "ceiling": ceiling(made, data),
    }

    def fill(work: Path) -> None:
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        put_file(work, judge.FILE_NAME, save(plain))

    finish(folder, fill, facts)


def ceiling(made: judge.Judge, data: Sd21Data) -> dict[str, dict[str, float]]:
    """How often the judge is right about real validation images, by domain."""
    found = {}
    for domain in data.grid.domains:
        images = data.of_domain(domain, "validation")
        if not images:
            continue
        features = made.features(data.opened(images))
        right = [
            (image.name == category, domain == seen)
            for image, category, seen in zip(
                images,
                made.categories(features, data.grid.classes),
                made.seen_domains(features),
                strict=True,
            )
        ]
        found[domain] = {
            "category": sum(c for c, _ in right) / len(right),
            "domain": sum(d for _, d in right) / len(right),
            "joint": sum(c and d for c, d in right) / len(right),
        }
    return found
