"""Which of a prompt's token states an edit acts on, and what they are paired with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Cond, Denoiser
from palimpsest.ops.prompts import filled, swapped, up_to

Tokens = Literal["last", "tail", "all"]
"""last: the subject's last token. tail: from there to the end of padding. all: every position."""


def last(cond: Cond) -> Tensor:
    """(n, d): the state of each prompt's last word; of the start token for the empty prompt."""
    return cond.states[torch.arange(len(cond)), (cond.lengths - 2).clamp(min=0)]


def text_layers(host: Denoiser, system: str) -> dict[str, Tensor]:
    """Weights (out, d) of the cross-attention layers that read text states directly, by tensor name.

    Raises:
        Unsupported: the model has none; in joint attention the text is transformed before a layer reads it.
    """
    found = {**host.parts("cross_key"), **host.parts("cross_value")}
    joint = set(host.parts("cross_attention")) & set(host.parts("self_attention"))
    if not found or joint:
        raise Unsupported(
            f"{system} edits cross-attention layers that read text states directly; {host.name} has none."
        )
    return {f"{name}.weight": module.get_parameter("weight") for name, module in sorted(found.items())}


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
def states_of(host: Denoiser, prompts: Sequence[str], tokens: Tokens) -> list[Tensor]:
    """(m_i, d) for each prompt: the states that `tokens` names, first to last. Equal prompts are encoded once.

    Cost: one batched text forward; cut at the end token where only the last state is read.
    """
    once = list(dict.fromkeys(prompts))
    cond = host.tokens(once) if tokens == "last" else host.encode(once)
    start = (cond.lengths - 2).clamp(min=0).tolist()
    if tokens == "last":
        found = {p: cond.states[i, start[i] : start[i] + 1] for i, p in enumerate(once)}
    elif tokens == "tail":
        found = {p: cond.states[i, start[i] :] for i, p in enumerate(once)}
    else:
        found = {p: cond.states[i] for i, p in enumerate(once)}
    return [found[p] for p in prompts]


def paired_states(host: Denoiser, pairs: Sequence[tuple[str, str]], tokens: Tokens) -> tuple[Tensor, Tensor]:
    """States and the states that they are answered as, (m, d) each; longer tails are cut to their partner's length."""
    both = states_of(host, [text for pair in pairs for text in pair], tokens)
    cut = [min(len(a), len(b)) for a, b in zip(both[::2], both[1::2], strict=True)]
    states = torch.cat([s[:m] for s, m in zip(both[::2], cut, strict=True)])
    into = torch.cat([s[:m] for s, m in zip(both[1::2], cut, strict=True)])
    return states, into
