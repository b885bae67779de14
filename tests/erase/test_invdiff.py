"""InvDiff against its paper's formula, written once more."""

from __future__ import annotations

import pytest
import torch

from erase_fixtures import (
    pictures,
)
from hosts_fixtures import sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.trace import Trace
from palimpsest.erase.invdiff import InvDiff, group_means, part
from palimpsest.hosts.sd import SDHost

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def test_pictures_are_parted_by_their_loss() -> None:
    losses = torch.cat([torch.full((20,), 0.2), torch.full((5,), 1.0)])
    share = part(losses, 2, filled=0.0, steps=500, lr=0.01, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(share.sum(1), torch.ones(25))
    means = group_means(losses, share)
    assert float((means - means.mean()).abs().min()) > 0.25
    rare = int(means.argmax())
    assert float(share[20:, rare].min()) > 0.9
    assert float(share[:20, rare].max()) < 0.2


def test_empty_groups_of_a_batch_do_not_count() -> None:
    share = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]])
    means = group_means(torch.tensor([2.0, 4.0]), share)
    torch.testing.assert_close(means, torch.tensor([(2.0 + 1.0) / 1.25, 4.0]))


def test_invdiff_learns_from_given_pictures(host: SDHost) -> None:
    photos = pictures(6, captions=("a red star",) * 6)
    method, trace = InvDiff(steps=2, batch=4, groups=2, group_steps=20), Trace()
    patch = method(host, Request(target=(STAR,)), data={"pictures": photos}, trace=trace)
    assert patch.deltas
    assert all(d.rank() == 4 for d in patch.deltas.values())
    assert trace.forwards["denoiser"] == 5 * 6 + 2 * 4  # five readings a picture, one a sample and step
    with pytest.raises(BadRequest, match="with captions"):
        method(host, Request(target=(STAR,)), data={"pictures": pictures(6)})
