"""Parts of a model that lie in main memory and visit the device for as long as they work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class Visitors:
    """Modules that are at home in main memory.

    A visit puts copies in the place of the tensors and afterwards the tensors back, which never move: what is known
    by their addresses (fingerprints, guards, patches, trainings) stays right, and nothing is copied back. Gradients
    flow through the copies. Hooks that move whole modules (accelerate) would make other tensors of them each time.

    Args:
        modules: by name; on the CPU.
        device: where they work.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self._modules, self._device = modules, device
        self._here: set[str] = set()

    @contextmanager
    def visit(self, *names: str) -> Iterator[None]:
        """The modules of these names work on the device until the context ends; of others nothing is known.

        Cost: a copy of their tensors to the device; none where they are there already.
        """
        due = [name for name in names if name in self._modules and name not in self._here]
        with ExitStack() as stack:
            for name in due:
                stack.enter_context(_visiting(self._modules[name], self._device))
                self._here.add(name)
                stack.callback(self._here.discard, name)
            yield


@contextmanager
def _visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    copies: dict[int, Tensor] = {}  # a tensor that is there under two names is copied once
    homes: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    try:
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                for name, tensor in held.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in copies:
                        copies[id(tensor)] = tensor.to(device)
                    homes.append((held, name, tensor))  # type: ignore[arg-type]
                    held[name] = copies[id(tensor)]  # type: ignore[assignment]
        yield
    finally:
        for held, name, tensor in homes:
            held[name] = tensor
