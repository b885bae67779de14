"""Adversarial prompts against one's own edited model: words in embedding space that bring a concept back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.concept import Concept
from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.patch import Patch
from palimpsest.ops.guidance import output_error
from palimpsest.ops.prompts import prompts_for
from palimpsest.ops.trajectories import Visited, visit

Words = Mapping[str, Tensor]
"""k words that no vocabulary holds: (k, d) vectors by the name of the token table that they stand in for."""


def random_words(host: Denoiser, k: int, generator: torch.Generator) -> dict[str, Tensor]:
    """k words of the vocabulary, drawn at random, in each token table: where an attack starts."""
    found = {}
    for name, table in _tables(host).items():
        rows = torch.randint(len(table), (k,), generator=generator)
        found[name] = table[rows.to(table.device)].detach().float().clone()
    return found


@contextmanager
def inserted(host: Denoiser, words: Words) -> Iterator[None]:
    """Every prompt but the empty one is read with the words before its first word, until the context ends.

    Differentiable in the words. The empty prompt stays what it is, so guidance is not attacked. A prompt that fills
    the encoder loses its last words; its end token stays.

    Cost: one text forward of the empty prompt, when the context starts.
    """
    tables = host.parts("token_embedding")
    empty = _read_of_empty(host)
    with ExitStack() as stack:
        for encoder, module in host.parts("text_encoder").items():
            for name in tables:
                if name.startswith(encoder + ".") and name in words:
                    room = _Room(words[name], empty[encoder])
                    stack.callback(module.register_forward_pre_hook(room.make, with_kwargs=True).remove)
                    stack.callback(tables[name].register_forward_hook(room.fill).remove)
        yield


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

    Cost per step: one forward and backward of the batch through denoiser and text encoder.
    Source: the inner loop of Zhang et al., "Defensive Unlearning with Adversarial Training", 2024, arXiv 2405.15234.
    """
    leaves = {name: v.detach().clone().requires_grad_(True) for name, v in words.items()}
    size = {name: float(t.detach().float().square().mean().sqrt()) for name, t in _tables(host).items()}
    adam = torch.optim.Adam([{"params": [leaf], "lr": lr * size[name]} for name, leaf in leaves.items()])
    n = len(points)
    for k in range(steps):
        at = points[torch.arange(k * batch, (k + 1) * batch) % n]
        with torch.enable_grad():
            with inserted(host, leaves):
                cond = encoded(host, prompts, at.row)
            x0 = host.denoise(at.x, at.t, cond)
            loss = output_error(host, at.t, x0, at.x0_cond).square().mean()
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for leaf, g in zip(leaves.values(), found, strict=True):
            leaf.grad = g
        adam.step()
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

        with patch.applied(host), inserted(host, attacked(host, patch, concept, rng=rng)):
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


class _Room:
    """Makes room for words in an encoder's tokens, and fills it with vectors once the tokens are looked up."""

    def __init__(self, words: Tensor, empty: Tensor) -> None:
        self.words, self.empty = words, empty  # empty (1, L): the tokens of the empty prompt, at full length
        self.rows: Tensor | None = None

    def make(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = args[0] if args else kwargs["input_ids"]
        head = self.empty[:, :2].to(ids.device)
        self.rows = (ids[:, :2] != head).any(1)
        ids = self._moved(ids, ids[:, :1])
        mask = kwargs.get("attention_mask")
        if mask is not None:
            kwargs = {**kwargs, "attention_mask": self._moved(mask, torch.ones_like(mask[:, :1]))}
        if args:
            return (ids, *args[1:]), kwargs
        return args, {**kwargs, "input_ids": ids}

    def _moved(self, ids: Tensor, filler: Tensor) -> Tensor:
        """Room behind the first token. Longer where the prompts were cut, else the words before the end are lost."""
        assert self.rows is not None
        k, length = len(self.words), ids.shape[1]
        moved = torch.cat([ids[:, :1], filler.expand(-1, k), ids[:, 1:]], 1)
        still = torch.cat([ids, ids[:, -1:].expand(-1, k)], 1)
        if length + k > self.empty.shape[1]:
            moved = torch.cat([moved[:, : length - 1], ids[:, -1:]], 1)
            still = ids
        return torch.where(self.rows[:, None], moved, still)

    def fill(self, table: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        assert self.rows is not None
        k = len(self.words)
        words = self.words.to(out.device, out.dtype).expand(len(out), -1, -1)
        with_words = torch.cat([out[:, :1], words, out[:, 1 + k :]], 1)
        return torch.where(self.rows[:, None, None], with_words, out)


def _tables(host: Denoiser) -> dict[str, Tensor]:
    tables: dict[str, Tensor] = {
        name: table.get_parameter("weight") for name, table in host.parts("token_embedding").items()
    }
    if not tables:
        raise Unsupported(f"An attack learns words; {host.name} has no table of token embeddings.")
    return tables


def _read_of_empty(host: Denoiser) -> dict[str, Tensor]:
    """The tokens (1, L) that each text encoder reads for the empty prompt."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for encoder, module in host.parts("text_encoder").items():

            def look(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], encoder: str = encoder) -> None:
                seen[encoder] = args[0] if args else kwargs["input_ids"]

            stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        with torch.no_grad():
            host.encode([""])
    return seen
