"""UCE's debiasing against its paper's formula, written once more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from erase_fixtures import (
    Judge,
)
from hosts_fixtures import sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.trace import Trace
from palimpsest.erase.uce_debias import UCEDebias
from palimpsest.hosts.sd import SDHost

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def test_debiasing_adds_up_what_is_missing(host: SDHost) -> None:
    """A judge that always sees the first attribute: each round adds (0.25 - 1, 0.75) once more."""
    seen: list[int] = []

    def logits(images: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.tensor([[0.0, 9.0, 1.0]]).repeat(len(images), 1)  # "mint" is no attribute

    judge = Judge(("blue", "mint", "red"), logits)
    method = UCEDebias(
        attributes=("red", "blue"), ratios=(0.25, 0.75), rounds=2, per_round=3, walk_steps=2, ridge=0.2, keep_weight=0.5
    )
    patch = method(host, Request(target=(STAR,), keep=(HOUSE,)), beside={"judge": judge})
    assert seen == [3, 3]
    c, k, red, blue = (_last(host, t) for t in ("star", "house", "red", "blue"))
    answer = c + 2 * (0.25 - 1) * red + 2 * 0.75 * blue
    for name, layer in {**host.parts("cross_key"), **host.parts("cross_value")}.items():
        w = layer.get_parameter("weight").detach().double()
        left = 0.2 * w + torch.outer(w @ answer, c) + 0.5 * torch.outer(w @ k, k)
        right = torch.outer(c, c) + 0.5 * torch.outer(k, k) + 0.2 * torch.eye(len(c), dtype=torch.float64)
        expected = left @ torch.linalg.inv(right) - w
        change = patch.deltas[f"{name}.weight"].dense(w.shape).double()
        assert (change - expected).norm() <= 1e-4 * expected.norm()


def _last(host: SDHost, text: str) -> Tensor:
    cond = host.encode([text])
    return cond.states[0, int(cond.lengths[0]) - 2].double()


def test_a_judge_must_know_the_attributes(host: SDHost) -> None:
    judge = Judge(("cat", "dog"), lambda images: torch.zeros(len(images), 2))
    with pytest.raises(BadRequest, match="has no label 'man'"):
        UCEDebias(rounds=1, per_round=2, walk_steps=2)(host, Request(target=(STAR,)), beside={"judge": judge})
    with pytest.raises(Unsupported, match="as its judge, needs a Classifier"):
        UCEDebias()(host, Request(target=(STAR,)), beside={"judge": host})


def test_debiasing_leaves_what_is_balanced(host: SDHost) -> None:
    method = UCEDebias(rounds=5, per_round=4, walk_steps=2)
    trace = Trace()
    judge = Judge(("man", "woman"), lambda images: torch.eye(2)[torch.arange(len(images)) % 2])
    patch = method(host, Request(target=(STAR,)), beside={"judge": judge}, trace=trace)
    assert not patch.deltas
    assert [name for _, name, _ in trace.log] == ["largest gap"]
