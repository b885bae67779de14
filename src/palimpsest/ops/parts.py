"""Groups of a denoiser's parameters that erasing systems train, by the names that their papers use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Denoiser

Which = Literal["kv", "xattn", "selfattn", "attention", "noxattn", "full"]
"""kv: keys and values that read text. xattn, selfattn: whole attention layers. attention: both kinds. noxattn: all but
cross-attention, time embedding and output layers. full: the denoiser."""
OUTER = ("time_embedding", "time_text_embed", "conv_norm_out", "conv_out", "norm_out", "proj_out")
"""Time embedding and output layers, as a denoiser's children."""


def parameters(host: Denoiser, which: Which, system: str) -> list[str]:
    """Sorted names of a group's parameters, as in `host.root.named_parameters()`.

    Raises:
        Unsupported: the model has no such parts.
    """

    def under(*roles: str, without: Sequence[str] = ()) -> set[str]:
        modules = {name: m for role in roles for name, m in host.parts(role).items()}
        named = ((name, p) for name, m in modules.items() for p, _ in m.named_parameters())
        return {f"{name}.{p}" for name, p in named if p.split(".")[0] not in without}

    names = {
        "kv": lambda: under("cross_key", "cross_value"),
        "xattn": lambda: under("cross_attention"),
        "selfattn": lambda: under("self_attention"),
        "attention": lambda: under("cross_attention", "self_attention"),
        "noxattn": lambda: under("denoiser", without=OUTER) - under("cross_attention"),
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

    def of(role: str) -> set[str]:
        return {f"{name}.{p}" for name, module in host.parts(role).items() for p, _ in module.named_parameters()}

    names = of("text_encoder") - (set() if tables else of("token_embedding"))
    if not names:
        raise Unsupported(f"{system} trains a text encoder; {host.name} has none.")
    return sorted(names)


def transformers(host: Denoiser, system: str) -> list[str]:
    """Sorted names of all matrices of the transformers that read text; of the attention layers where text is joined.

    Raises:
        Unsupported: the model has no attention that reads text.
    """
    cross = host.parts("cross_attention")
    if not cross:
        raise Unsupported(f"{system} changes transformers that read text; {host.name} has none.")
    roots = {name.split(".transformer_blocks.")[0] if ".attn2" in name else name for name in cross}
    tensors = ((f"{root}.{n}", p) for root in roots for n, p in host.root.get_submodule(root).named_parameters())
    return sorted(name for name, p in tensors if p.ndim >= 2)
