"""Vision models of transformers, with random weights: with our layers they train as with torch's."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm as bn

transformers = pytest.importorskip("transformers", reason="the models are those of transformers")

SMALL: dict[str, Callable[[], Any]] = {
    "resnet": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    ),
    "resnet-bottleneck": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])
    ),
    "regnet": lambda: transformers.RegNetForImageClassification(
        transformers.RegNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8)
    ),
    "mobilenet_v2": lambda: transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(
            depth_multiplier=0.25, min_depth=4, classifier_dropout_prob=0.0, tf_padding=False
        )
    ),
    "efficientnet": lambda: transformers.EfficientNetForImageClassification(
        transformers.EfficientNetConfig(
            width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, dropout_rate=0.0, drop_connect_rate=0.0
        )
    ),
}


def trained(model: nn.Module, scale: float = 1.0, steps: int = 3) -> list[torch.Tensor]:
    """The outputs of the steps, the last gradients, and all parameters and buffers; `scale` is that of the pictures."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        pictures = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        logits = model(pixel_values=pictures * scale).logits
        logits.square().mean().backward()
        optimizer.step()
        found.append(logits.detach())
    return [*found, *(p.grad for p in model.parameters() if p.grad is not None), *model.state_dict().values()]


@pytest.mark.parametrize("fuse", [False, True], ids=["converted", "fused"])
@pytest.mark.parametrize("name", SMALL)
def test_trains_as_with_torchs_layers(name: str, fuse: bool) -> None:
    torch.manual_seed(0)
    theirs = SMALL[name]().double().train()
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in theirs.modules())
    ours = bn.convert(copy.deepcopy(theirs), fuse=fuse)
    assert sum(isinstance(m, bn.BatchNorm2d) for m in ours.modules()) == norms > 5
    if fuse:
        assert (
            sum(getattr(m, "activation", None) is not None for m in ours.modules() if isinstance(m, bn.BatchNorm)) > 1
        )
    nudged = trained(copy.deepcopy(theirs), 1 + 1e-15)  # what rounding of the pictures alone makes of it
    for got, wanted, other in zip(trained(ours), trained(theirs), nudged, strict=True):
        budget = 1e-10 * max(1.0, wanted.abs().max().item()) + 10 * (other - wanted).abs().max().item()
        assert (got - wanted).abs().max().item() <= budget


def test_frozen_batch_norms_of_detection_models() -> None:
    """They become frozen layers of ours: the same outputs in training, and no statistic is updated."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=3, dropout=0.0, activation_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.DetrModel(config).double().train()
    frozen = [m for m in theirs.modules() if "Frozen" in type(m).__name__]
    assert frozen
    ours = bn.convert(copy.deepcopy(theirs))
    layers = [m for m in ours.modules() if isinstance(m, bn.BatchNorm)]
    assert len(layers) == len(frozen)
    assert all(layer.frozen for layer in layers)
    before = [layer.running_mean.clone() for layer in layers]
    pictures = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(
        ours(pixel_values=pictures).last_hidden_state, theirs(pixel_values=pictures).last_hidden_state
    )
    assert all(torch.equal(layer.running_mean, old) for layer, old in zip(layers, before, strict=True))
