"""Vectors that text encoders of transformers read before a prompt's first word (a soft prompt)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.host import Denoiser
from palimpsest.hosts.text import lookups


@contextmanager
def prefixed(host: Denoiser, vectors: Mapping[str, Tensor]) -> Iterator[None]:
    """Every prompt but the empty one is read with the vectors before its first word, until the context ends.

    Differentiable in the vectors. The empty prompt stays what it is, so guidance reads none. A prompt that fills the
    encoder loses its last words; its end token stays. Words that are spoken may stand in the prompt.

    Args:
        vectors: (k, d) by the name of the token table that they stand in for.

    Cost: one text forward of the empty prompt, when the context starts.
    """
    tables = host.parts("token_embedding")
    empty = _read_of_empty(host)
    with ExitStack() as stack:
        for encoder, module in host.parts("text_encoder").items():
            for name in tables:
                if name.startswith(encoder + ".") and name in vectors:
                    room = _Room(vectors[name], empty[encoder])
                    stack.callback(module.register_forward_pre_hook(room.make, with_kwargs=True).remove)
                    for table in lookups(module, tables[name]):
                        stack.callback(table.register_forward_hook(room.fill).remove)
        yield


class _Room:
    """Makes room in an encoder's tokens, and fills it with vectors once the tokens are looked up."""

    def __init__(self, vectors: Tensor, empty: Tensor) -> None:
        self.vectors, self.empty = vectors, empty  # empty (1, L): the tokens of the empty prompt, at full length
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
        k, length = len(self.vectors), ids.shape[1]
        moved = torch.cat([ids[:, :1], filler.expand(-1, k), ids[:, 1:]], 1)
        still = torch.cat([ids, ids[:, -1:].expand(-1, k)], 1)
        if length + k > self.empty.shape[1]:
            moved = torch.cat([moved[:, : length - 1], ids[:, -1:]], 1)
            still = ids
        return torch.where(self.rows[:, None], moved, still)

    def fill(self, table: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        assert self.rows is not None
        k = len(self.vectors)
        vectors = self.vectors.to(out.device, out.dtype).expand(len(out), -1, -1)
        filled = torch.cat([out[:, :1], vectors, out[:, 1 + k :]], 1)
        return torch.where(self.rows[:, None, None], filled, out)


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
