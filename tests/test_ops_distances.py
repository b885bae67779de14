"""Distances between sets of pictures against their definitions, another package's, and their own intervals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from palimpsest.ops.distances import cmmd, cubic, frechet, frechet_to, gaussian, kernel, mmd_to, radial


def test_kernel_distance_against_its_definition() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 3, generator=g), torch.randn(7, 3, generator=g) + 1

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x.double() @ y.double() / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    naive = sum(k(a[i], a[j]) + k(b[i], b[j]) - 2 * k(a[i], b[j]) for i, j in pairs) / len(pairs)
    value, null = kernel(a, b)
    assert value == pytest.approx(naive)
    assert len(null) == 999
    assert value > sorted(null)[-50]  # a shift by one deviation shows
    assert abs(kernel(a, a)[0]) < 1e-12


def test_frechet_distance_against_scipy() -> None:
    import numpy as np
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 0.5
    s, t = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(s @ t))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)
    assert frechet(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-6)


def test_a_gaussian_of_many_rows_keeps_its_covariance() -> None:
    rows = torch.randn(1_200, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([1.0, 2, 3, 4]))
    made = gaussian(rows)
    assert made.root.shape == (4, 4)
    assert torch.allclose(made.root.T @ made.root, torch.cov(rows.double().T))


class Small(nn.Module):
    """Six features of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.float() / 255)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
def test_fid_and_kid_are_those_of_torchmetrics_in_equal_features() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    torch.manual_seed(0)
    network = Small().eval()
    one, other = (torch.randint(0, top, (40, 3, 16, 16), dtype=torch.uint8) for top in (256, 200))
    fid, kid = FrechetInceptionDistance(feature=network), KernelInceptionDistance(network, subsets=1, subset_size=40)
    for metric in (fid, kid):
        metric.update(one, real=True)
        metric.update(other, real=False)
    with torch.no_grad():
        a, b = network(one), network(other)
    assert frechet(a, b) == pytest.approx(float(fid.compute()), rel=1e-3)
    found = mmd_to(b, b, a, cubic, unbiased=True)
    assert found.before.value == pytest.approx(float(kid.compute()[0]), rel=1e-4)
    assert found.change.value == 0
    assert found.p == 1


def test_cmmd_against_its_definition() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (nn.functional.normalize(torch.randn(n, 5, generator=g), dim=1).double() for n in (6, 9))

    def mean(x: Tensor, y: Tensor) -> float:
        return sum(math.exp(-float((p - q).square().sum()) / 200) for p in x for q in y) / (len(x) * len(y))

    naive = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert cmmd(a, b) == pytest.approx(naive, rel=1e-9)
    assert mmd_to(a, a, b, radial, unbiased=False).before.value == pytest.approx(naive, rel=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
def test_what_blocks_leave_is_what_leaving_them_out_gives(unbiased: bool) -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(25, 3, generator=g), torch.randn(31, 3, generator=g) + 0.5
    k = cubic if unbiased else radial
    found = mmd_to(x, x, y, k, unbiased=unbiased)
    without = [
        mmd_to(some, some, y, k, unbiased=unbiased) for some in (x[torch.arange(25) % 20 != j] for j in range(20))
    ]
    theirs = [mmd_to(x, x, y[torch.arange(31) % 20 != j], k, unbiased=unbiased) for j in range(20)]
    spread = sum(
        19 / 20 * sum((w.before.value - sum(v.before.value for v in some) / 20) ** 2 for w in some)
        for some in (without, theirs)
    )
    half = (found.before.high - found.before.low) / 2
    assert half == pytest.approx(2.0930 * math.sqrt(spread), rel=1e-4)  # Student's with 19 degrees of freedom


def test_intervals_hold_the_truth_and_no_change_is_none() -> None:
    found = []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        before, after, third = (torch.randn(n, 3, generator=g) + s for n, s in ((60, 0.7), (60, 0.7), (100, 0.0)))
        found.append(mmd_to(before, after, third, cubic, unbiased=True))
    truth = sum(f.before.value for f in found) / 60  # each is without bias
    assert sum(f.before.low <= truth <= f.before.high for f in found) >= 52
    assert sum(f.p < 0.05 for f in found) <= 6
    assert sum(abs(f.change.value) <= f.floor for f in found) >= 52


def test_a_frechet_distance_that_grew_is_seen() -> None:
    g = torch.Generator().manual_seed(0)
    before, reference = (torch.randn(n, 4, generator=g) for n in (60, 200))
    found = frechet_to(before, before + 1.5, reference)
    assert found.after.value == pytest.approx(frechet(before + 1.5, reference))
    assert found.p < 1e-3
    assert found.change.low > found.floor
    still = frechet_to(before, before.clone(), reference)
    assert still.p == 1
