"""Rules inside a diffusers network while it runs: what its attention reads, and what its decoder's skips carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Host

Rule = Callable[[str, Tensor], Tensor]
"""(layer's name, maps (n, heads, pixels, tokens)) -> the maps that the layer goes on with, same shape."""


@contextmanager
def attending(host: Host, rule: Rule, role: str) -> Iterator[None]:
    """Every attention layer of a role hands its maps to the rule until the context ends; gradients flow through.

    Raises:
        Unsupported: the model has no such layers, or they attend to text and image jointly.

    Cost: the maps exist as tensors, pixels x tokens for each head, where a fused kernel never forms them.
    """
    layers = host.parts(role)
    joint = set(host.parts("cross_attention")) & set(host.parts("self_attention"))
    if not layers or joint:
        raise Unsupported(f"{host.name} has no layers in which the picture alone reads the {role} states.")
    old = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            _process(layer, Shown(name, rule))
        yield
    finally:
        for name, layer in layers.items():
            _process(layer, old[name])


@contextmanager
def skipping(host: Host, rule: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The rule makes of each skip (n, c, h, w) what the decoder reads, in the order in which it is read.

    A network without a decoder of its own has no skips, and the rule is never asked.
    """

    def ruled(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        skips = [rule(skip) for skip in reversed(kwargs["res_hidden_states_tuple"])]
        return args, {**kwargs, "res_hidden_states_tuple": tuple(reversed(skips))}

    with ExitStack() as stack:
        for block in host.parts("decoder_block").values():
            stack.callback(block.register_forward_pre_hook(ruled, with_kwargs=True).remove)
        yield


class Shown:
    """A diffusers attention processor that shows its map to a rule; otherwise the default one's function."""

    def __init__(self, name: str, rule: Rule) -> None:
        self.name, self.rule = name, rule

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            states = attn.norm_encoder_hidden_states(states)
        heads = attn.heads

        def split(value: Tensor) -> Tensor:  # (n, length, heads * d) -> (n, heads, length, d)
            return value.unflatten(-1, (heads, -1)).transpose(1, 2)

        query, key, value = split(attn.to_q(hidden_states)), split(attn.to_k(states)), split(attn.to_v(states))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, states.shape[1], len(states))
            scores = scores + mask.view(len(states), heads, -1, mask.shape[-1])
        maps = self.rule(self.name, scores.softmax(-1))
        mixed = (maps @ value).transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](mixed))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def _process(layer: Any, processor: Any) -> None:
    """Without `set_processor`, which would drop a processor that has weights of its own."""
    if isinstance(processor, nn.Module):
        layer.__dict__.pop("processor", None)
        layer._modules["processor"] = processor
    else:
        layer._modules.pop("processor", None)
        layer.processor = processor
