"""What a model's token tables hold for words that it knows: where new words start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.host import Denoiser
from palimpsest.core.words import Word


@torch.no_grad()
def vectors_of(host: Denoiser, text: str) -> dict[str, Tensor]:
    """(m, d) of the m tokens of a text, by the name of each CLIP encoder's token table: what the table holds for them.

    Raises:
        Unsupported: the model reads prompts by no CLIP encoder. BadRequest: the text has no token.

    Cost: a text forward of the text and of the empty prompt.
    """
    return {name: rows for name, (rows, _) in _read(host, text).items()}


@torch.no_grad()
def outputs_of(host: Denoiser, text: str) -> dict[str, Tensor]:
    """(m, d) of the m tokens of a text, by the name of each CLIP encoder's token table: what the encoder makes of them.

    Raises, Cost: as `vectors_of`.
    """
    return {name: states for name, (_, states) in _read(host, text).items()}


def _read(host: Denoiser, text: str) -> dict[str, tuple[Tensor, Tensor]]:
    """By table, what it holds for the tokens of a text, and what its encoder makes of them."""
    tables = host.parts("clip_token_embedding")
    if not tables:
        raise Unsupported(f"{host.name} reads prompts by no CLIP encoder, so that no word can be learned for it.")
    looked: dict[str, list[Tensor]] = {name: [] for name in tables}
    made: dict[str, list[Tensor]] = {name: [] for name in tables}

    def noting(rows: list[Tensor]) -> Callable[[nn.Module, object, Any], None]:
        return lambda module, args, out: rows.append(getattr(out, "last_hidden_state", out).detach())

    with ExitStack() as stack:
        for name, table in tables.items():
            stack.callback(table.register_forward_hook(noting(looked[name])).remove)
            for encoder, module in host.parts("text_encoder").items():
                if name.startswith(f"{encoder}."):
                    stack.callback(module.register_forward_hook(noting(made[name])).remove)
        for prompt in (text, ""):
            host.encode([prompt])
    found = {}
    for name, (said, empty) in looked.items():
        # What stands in the empty prompt too are start, end and padding.
        own = ~(said[0][:, None] == empty[0][None]).all(2).any(1)
        if not bool(own.any()):
            raise BadRequest(f"{text!r} has no token of its own for {host.name}; start from another word.")
        found[name] = said[0][own].float(), made[name][0][0][own].float()
    return found


def starting(rows: Mapping[str, Tensor], k: int, *, reads_as: str) -> Word:
    """A word of k vectors that each start at the mean of the rows (m, d) of a table."""
    vectors = {name: of.mean(0, keepdim=True).repeat(k, 1) for name, of in rows.items()}
    return Word(vectors=vectors, reads_as=reads_as)
