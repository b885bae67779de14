"""RECE against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.erase.rece import RECE
from palimpsest.hosts.sd import SDHost
from palimpsest.testing import check_method

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def weights(host: Any) -> dict[str, Tensor]:
    layers = {**host.parts("cross_key"), **host.parts("cross_value")}
    return {f"{name}.weight": layer.weight.detach().double() for name, layer in layers.items()}


def states(host: Any, text: str, first: str) -> Tensor:
    """All states ("all"), those from the last token of the text on ("tail"), or that one alone ("last")."""
    cond = host.encode([text])
    if first == "all":
        return cond.states[0].double()
    i = int(cond.lengths[0]) - 2
    return (cond.states[0, i : i + 1] if first == "last" else cond.states[0, i:]).double()


def solve(w: Tensor, e: Tensor, v: Tensor, k: Tensor, keep_weight: float, ridge: float) -> Tensor:
    left = ridge * w + (w @ v.T) @ e + keep_weight * (w @ k.T) @ k
    return left @ torch.linalg.inv(e.T @ e + keep_weight * k.T @ k + ridge * torch.eye(w.shape[1]))


def changes(patch: Any, host: Any) -> dict[str, Tensor]:
    return {n: patch.deltas[n].dense(w.shape).double() for n, w in weights(host).items()}


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_rece_is_the_papers_loop(host: SDHost, rounds: int) -> None:
    patch = RECE(rounds=rounds, mimic_ridge=1e-2)(host, Request(target=(STAR,), keep=(HOUSE,)))
    c, v = states(host, "star", "tail"), states(host, "", "tail")
    k = torch.cat([v, states(host, "house", "tail")])
    v = v[: len(c)]
    c = c[: len(v)]
    old = weights(host)
    new = {n: solve(w, c, v, k, 0.1, 0.1) for n, w in old.items()}
    for _ in range(rounds):
        a = torch.as_tensor(sum(w.T @ w for w in new.values())) + 1e-2 * torch.eye(c.shape[1])
        b = torch.as_tensor(sum(new[n].T @ old[n] for n in old))
        revived = c @ (torch.linalg.inv(a) @ b).T
        new = {n: solve(w, revived, v, k, 0.1, 0.1) for n, w in new.items()}
    for name, w in old.items():
        expected = new[name] - w
        assert (changes(patch, host)[name] - expected).norm() <= 1e-4 * expected.norm()


def test_rece_leaves_less_to_revive_than_uce(host: SDHost) -> None:
    request = Request(target=(STAR,))
    c, left = states(host, "star", "last"), []
    for rounds in (0, 2):
        patch = RECE(rounds=rounds, tokens="last", mimic_ridge=0.1)(host, request)
        new = {n: w + changes(patch, host)[n] for n, w in weights(host).items()}
        a = torch.as_tensor(sum(w.T @ w for w in new.values())) + 0.1 * torch.eye(c.shape[1])
        b = torch.as_tensor(sum(new[n].T @ w for n, w in weights(host).items()))
        revived = c @ (torch.linalg.inv(a) @ b).T
        gap = torch.cat([(revived @ new[n].T - c @ w.T).flatten() for n, w in weights(host).items()])
        left.append(float(gap.norm()))
    assert left[1] > 1.1 * left[0]  # the best revived state is further from the concept


def test_rece_obeys_the_laws(host: SDHost) -> None:
    check_method(RECE(rounds=2, tokens="all", expand=True), host, Request(target=(STAR, MOON), keep=(HOUSE,)))
