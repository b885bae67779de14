"""Adversarial prompts against one's own edited model: words in embedding space that bring a concept back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from palimpsest.core.concept import Concept
from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.patch import Patch
from palimpsest.ops.guidance import output_error
from palimpsest.ops.prompts import prompts_for
from palimpsest.ops.trajectories import Visited, visit
from palimpsest.train.loop import minimise

Words = Mapping[str, Tensor]
"""k words that no vocabulary holds: (k, d) vectors by the name of the token table that they stand in for."""


def random_words(host: Denoiser, k: int, generator: torch.Generator) -> dict[str, Tensor]:
    """k words of the vocabulary, drawn at random, in each token table: where an attack starts."""
    found = {}
    for name, table in _tables(host).items():
        rows = torch.randint(len(table), (k,), generator=generator)
        found[name] = table[rows.to(table.device)].detach().float().clone()
    return found


def encoded(host: Denoiser, prompts: Sequence[str], rows: Tensor) -> Cond:
    """The prompts of these rows (n,), each encoded once; differentiable in a text encoder that is trained."""
    asked, which = rows.unique(return_inverse=True)
    return host.encode([prompts[int(i)] for i in asked])[which]


def attack(
    host: Denoiser, words: Words, prompts: Sequence[str], points: Visited, *, steps: int, batch: int, lr: float
) -> dict[str, Tensor]:
    """Moves words so that the model, as it stands, predicts what the untouched model predicted for the concept:

        min over words of  mean (eps(x_t, [words, c], t) - eps*(x_t, c, t))^2     by Adam

    Args:
        host: with the edit on; its weights stay.
        words: where to start.
        prompts: c, by the rows of the points.
        points: of walks of the untouched model towards the prompts, with its predictions; taken in order, in turn.
        steps: of the attack. batch: points for each step.
        lr: of Adam, in units of the token table's root mean square, so that it means the same on every model.

    Returns:
        The words that were reached, without gradients.

    Raises:
        Diverged: a loss or gradient is no longer finite.

    Cost per step: one forward and backward of the batch through denoiser and text encoder.
    Source: the inner loop of Zhang et al., "Defensive Unlearning with Adversarial Training", 2024, arXiv 2405.15234.
    """
    leaves = {name: v.detach().clone().requires_grad_(True) for name, v in words.items()}
    size = {name: float(t.detach().float().square().mean().sqrt()) for name, t in _tables(host).items()}
    adam = torch.optim.Adam([{"params": [leaf], "lr": lr * size[name]} for name, leaf in leaves.items()])
    n = len(points)

    def loss(k: int) -> Tensor:
        at = points[torch.arange(k * batch, (k + 1) * batch) % n]
        with host.prefixed(leaves):
            cond = encoded(host, prompts, at.row)
        return output_error(host, at.t, host.denoise(at.x, at.t, cond), at.x0_cond).square().mean()

    minimise(leaves, loss, steps=steps, optimiser=adam, through=host.root)
    return {name: leaf.detach() for name, leaf in leaves.items()}


def attacked(
    host: Denoiser,
    patch: Patch,
    concept: Concept,
    *,
    rng: torch.Generator,
    prompts: Sequence[str] = (),
    k: int = 3,
    steps: int = 60,
    batch: int = 8,
    lr: float = 0.1,
    walks: int = 8,
    walk_steps: int = 10,
    guidance: float = 3.0,
) -> dict[str, Tensor]:
    """The words that best bring a concept back in an edited model; draw with them to see how far that goes:

        with patch.applied(host), host.prefixed(attacked(host, patch, concept, rng=rng)):
            images = host.sample(prompts, seeds)

    The attacker knows the edited model and how the untouched one draws the concept (white box). Words that no one can
    type are an upper bound for prompts of as many words. Whoever measures should attack a model that never saw the
    concept as well: what comes back there was taught by the attack, not left by the edit.

    Args:
        prompts: that ask for the concept; none: its own and those of its kind.
        k: words. steps, batch, lr: as in `attack`; the default budget is 60 steps of 8 points.
        walks, walk_steps, guidance: of the untouched model, for the points.

    A rule that acts only while sampling (a guide) is not seen by the attack; what acts inside the model is.

    Cost: 2 x walks x walk_steps forwards, then steps x batch forwards and backwards.
    """
    asked = list(prompts) or prompts_for(concept)
    points = visit(host, asked, walks, rng, steps=walk_steps, guidance=guidance)
    points = points[torch.randperm(len(points), generator=rng)]
    start = random_words(host, k, rng)
    with patch.applied(host):
        return attack(host, start, asked, points, steps=steps, batch=batch, lr=lr)


def _tables(host: Denoiser) -> dict[str, Tensor]:
    tables: dict[str, Tensor] = {
        name: table.get_parameter("weight") for name, table in host.parts("token_embedding").items()
    }
    if not tables:
        raise Unsupported(f"An attack learns words; {host.name} has no table of token embeddings.")
    return tables
