"""SAFREE against its paper's formula, written once more."""

from __future__ import annotations

import pytest
import torch

from erase_fixtures import (
    end,
    first_step,
    projector,
)
from hosts_fixtures import SEEDS, sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.sampling import Sampling
from palimpsest.erase.safree import SAFREE, damped
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.subspace import basis

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


PROMPTS = ["a red star", "house"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def test_safree_filters_as_the_paper_does(host: SDHost) -> None:
    method, prompt = SAFREE(until=0.5), "a red star on moon"
    words, step = prompt.split(), first_step(host, [prompt])
    concept = projector(torch.stack([end(host, "star"), end(host, "ring")])).float()
    ends = torch.stack([end(host, " ".join([*words[:j], "!", *words[j + 1 :]])) for j in range(len(words))])
    far = (ends - ends @ concept.T).norm(dim=1)
    states = step.cond.states[0]
    safe = states @ projector(ends).float().T
    safe = safe - safe @ concept.T
    expected = states.clone()
    for j in range(len(words)):
        if far[j] >= 1.01 * (far.sum() - far[j]) / (len(words) - 1):
            begin, stop = (int(host.encode([" ".join(words[:k])]).lengths[0]) - 1 for k in (j, j + 1))
            expected[begin:stop] = safe[begin:stop]
    assert 0 < int((expected != states).any(1).sum()) < len(states)
    rows = basis(torch.stack([end(host, "star"), end(host, "ring")]))
    found, until = method.filtered(step, rows)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-3)
    n = int(step.cond.lengths[0])
    beta = 1 - torch.cosine_similarity(safe[:n], states[:n], dim=-1).mean()
    last = torch.round(5 * torch.sigmoid(5 * (10 * beta - 5.333)))  # until 0.5 of 10 steps
    assert float(until[0]) * 5 == pytest.approx(float(last))


def test_safree_filters_the_first_steps_only(host: SDHost) -> None:
    method = SAFREE(until=0.2, middle=-100.0, scales=(1.0, 1.0))  # always the full share: steps 0, 1 and 2 of 10
    rule = method.guide(host, Request(target=(STAR,)), {})
    moved = []
    for step in host.walk(PROMPTS, SEEDS[:2], Sampling(steps=10, guidance=3.0)):
        null, cond = step.x0(step.null, step.cond)
        moved.append(not torch.allclose(rule(step), null + 3.0 * (cond - null), atol=1e-4))
    assert moved == [True] * 3 + [False] * 7


def test_safree_damps_low_frequencies_that_the_filter_raised() -> None:
    features = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    found = damped(features, 1, 0.2)
    assert torch.equal(found[[0, 2]], features[[0, 2]])
    safe, own, out = (torch.fft.fft2(f) for f in (features[1], features[2], found[1]))
    factors = (out / safe).real
    for c in range(2):
        for i in range(4):
            for j in range(4):
                hit = {i, j} <= {0, 3} and safe[c, i, j].abs() > own[c, i, j].abs()
                mirrored = {i, j} <= {0, 1} and i + j > 0  # the real part spreads onto the mirrored frequency
                if not mirrored and (i, j) in ((0, 0), (1, 2), (2, 2), (2, 1)):
                    assert float(factors[c, i, j]) == pytest.approx(0.2 if hit else 1.0, abs=1e-3)


def test_safree_reads_the_padding_only_where_asked(host: SDHost) -> None:
    step, rows = first_step(host, ["star"]), basis(torch.stack([end(host, "star")]))
    plain, _ = SAFREE().filtered(step, rows)
    wide, _ = SAFREE(padding=True).filtered(step, rows)
    n = int(step.cond.lengths[0])
    assert torch.equal(plain[0, n - 1 :], step.cond.states[0, n - 1 :])
    assert not torch.equal(wide[0, n - 1 :], step.cond.states[0, n - 1 :])
    assert torch.equal(wide[0, : n - 1], plain[0, : n - 1])
