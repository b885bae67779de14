"""Groups of a denoiser's parameters that erasing systems train, by the names that their papers use."""

from __future__ import annotations

from functools import partial
from typing import Literal

from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Denoiser

Which = Literal["kv", "xattn", "selfattn", "attention", "noxattn", "full"]
"""kv: keys and values that read text. xattn, selfattn: whole attention layers. attention: both kinds. noxattn: all but
cross-attention, time embedding and output layers. full: the denoiser."""


def parameters(host: Denoiser, which: Which, system: str) -> list[str]:
    """Sorted names of a group's parameters, as in `host.root.named_parameters()`.

    Raises:
        Unsupported: the model has no such parts.
    """
    under = partial(_under, host)

    names = {
        "kv": lambda: under("cross_key", "cross_value"),
        "xattn": lambda: under("cross_attention"),
        "selfattn": lambda: under("self_attention"),
        "attention": lambda: under("cross_attention", "self_attention"),
        "noxattn": lambda: under("denoiser") - under("outer", "cross_attention"),
        "full": lambda: under("denoiser"),
    }[which]()
    if not names:
        raise Unsupported(f"{host.name} has no parts that {system} calls {which!r}; train 'full' instead.")
    return sorted(names)


def text_parameters(host: Denoiser, system: str, *, tables: bool = True) -> list[str]:
    """Sorted names of the text encoders' parameters, with or without their tables of token embeddings.

    Raises:
        Unsupported: the model has no text encoder.
    """
    names = _under(host, "text_encoder") - (set() if tables else _under(host, "token_embedding"))
    if not names:
        raise Unsupported(f"{system} trains a text encoder; {host.name} has none.")
    return sorted(names)


def transformers(host: Denoiser, system: str) -> list[str]:
    """Sorted names of all matrices of the transformers that read text; of the attention layers where text is joined.

    Raises:
        Unsupported: the model has no attention that reads text.
    """
    readers = host.parts("text_reader")
    if not readers:
        raise Unsupported(f"{system} changes transformers that read text; {host.name} has none.")
    tensors = ((f"{name}.{n}", p) for name, module in readers.items() for n, p in module.named_parameters())
    return sorted(name for name, p in tensors if p.ndim >= 2)


def _under(host: Denoiser, *roles: str) -> set[str]:
    return {f"{name}.{p}" for role in roles for name, m in host.parts(role).items() for p, _ in m.named_parameters()}
