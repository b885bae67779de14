"""Sums of LoRAs beside peft's own: peft adds factors, whose product has cross terms; ours are sums of products."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

from palimpsest.core.delta import LowRank
from palimpsest.core.patch import Patch
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.merge.task_arithmetic import TaskArithmetic

SHAPE, RANK, WEIGHTS = (6, 8), 2, (0.7, 0.4)


@pytest.fixture(scope="module")
def factors() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(SHAPE[0], RANK, generator=g), torch.randn(RANK, SHAPE[1], generator=g)) for _ in range(2)]


def by_peft(factors: list[tuple[Tensor, Tensor]], weights: tuple[float, float], kind: str) -> Tensor:
    """What peft's merged adapter adds to the layer."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0], bias=False)), config, adapter_name="one")
    model.add_adapter("two", config)
    layer = model.base_model.model[0]
    for name, (up, down) in zip(("one", "two"), factors, strict=True):
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = down.clone(), up.clone()
    model.add_weighted_adapter(["one", "two"], list(weights), "both", combination_type=kind)
    return layer.get_delta_weight("both").detach()


def by_us(factors: list[tuple[Tensor, Tensor]], weights: tuple[float, float]) -> tuple[Tensor, int]:
    net = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0], bias=False)).eval()
    host = ClassifierHost(net, name="net", labels=tuple("abcdef"), head="0")
    name = next(n for n, _ in host.root.named_parameters())
    parts = [Patch(base=host.fingerprint(), deltas={name: LowRank(up=u, down=d)}) for u, d in factors]
    merged = TaskArithmetic(weights=weights)(parts, host).deltas[name]
    assert isinstance(merged, LowRank)
    return merged.dense(torch.Size(SHAPE)), merged.rank()


@pytest.mark.parametrize("weights", [WEIGHTS, (0.7, -0.4)])
def test_a_weighted_sum_is_one_of_products(factors: list[tuple[Tensor, Tensor]], weights: tuple[float, float]) -> None:
    wanted = sum(w * u @ d for w, (u, d) in zip(weights, factors, strict=True))
    merged, rank = by_us(factors, weights)
    torch.testing.assert_close(merged, wanted, atol=1e-6, rtol=1e-5)
    assert rank == 2 * RANK, "it is a LoRA of the ranks' sum"


def test_pefts_linear_sum_adds_factors(factors: list[tuple[Tensor, Tensor]]) -> None:
    theirs = by_peft(factors, WEIGHTS, "linear")
    crossed = sum(w**0.5 * u for w, (u, _) in zip(WEIGHTS, factors, strict=True)) @ sum(
        w**0.5 * d for w, (_, d) in zip(WEIGHTS, factors, strict=True)
    )
    torch.testing.assert_close(theirs, crossed, atol=1e-5, rtol=1e-4)
    ours, _ = by_us(factors, WEIGHTS)
    assert float((theirs - ours).norm() / ours.norm()) > 0.3


def test_pefts_concatenation_is_ours(factors: list[tuple[Tensor, Tensor]]) -> None:
    theirs = by_peft(factors, (1.0, 1.0), "cat")
    torch.testing.assert_close(theirs, by_us(factors, (1.0, 1.0))[0], atol=1e-5, rtol=1e-4)
