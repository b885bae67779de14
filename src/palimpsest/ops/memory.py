"""The most memory that a computation holds at once, told without computing it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` has made and still holds, at its worst moment; nothing is computed.

    Every operation runs on tensors that have shapes, types and lifetimes, but no content. So what autograd keeps, what
    checkpointing drops and what a kernel such as flash attention never forms are counted as they are. Tensors that
    exist before (weights) are not counted, nor is what kernels take for themselves meanwhile.

    Args:
        work: makes its own tensors, inside; it must not ask for their values.

    Cost: about a tenth of a millisecond an operation: a second or two for a forward and backward of SDXL's network.
    """
    with imagined(), _Counted() as counted:
        result = work()
        del result
    return counted.peak


@contextmanager
def imagined() -> Iterator[None]:
    """Inside, tensors are made without memory; those from outside may take part."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class _Counted(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        many = out if isinstance(out, (tuple, list)) else (out,)
        returns = func._schema.returns
        for i, value in enumerate(many):
            # What an operation gives is a view, or what it was given, where its schema says so.
            if isinstance(value, Tensor) and returns[min(i, len(returns) - 1)].alias_info is None:
                self._take(value)
        return out

    def _take(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._held:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: object) -> None:
            self.now -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, freed)
