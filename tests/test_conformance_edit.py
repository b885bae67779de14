"""Every system that edits pictures, on the small hosts: the laws of `palimpsest.testing.check_edit`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from erase_fixtures import pictures
from hosts_fixtures import host_of
from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import Unsupported
from palimpsest.core.pictures import Pictures
from palimpsest.testing import check_edit, quick

STAR = Request(target=(Concept(name="star"),))
SYSTEMS = [i for i in catalog.entries() if i.startswith("edit/")]
FAMILIES = ("sd", "sd_v", "sdxl", "sd3", "flux")
REFUSED = {
    **{
        (s, f): "reads"
        for s in ("edit/prompt_to_prompt", "edit/guide_and_rescale", "edit/style_id")
        for f in ("sd3", "flux")
    },
    ("edit/null_text", "flux"): "no null text",
}


def sources(n: int = 2) -> Pictures:
    """n random pictures that say and ask something else, half of each masked."""
    masks = torch.zeros(n, 1, 16, 16)
    masks[:, :, :, 8:] = 1
    return pictures(
        n,
        captions=tuple(f"a red house {i}" for i in range(n)),
        columns={"asked": tuple(f"a red star {i}" for i in range(n))},
        masks=masks,
    )


def data(system: str) -> dict[str, Pictures]:
    """One reference for all, where the system reads any."""
    return {name: sources(3)[[2]] for name in catalog.find(system).card.reads}


@pytest.mark.parametrize("system", SYSTEMS)
def test_systems(system: str) -> None:
    check_edit(quick(system), host_of("sd"), sources(), STAR, data=data(system))


@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("system", SYSTEMS)
def test_systems_on_other_families(system: str, family: str) -> None:
    host, some = host_of(family), sources(1)
    if (system, family) in REFUSED:
        with pytest.raises(Unsupported, match=REFUSED[system, family]):
            quick(system)(host, some, STAR, data=data(system))
        return
    edited = replace(quick(system), finish="whole")(host, some, STAR, data=data(system))
    assert torch.equal(edited.images[..., :8], some.pixels()[..., :8])
    assert not torch.equal(edited.images, some.pixels()), f"{system} changes nothing on {family}"
