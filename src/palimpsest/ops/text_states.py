"""Which of a prompt's token states an edit acts on, and what they are paired with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Cond, Denoiser
from palimpsest.ops.prompts import filled, swapped, up_to

Tokens = Literal["last", "tail", "all"]
"""last: the subject's last token. tail: from there to the end of padding. all: every position."""
Positions = Literal["last", "tail", "all", "pooled"]
"""Tokens, or the one state that stands for the whole prompt."""


def last(cond: Cond) -> Tensor:
    """(n, d): the state of each prompt's last word; of the start token for the empty prompt."""
    return cond.states[torch.arange(len(cond)), (cond.lengths - 2).clamp(min=0)]


def text_layers(host: Denoiser, system: str) -> dict[str, Tensor]:
    """Weights (out, d) of the cross-attention layers that read text states directly, by tensor name.

    Raises:
        Unsupported: the model has none; in joint attention the text is transformed before a layer reads it.
    """
    layers = {**host.parts("cross_key"), **host.parts("cross_value")}
    joint = set(host.parts("cross_attention")) & set(host.parts("self_attention"))
    if not layers or joint:
        raise Unsupported(
            f"{system} edits cross-attention layers that read text states directly; {host.name} has none."
        )
    return _weights(layers)


def text_readers(host: Denoiser, system: str, tokens: Tokens) -> list[tuple[dict[str, Tensor], Positions]]:
    """Sets of linear layers that read the same text states directly, each with which of them an edit acts on.

    In U-Nets these are the keys and values of cross-attention. Where attention is joint, all token states come in
    through one projection and the pooled states through another; an edit of both reaches everything that the text can
    do, as one of the keys and values does there.

    Raises:
        Unsupported: the model has neither.
    """
    inlets: list[tuple[str, Positions]] = [("text_projection", tokens), ("pooled_projection", "pooled")]
    readers: list[tuple[dict[str, Tensor], Positions]] = []
    for role, positions in inlets:
        if parts := host.parts(role):
            readers.append((_weights(parts), positions))
    return readers or [(text_layers(host, system), tokens)]


def _weights(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.weight": module.get_parameter("weight") for name, module in sorted(layers.items())}


def texts(concept: Concept, *, expand: bool) -> tuple[str, ...]:
    """What stands for a concept: its first prompt up to its name, else the name.

    `expand` adds its other prompts, each up to the name, and the kind's templates: an edit then reaches further and
    takes more along.
    """
    own = tuple(up_to(p, concept.name) for p in concept.prompts) or (concept.name,)
    return tuple(dict.fromkeys(own + filled(concept))) if expand else own[:1]


def pairs(request: Request, *, expand: bool) -> list[tuple[str, str]]:
    """(text, text that it is answered as) for every text of every target."""
    return [
        (text, "" if toward is None else swapped(text, target.name, toward.name))
        for target, toward in zip(request.target, request.replacements(), strict=True)
        for text in texts(target, expand=expand)
    ]


def kept_texts(request: Request, *, expand: bool) -> list[str]:
    """The texts of all kept concepts."""
    return [text for concept in request.keep for text in texts(concept, expand=expand)]


@torch.no_grad()
def states_of(host: Denoiser, prompts: Sequence[str], positions: Positions) -> list[Tensor]:
    """(m_i, d) for each prompt: the states at these positions, first to last. Equal prompts are encoded once.

    Where several encoders' states stand one behind the other, those of each. Cost: one batched text forward; cut at the
    end token where only the last state is read.
    """
    return [torch.cat(blocks) for blocks in _blocks(host, prompts, positions)]


@torch.no_grad()
def paired_states(host: Denoiser, pairs: Sequence[tuple[str, str]], positions: Positions) -> tuple[Tensor, Tensor]:
    """States and the states that they are answered as, (m, d) each; longer tails are cut to their partner's length."""
    both = _blocks(host, [text for pair in pairs for text in pair], positions)
    rows = [
        (a[: min(len(a), len(b))], b[: min(len(a), len(b))])
        for one, other in zip(both[::2], both[1::2], strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])


def _blocks(host: Denoiser, prompts: Sequence[str], positions: Positions) -> list[list[Tensor]]:
    """For each prompt the states at these positions, one tensor (m, d) an encoder."""
    once = list(dict.fromkeys(prompts))
    cond = host.tokens(once) if positions in ("last", "pooled") else host.encode(once)
    if positions == "pooled":
        if cond.pooled is None:
            raise Unsupported(f"{host.name} has no pooled text states.")
        states = {p: [cond.pooled[i : i + 1]] for i, p in enumerate(once)}
        return [states[p] for p in prompts]
    starts = [0, *cond.further]
    ends = [*cond.further, cond.states.shape[1]]
    words = [(lengths - 2).clamp(min=0).tolist() for lengths in (cond.lengths, *cond.further.values())]

    def of(i: int) -> list[Tensor]:
        blocks = []
        for start, end, word in zip(starts, ends, words, strict=True):
            first = start if positions == "all" else start + word[i]
            blocks.append(cond.states[i, first : first + 1 if positions == "last" else end])
        return blocks

    states = {p: of(i) for i, p in enumerate(once)}
    return [states[p] for p in prompts]
