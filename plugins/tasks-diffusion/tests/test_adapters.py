"""Adapters of the track, with diffusers, PEFT and mtk's own merging."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

import mtk
from mtk.checkpoint import SafetensorsCheckpoint
from mtk.loading import resolve
from mtk_tasks_diffusion.track import ASSET, DigitsDiffusion

if TYPE_CHECKING:
    from pathlib import Path

# `resolve` makes diffusers importable where torchvision is not healthy.
model = resolve("mtk_tasks_diffusion.model")
recipes = resolve("mtk_tasks_diffusion.recipes")
peft = resolve("peft")
diffusers = resolve("diffusers")

QUICK = recipes.Regime(steps=3, batch=8, rate=2e-2)


@pytest.fixture(scope="module")
def base() -> Any:
    return model.load(ASSET)


@pytest.fixture(scope="module")
def adapters(base: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters after three steps each."""
    folder = tmp_path_factory.mktemp("adapters")
    paths = []
    for seed, cell in enumerate(["plain-01", "inverted-23"]):
        made = recipes.tuned(base, [cell], seed=seed, regime=QUICK)
        recipes.save_adapter(made, folder / cell)
        paths.append(folder / cell)
    return paths


def inputs() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    noisy = torch.randn(6, 1, 8, 8, generator=g)
    words = torch.tensor([[0, 10], [3, 11], [9, 14], [15, 12], [2, 15], [15, 15]])
    return noisy, torch.linspace(0.1, 0.9, 6), words


