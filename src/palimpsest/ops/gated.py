"""Low-rank changes of layers that act row by row: each row of a batch opens or closes them by its own prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from palimpsest.core.declared import shown
from palimpsest.core.delta import LowRank
from palimpsest.core.errors import Damaged, WrongBase
from palimpsest.core.host import Cond, Denoiser


@contextmanager
def gated(host: Denoiser, names: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Membranes act on a denoiser until the context ends.

        out(x, row) = W x + sum_k gate_k(row) up_k (down_k x)

    Args:
        names: of the concepts.
        tensors: `k|tensor's name|up` (out, r) and `k|tensor's name|down` (r, in) of concept k.

    Raises:
        Damaged: tensors of another form. WrongBase: the model lacks a layer.

    Cost: two thin products for each layer and concept; the weights are not touched.
    """
    try:
        layers = _layers(tensors)
    except (KeyError, ValueError) as e:
        raise Damaged(f"The membranes are not what this version writes: {e}.") from e
    modules = dict(host.root.named_modules())
    for name, membranes in layers.items():
        module = modules.get(name.removesuffix(".weight"))
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            raise WrongBase(f"A membrane belongs to {shown(name, 120)}, which {host.name} does not have.")
        for k, membrane in membranes:
            membrane.fits(module.weight.shape)
            if not 0 <= k < len(names):
                raise Damaged(f"A membrane is of concept {k}, of {len(names)}; the patch is damaged.")
    gates = Gates(host, names)
    with ExitStack() as stack:
        stack.enter_context(host.looking(gates.look))
        for name, membranes in layers.items():
            module = modules[name.removesuffix(".weight")]
            stack.callback(module.register_forward_hook(_through(gates, membranes)).remove)
        yield


class Gates:
    """The gates of the rows that the denoiser runs on, (n, concepts) in [0, 1].

    gate = max(cos(the row's text states, the states of the concept's name), share of the name's words in its prompt)

    States whose prompt is not known are gated by the cosine alone.
    """

    def __init__(self, host: Denoiser, names: Sequence[str]) -> None:
        with torch.no_grad():
            self.own = host.encode(list(names)).states
        self.words = [_words(name) for name in names]
        self.rows: Tensor | None = None

    @torch.no_grad()
    def look(self, cond: Cond) -> None:
        """Sets the gates for a forward under this condition."""
        own, said = self.own.to(cond.states), map(_words, cond.texts or [""] * len(cond))
        near = torch.cosine_similarity(cond.states.flatten(1)[:, None], own.flatten(1)[None], dim=-1).clamp(0, 1)
        shares = [[len(words & name) / max(len(name), 1) for name in self.words] for words in said]
        self.rows = torch.maximum(near, torch.tensor(shares).to(near))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, list[tuple[int, LowRank]]]:
    """By the layer's tensor: which concept each membrane belongs to, and the membrane."""
    found: dict[str, list[tuple[int, LowRank]]] = {}
    for key in sorted(tensors):
        k, name, part = key.split("|")
        if part == "up":
            membrane = LowRank(up=tensors[key], down=tensors[f"{k}|{name}|down"])
            found.setdefault(name, []).append((int(k), membrane))
        elif part != "down" or f"{k}|{name}|up" not in tensors:
            raise ValueError(f"{shown(key, 120)} belongs to none")
    return found


def _through(gates: Gates, membranes: Sequence[tuple[int, LowRank]]) -> Callable[..., Tensor | None]:
    """A forward hook: the layer's output plus each membrane's, times the row's gate."""

    def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if gates.rows is None:
            return None
        x = args[0]
        for k, membrane in membranes:
            up, down = membrane.up.to(x), membrane.down.to(x)
            if isinstance(module, nn.Conv2d):
                thin = torch.nn.functional.conv2d(
                    x, down.view(len(down), *module.weight.shape[1:]), None, module.stride, module.padding
                )
                change = torch.einsum("or,nrhw->nohw", up, thin)
            else:
                change = (x @ down.T) @ up.T
            gate = gates.rows[:, k].to(out).view(-1, *[1] * (out.ndim - 1))
            out = out + gate * change
        return out

    return add
