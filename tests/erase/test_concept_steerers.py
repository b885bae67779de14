"""Concept Steerers against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from erase_fixtures import (
    first_step,
)
from hosts_fixtures import sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.erase.concept_steerers import ConceptSteerers
from palimpsest.hosts.sd import SDHost

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


PROMPTS = ["a red star", "house"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def test_steering_moves_prompt_and_null_inside_the_encoder(host: SDHost) -> None:
    method = ConceptSteerers(strength=-0.7, steps=3, batch=16, k=4)
    patch = method(host, Request(target=(STAR, MOON)))
    (name, direction), *none = patch.hooks[0].tensors.items()
    assert not none
    assert name == "text_encoder.encoder.layers.1"  # round(10/12 of 3) = 2: the second block
    assert direction.shape == host.encode(["star"]).states[0].shape
    step = first_step(host)
    null, cond = method.steered(step, patch.hooks[0].tensors)
    for found, texts, sign in ((cond, PROMPTS, 1), (null, ["", ""], -1)):
        handle = host.root.get_submodule(name).register_forward_hook(
            lambda m, a, out, sign=sign: _shift(out, sign * -0.7 * direction)
        )
        expected = host.encode(texts).states
        handle.remove()
        torch.testing.assert_close(found.states, expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found.states, host.encode(texts).states, atol=1e-3)


def _shift(output: Any, by: Tensor) -> Any:
    return output + by if isinstance(output, Tensor) else (output[0] + by, *output[1:])
