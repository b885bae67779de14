"""What a model's token tables hold for words that it knows: where new words start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.host import Denoiser
from palimpsest.core.words import Word


@torch.no_grad()
def vectors_of(host: Denoiser, text: str) -> dict[str, Tensor]:
    """(m, d) of the m tokens of a text, by the name of each CLIP encoder's token table.

    Raises:
        Unsupported: the model reads prompts by no CLIP encoder. BadRequest: the text has no token.

    Cost: a text forward of the text and of the empty prompt.
    """
    tables = host.parts("clip_token_embedding")
    if not tables:
        raise Unsupported(f"{host.name} reads prompts by no CLIP encoder, so that no word can be learned for it.")
    seen: dict[str, list[Tensor]] = {name: [] for name in tables}

    def noting(rows: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, args, out: rows.append(out.detach())

    with ExitStack() as stack:
        for name, table in tables.items():
            stack.callback(table.register_forward_hook(noting(seen[name])).remove)
        for prompt in (text, ""):
            host.encode([prompt])
    found = {}
    for name, (said, empty) in seen.items():
        # What stands in the empty prompt too are start, end and padding.
        others = (said[0][:, None] == empty[0][None]).all(2).any(1)
        found[name] = said[0][~others].float()
    if not all(map(len, found.values())):
        raise BadRequest(f"{text!r} has no token of its own for {host.name}; start from another word.")
    return found


def starting(host: Denoiser, text: str, k: int, *, reads_as: str) -> Word:
    """A word of k vectors that each start at the mean of a text's own."""
    means: Mapping[str, Tensor] = {name: rows.mean(0, keepdim=True) for name, rows in vectors_of(host, text).items()}
    return Word(vectors={name: mean.repeat(k, 1) for name, mean in means.items()}, reads_as=reads_as)
