"""Fisher and Gram of the libraries' own models: an encoder-decoder and a UNet."""

from __future__ import annotations

import pytest
import torch

from mtk._torchvision import ensure_importable
from mtk.live import LiveTask, linear_layers
from mtk.statistics import collect

ensure_importable()


def test_an_encoder_decoder_has_both_statistics() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {
        "source": torch.randint(1, 20, (6, 5)),
        "decoder": torch.randint(1, 20, (6, 4)),
        "targets": torch.randint(1, 20, (6, 4)),
        "read": torch.arange(5) < torch.randint(2, 6, (6, 1)),
        "written": torch.arange(4) < torch.randint(1, 5, (6, 1)),
    }

    def forward(module, x):
        return module(
            input_ids=x["source"],
            attention_mask=x["read"].long(),
            decoder_input_ids=x["decoder"],
            use_cache=False,
        ).logits

    def rows(name, x):
        source = name.startswith("encoder") or name.endswith(
            ("EncDecAttention.k", "EncDecAttention.v")
        )
        return x["read"] if source else x["written"]

    task = LiveTask(
        name="t5",
        module=model,
        forward=forward,
        inputs=inputs,
        mask=lambda x: x["written"],
        targets=lambda x: x["targets"],
        gram_mask=rows,
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    fisher = collect("fisher", task, weights, estimator="empirical")
    want = {name: torch.zeros_like(p) for name, p in weights.items()}
    for i in range(6):
        one = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        model.zero_grad()
        logs = forward(model, one)[0].log_softmax(-1)
        own = logs.gather(-1, one["targets"][0][:, None])[:, 0]
        own[one["written"][0]].mean().backward()
        for name, p in model.named_parameters():
            want[name] += p.grad**2 / 6
    assert set(fisher) == set(weights)
    for name, tensor in fisher.items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-3, atol=1e-9)
    gram = collect("gram", task, weights)
    assert set(gram) == set(linear_layers(model)) & set(weights)
    with torch.no_grad():
        hidden = model.encoder(inputs["source"], inputs["read"].long())[0]
    read = hidden[inputs["read"]]
    for part in "kv":
        name = f"decoder.block.0.layer.1.EncDecAttention.{part}.weight"
        torch.testing.assert_close(gram[name], read.T @ read / len(read))


def test_a_unet_has_both_statistics() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    task = LiveTask(
        name="unet",
        module=model.eval().requires_grad_(False),
        forward=lambda m, x: m(
            x["image"], x["time"], encoder_hidden_states=x["text"]
        ).sample.flatten(1),
        inputs={
            "image": torch.randn(4, 1, 8, 8),
            "time": torch.randint(0, 1000, (4,)),
            "text": torch.randn(4, 3, 8),
        },
        output="gaussian",
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    said: list[str] = []
    fisher = collect("fisher", task, weights, tell=said.append)
    assert set(fisher) == set(weights)
    assert len(said) == 1  # sampled targets; vmap does it
    gram = collect("gram", task, weights)
    projections = [n for n in weights if ".to_" in n and n.endswith("weight")]
    assert projections
    assert set(projections) <= set(gram)
    assert all(weights[name].ndim == 2 for name in gram)
    name = next(n for n in projections if "attn2.to_k" in n)
    text = task.inputs["text"].flatten(0, 1)
    torch.testing.assert_close(gram[name], text.T @ text / len(text))