def velocity(unet: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.velocity(unet, *inputs())


def random_adapter(unet: Any, name: str, rank: int, alpha: float, seed: int) -> None:
    """A LoRA with random factors, added the way of diffusers."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=recipes.TARGETS, lora_bias=False
    )
    unet.add_adapter(config, adapter_name=name)
    g = torch.Generator().manual_seed(seed)
    for key, parameter in unet.named_parameters():
        if f".{name}." in key:
            parameter.data = torch.randn(parameter.shape, generator=g) * 0.1


def test_two_active_adapters_are_the_weighted_sum_of_their_products() -> None:
    """Unequal ranks and scales: W + sum w_i (alpha_i / r_i) B_i A_i."""
    unet = model.load(ASSET)
    plain = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    before = velocity(unet)
    settings = {"one": (4, 8.0, 0.7), "two": (2, 3.0, 0.4)}
    with warnings.catch_warnings():  # two adapters are what is wanted
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        for seed, (name, (rank, alpha, _)) in enumerate(settings.items()):
            random_adapter(unet, name, rank, alpha, seed)
    unet.set_adapters(list(settings), [weight for *_, weight in settings.values()])
    live = velocity(unet)

    merged, touched = dict(plain), 0
    parts = dict(unet.named_parameters())
    for name in plain:
        stem = name.removesuffix(".weight")
        for adapter, (rank, alpha, weight) in settings.items():
            if f"{stem}.lora_A.{adapter}.weight" in parts:
                a = parts[f"{stem}.lora_A.{adapter}.weight"].data
                b = parts[f"{stem}.lora_B.{adapter}.weight"].data
                merged[name] = merged[name] + weight * alpha / rank * b @ a
                touched += 1
    static = model.build()
    static.load_state_dict(merged)
    effect = (live - before).abs().max().item()
    assert touched == 2 * adapted_layers(unet)
    assert effect > 0.1
    assert (velocity(static) - live).abs().max().item() < 1e-4 * max(effect, 1.0)


def adapted_layers(unet: Any) -> int:
    return sum(isinstance(m, peft.tuners.lora.LoraLayer) for m in unet.modules())


def test_diffusers_reads_what_is_written_and_nothing_is_lost(
    base: Any, tmp_path: Path
) -> None:
    model.save(base, tmp_path / "base")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "base", local_files_only=True
    )
    torch.testing.assert_close(velocity(theirs), velocity(base), rtol=1e-5, atol=1e-6)
    again = model.load(tmp_path / "base")
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_peft_reads_an_adapter_and_nothing_is_lost(base: Any, tmp_path: Path) -> None:
    made = recipes.tuned(base, ["faint-67"], seed=3, regime=QUICK)
    recipes.save_adapter(made, tmp_path / "adapter")
    read = peft.PeftModel.from_pretrained(model.load(ASSET), tmp_path / "adapter")
    assert torch.equal(velocity(read), velocity(made))
    assert (velocity(read) - velocity(base)).abs().max() > 1e-3
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert not any(name.endswith((".bin", ".pt")) for name in files)


def test_experts_leave_everything_but_their_targets_alone(base: Any) -> None:
    made = recipes.tuned(base, ["faint-67"], seed=3, regime=QUICK)
    trained = {n for n, p in made.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    before = base.state_dict()
    after = made.merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == len(trained) / 2
    assert all(".to_" in name for name in changed)


def test_mtk_opens_experts_on_the_base_as_products(
    base: Any, adapters: list[Path], tmp_path: Path
) -> None:
    """What ``mtk merge --base BASE --expert ADAPTER`` reads, against PEFT itself."""
    lora = pytest.importorskip("mtk_adapters_lora.lora")
    model.save(base, tmp_path / "base")
    weights = tmp_path / "base" / model.WEIGHTS_NAME
    full = SafetensorsCheckpoint([weights], "base")
    for path in adapters:
        opened = lora.open(path, base=full)
        theirs = peft.PeftModel.from_pretrained(model.load(ASSET), path)
        want = theirs.merge_and_unload().state_dict()
        assert set(opened.names()) == set(want)
        for name, tensor in want.items():
            torch.testing.assert_close(opened.read(name), tensor, rtol=1e-5, atol=1e-6)


def test_merged_adapters_are_a_folder_that_diffusers_loads(
    base: Any, adapters: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("mtk_adapters_lora")
    pytest.importorskip("mtk_methods_weights")
    model.save(base, tmp_path / "base")
    mtk.merge(
        "task_arithmetic",
        base=tmp_path / "base",
        experts=adapters,
        params={"scale": 0.5},
        output=tmp_path / "merged",
    )
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "merged", local_files_only=True
    )
    want = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for path in adapters:
        expert = peft.PeftModel.from_pretrained(model.load(ASSET), path)
        for name, tensor in expert.merge_and_unload().state_dict().items():
            want[name] += 0.5 * (tensor - base.state_dict()[name])
    for name, tensor in unet.state_dict().items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-6)


def test_statistics_and_gradients_reach_every_adapted_layer(
    base: Any, tmp_path: Path
) -> None:
    """Hooks see the linear layers, and per-example gradients agree with a plain loop."""
    track = DigitsDiffusion(cache=tmp_path, seed=0, options={})
    batch = track.data("plain-01", "validation")["inputs"]
    few = {name: tensor[:3] for name, tensor in batch.items()}
    weights = dict(base.named_parameters())
    chosen = {n: p.detach() for n, p in weights.items() if ".to_" in n}
    target = track.targets("plain-01", few)

    def loss(tensors: dict[str, torch.Tensor], one: Any, goal: Any) -> torch.Tensor:
        single = {name: tensor.unsqueeze(0) for name, tensor in one.items()}
        wrapped = _Called(base, track)
        named = {f"unet.{name}": tensor for name, tensor in tensors.items()}
        out = torch.func.functional_call(wrapped, named, (single,))
        return (out[0] - goal).square().sum() / 2

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    together = each(chosen, few, target)
    for item in range(3):
        one = {name: tensor[item : item + 1] for name, tensor in few.items()}
        out = track.outputs(base, "plain-01", one)
        plain = torch.autograd.grad(
            (out - target[item : item + 1]).square().sum() / 2,
            [weights[name] for name in chosen],
        )
        for name, gradient in zip(chosen, plain, strict=True):
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(
                together[name][item], gradient, rtol=1e-3, atol=1e-5
            )


class _Called(torch.nn.Module):
    def __init__(self, unet: Any, track: DigitsDiffusion) -> None:
        super().__init__()
        self.unet, self.track = unet, track

    def forward(self, inputs: Any) -> torch.Tensor:
        return self.track.outputs(self.unet, "plain-01", inputs)
