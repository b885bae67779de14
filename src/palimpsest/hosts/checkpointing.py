"""Gradient checkpointing: what a network computed on the way is computed again for the gradient, instead of kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from palimpsest.core.errors import Unsupported
from palimpsest.hosts.attending import Shown


def checkpoint_blocks(network: Any, name: str) -> None:
    """Each block of a diffusers network keeps its input alone until the gradient has passed it.

    Gradients stay the same to the bit. A block whose attention shows its maps to a rule, or that somebody hung a hook
    on, keeps everything, since neither needs to be there any more when the gradient passes.

    Cost: one more forward for each backward pass.

    Raises:
        Unsupported: the network, or the diffusers installed here, cannot do it.
    """
    try:
        network.enable_gradient_checkpointing(_again)
    except (AttributeError, TypeError, ValueError) as e:
        raise Unsupported(
            f"The {type(network).__name__} of {name} takes no --checkpointing with the diffusers installed here; "
            "upgrade diffusers (0.33 or newer), or leave the option out."
        ) from e


def _again(block: Any, *args: Any) -> Any:
    modules = list(block.modules())
    if any(m._forward_hooks or m._forward_pre_hooks or isinstance(m.__dict__.get("processor"), Shown) for m in modules):
        return block(*args)
    held = [(m, dict(m._parameters)) for m in modules if m._parameters]
    return checkpoint(
        block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), _holding(held))
    )


@contextmanager
def _holding(held: Sequence[tuple[nn.Module, Mapping[str, Tensor | None]]]) -> Iterator[None]:
    """The modules with the tensors that they computed with; by now a student may be the teacher again."""
    now = [module.__dict__["_parameters"] for module, _ in held]
    try:
        for module, tensors in held:
            module.__dict__["_parameters"] = tensors
        yield
    finally:
        for (module, _), tensors in zip(held, now, strict=True):
            module.__dict__["_parameters"] = tensors
