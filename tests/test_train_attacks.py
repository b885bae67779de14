"""Words in embedding space: read like words of the vocabulary, learnt by the formula, gone when the context ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hosts_fixtures import host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.fingerprint import hook_count
from palimpsest.erase.uce import UCE
from palimpsest.ops.trajectories import visit
from palimpsest.train.attacks import attack, attacked, random_words

STAR = Concept(name="star")


def seed(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_inserted_words_of_the_vocabulary_read_like_typed_ones(family: str) -> None:
    host = host_of(family)
    token = host.pipeline.tokenizer.convert_tokens_to_ids("a</w>")
    words = {n: m.get_parameter("weight")[token : token + 1] for n, m in host.parts("token_embedding").items()}
    typed = host.encode(["a red star", "a moon"])
    with host.prefixed(words):
        found, short = host.encode(["red star", "moon"]), host.tokens(["red star", "moon"])
    torch.testing.assert_close(found.states, typed.states, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(short.states, typed.states[:, : short.states.shape[1]], atol=1e-5, rtol=1e-4)
    assert short.states.shape[1] == host.tokens(["a red star"]).states.shape[1]
    if typed.pooled is not None and found.pooled is not None:
        torch.testing.assert_close(found.pooled, typed.pooled, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(host.encode(["red star"]).states, typed.states[:1], atol=1e-3)


def test_the_empty_prompt_is_not_attacked_and_a_full_one_keeps_its_end() -> None:
    host = host_of("sd")
    words = random_words(host, 2, seed(1))
    long = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    plain = host.encode(["", "star", long])
    with host.prefixed(words):
        found = host.encode(["", "star", long])
    torch.testing.assert_close(found.states[0], plain.states[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found.states[1], plain.states[1], atol=1e-3)
    assert found.states.shape == plain.states.shape
    assert not torch.allclose(found.states[2], plain.states[2], atol=1e-3)


def test_no_hook_stays_also_after_an_error() -> None:
    host = host_of("sd")
    hooks = hook_count(host.root)
    with pytest.raises(ZeroDivisionError, match="zero"), host.prefixed(random_words(host, 1, seed(1))):
        _ = 1 / (hooks - hooks) if hook_count(host.root) > hooks else None
    assert hook_count(host.root) == hooks


def test_one_step_of_the_attack_is_adams_on_the_papers_loss() -> None:
    host, prompts = host_of("sd"), ["a red star", "star"]
    points = visit(host, prompts, 3, seed(2), steps=2, guidance=3.0)
    points = replace(points, x0_cond=points.x0_null)  # something that the model does not predict yet
    words = random_words(host, 2, seed(3))
    found = attack(host, words, prompts, points, steps=1, batch=4, lr=0.5)
    (name, start), at = next(iter(words.items())), points[:4]
    w = start.clone().requires_grad_(True)
    alpha, sigma = host.noise(at.t)
    with host.prefixed({name: w}):
        states = host.encode([prompts[int(i)] for i in at.row]).states
    eps = host.pipeline.unet(at.x, at.t, encoder_hidden_states=states).sample
    goal = (at.x - alpha * at.x0_cond) / sigma
    (g,) = torch.autograd.grad((eps - goal).square().mean(), w)
    rms = host.parts("token_embedding")[name].get_parameter("weight").square().mean().sqrt()
    torch.testing.assert_close(found[name], start - 0.5 * rms * g / (g.abs() + 1e-8), atol=1e-3, rtol=1e-2)


def test_an_attack_brings_predictions_back_and_leaves_the_host() -> None:
    host = host_of("sd")
    before = host.fingerprint()
    patch = UCE(expand=True)(host, Request(target=(STAR,)))
    words = attacked(host, patch, STAR, rng=seed(4), k=2, steps=30, batch=4, walks=2, walk_steps=4)
    assert host.fingerprint() == before
    assert all(w.shape[0] == 2 and not w.requires_grad for w in words.values())
    at = visit(host, ["star"], 4, seed(5), steps=3, guidance=3.0)

    def off(chosen: dict[str, torch.Tensor]) -> float:
        with torch.no_grad(), patch.applied(host), host.prefixed(chosen):
            return float((host.denoise(at.x, at.t, host.encode(["star"]).repeat(len(at))) - at.x0_cond).square().mean())

    assert off(words) < off(random_words(host, 2, seed(4)))
    again = attacked(host, patch, STAR, rng=seed(4), k=2, steps=30, batch=4, walks=2, walk_steps=4)
    assert all(torch.equal(words[n], again[n]) for n in words)
