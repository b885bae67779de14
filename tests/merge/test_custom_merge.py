"""Custom Diffusion's merge: its constraints, its formula by another way, all laws, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.patch import Patch
from palimpsest.core.words import Word
from palimpsest.merge.custom_merge import CustomMerge
from palimpsest.ops.captions import captions
from palimpsest.ops.text_states import text_layers
from palimpsest.testing import check_combine

NAMES = ("star", "<new> x")  # one token a word: fewer states than the small model's text is wide


def change(host: Any, name: str, seed: int, words: Any = None) -> Patch:
    """A patch of all keys and values that says what it is about."""
    g = torch.Generator().manual_seed(seed)
    deltas = {n: Dense(value=0.1 * torch.randn(t.shape, generator=g)) for n, t in text_layers(host, "a test").items()}
    asked = Request(target=(Concept(name=name),)).plain()
    return Patch(base=host.fingerprint(), deltas=deltas, words=words or {}, provenance={"request": asked})


@pytest.fixture(scope="module")
def parts() -> tuple[Patch, Patch]:
    host = host_of("sd")
    ((table, module),) = host.parts("token_embedding").items()
    width = module.get_parameter("weight").shape[1]
    word = Word(vectors={table: torch.randn(1, width, generator=torch.Generator().manual_seed(5))})
    return change(host, NAMES[0], 0), change(host, NAMES[1], 1, {"<new>": word})


def read(host: Any, texts: list[str], skipped: int) -> Tensor:
    """States from behind the start and `skipped` tokens up to the end token, a text at a time."""
    found = []
    for text in texts:
        cond = host.encode([text])
        found.append(cond.states[0, 1 + skipped : int(cond.lengths[0])])
    return torch.cat(found).detach().double()


def test_each_change_is_read_as_it_was_and_the_rest_moves_least(parts: tuple[Patch, Patch]) -> None:
    host, method = host_of("sd"), CustomMerge(captions=30)
    with host.speaking(parts[1].words):
        own = [torch.cat([read(host, [n], 0), read(host, [f"a photo of {n}"], 8)]) for n in NAMES]
    others = read(host, captions(30, NAMES), 0)
    merged = method(parts, host)
    gram = others.T @ others
    gram = gram + method.ridge * gram.diag().mean() * torch.eye(len(gram), dtype=gram.dtype)
    c = torch.cat(own)
    for name, weight in text_layers(host, "a test").items():
        moved = merged.deltas[name].dense(weight.shape).double()
        single = [p.deltas[name].dense(weight.shape).double() for p in parts]
        for delta, states in zip(single, own, strict=True):
            torch.testing.assert_close(states @ moved.T, states @ delta.T, atol=1e-6, rtol=1e-5)
        # Lagrange: (moved C^T = V) and moved gram = multipliers C, as one linear system.
        v = torch.cat([delta @ states.T for delta, states in zip(single, own, strict=True)], dim=1)
        zero = torch.zeros(len(c), len(c), dtype=c.dtype)
        system = torch.cat([torch.cat([gram, c.T], 1), torch.cat([c, zero], 1)])
        right = torch.cat([torch.zeros(c.shape[1], len(v), dtype=c.dtype), v.T])
        wanted = torch.linalg.solve(system, right)[: c.shape[1]].T
        torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=1e-4)


def test_it_obeys_the_laws_and_brings_words(parts: tuple[Patch, Patch]) -> None:
    patch = check_combine(CustomMerge(captions=10), host_of("sd"), parts)
    assert set(patch.words) == {"<new>"}


def test_what_it_cannot_merge_it_refuses_in_words(parts: tuple[Patch, Patch]) -> None:
    host = host_of("sd")
    silent = Patch(base=parts[0].base, deltas=parts[0].deltas)
    with pytest.raises(BadRequest, match="does not say what it is about"):
        CustomMerge()([parts[0], silent], host)
    name, weight = next((n, p) for n, p in host.root.named_parameters() if "to_q" in n)
    wide = Patch(base=parts[0].base, deltas={name: Dense(value=torch.ones_like(weight))}, provenance={})
    with pytest.raises(BadRequest, match=r"to_q.* is changed as well"):
        CustomMerge()([parts[0], wide], host)
    with pytest.raises(Unsupported, match="has none"):
        CustomMerge()([Patch(base=host_of("flux").fingerprint())], host_of("flux"))
