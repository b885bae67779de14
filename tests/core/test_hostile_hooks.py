"""Hooks whose parameters or tensors are not those of their system: refused in words, and the model is as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import Damaged, WrongBase
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.sampling import Sampling
from palimpsest.erase.concept_steerers import ConceptSteerers

SAID = {"parameters": {}, "request": Request(target=(Concept(name="star"),)).plain()}
LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
NOWHERE = {f"0|unet.nowhere.weight|{part}": torch.ones(1, 1) for part in ("up", "down")}


def membranes(concept: str = "0", **change: Tensor) -> dict[str, Tensor]:
    """Of a layer that reads the text, 16 wide; these fit unless they are changed."""
    parts = {"up": torch.zeros(16, 1), "down": torch.zeros(1, 16)} | change
    return {f"{concept}|{LAYER}.weight|{part}": value for part, value in parts.items()}


def encoder(host: Any) -> str:
    return next(iter(ConceptSteerers()._blocks(host)))


@pytest.mark.parametrize(
    ("id_", "params", "tensors"),
    [
        ("erase/geom_erasing", {}, {}),
        ("erase/geom_erasing", {"negative": ["star"]}, {}),
        ("erase/geom_erasing", {"negative": "star", "more": 1}, {}),
        ("erase/score_forgetting", {"start": "1"}, {}),
        ("erase/score_forgetting", {"start": 1e300}, {}),
        ("erase/score_forgetting", {"start": True}, {}),
        ("erase/sld", SAID, {"x": torch.ones(1)}),
        ("erase/safree", SAID, {"x": torch.ones(1)}),
        ("erase/sld", {**SAID, "parameters": {"scale": []}}, {}),
        ("erase/negative_prompt", {**SAID, "parameters": {"none": 1}}, {}),
        ("erase/spm", {"names": "star"}, {}),
        ("erase/spm", {"names": []}, {}),
        ("erase/spm", {"names": [1]}, {}),
        ("erase/spm", {"names": ["star"]}, {"x": torch.ones(1)}),
        ("erase/spm", {"names": ["star"]}, {"0|a|b|up": torch.ones(1)}),
        ("erase/spm", {"names": ["star"]}, {"x|unet.conv_in.weight|up": torch.ones(1, 1)}),
        ("erase/spm", {"names": ["star"]}, NOWHERE),
        ("erase/spm", {"names": ["star"]}, membranes(up=torch.ones(3, 1))),
        ("erase/spm", {"names": ["star"]}, membranes(down=torch.ones(1, 3))),
        ("erase/spm", {"names": ["star"]}, membranes(more=torch.ones(1))),
        ("erase/spm", {"names": ["star"]}, membranes("7")),
        ("erase/latent_directions", SAID, {}),
        ("erase/latent_directions", SAID, {"x": torch.ones(1)}),
        ("erase/latent_directions", SAID, {"x": torch.ones(3, 2, 2)}),
        ("erase/latent_directions", SAID, {"x": torch.ones(3, 2, 2), "y": torch.ones(1)}),
        ("erase/concept_steerers", SAID, {}),
        ("erase/concept_steerers", SAID, {"x": torch.ones(1)}),
        ("erase/concept_steerers", SAID, {"{encoder}": torch.ones(1)}),
        ("erase/concept_steerers", SAID, {"{encoder}": torch.ones(24, 3)}),
        ("erase/concept_steerers", SAID, {"{encoder}": torch.ones(2, 16)}),
    ],
)  # fmt: skip
def test_hostile_hooks_are_refused(id_: str, params: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    host = host_of("sd")
    named = {k.replace("{encoder}", encoder(host)): t for k, t in tensors.items()}
    before = host.sample(["a star"], [0], Sampling(steps=1))
    patch = Patch(base=host.fingerprint(), hooks=(Hook(id=id_, params=params, tensors=named),))
    with pytest.raises((Damaged, WrongBase)), patch.applied(host):
        host.sample(["a star"], [0], Sampling(steps=1))
    assert host.guide is None
    assert torch.equal(host.sample(["a star"], [0], Sampling(steps=1)), before)


def test_what_they_are_made_from_is_accepted() -> None:
    """So that the refusals above are for what is odd about them."""
    host = host_of("sd")
    good = [
        Hook(id="erase/geom_erasing", params={"negative": "star"}),
        Hook(id="erase/score_forgetting", params={"start": 0.5}),
        Hook(id="erase/sld", params=SAID),
        Hook(id="erase/spm", params={"names": ["star"]}, tensors=membranes()),
        Hook(id="erase/latent_directions", params=SAID, tensors={"x": torch.zeros(16, 2, 2)}),
        Hook(id="erase/concept_steerers", params=SAID, tensors={encoder(host): torch.zeros(24, 16)}),
    ]
    for hook in good:
        with Patch(base=host.fingerprint(), hooks=(hook,)).applied(host):
            assert host.sample(["a star"], [0], Sampling(steps=1)).shape[0] == 1
