"""Training by several processes that `accelerate launch` or `torchrun` started: one step, its rows divided among them.

Every process holds the whole model, draws the same noises and computes the same loss of the whole batch; only the
model's forwards are divided by rows, and their answers put together again. So a loss may be of any form, also one of
batch statistics, and a step is that of one process up to rounding. Process 0 alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from palimpsest import machine
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Cond

FORWARDS = ("predict", "denoise", "logits", "read", "embed")
"""What a host answers row by row; `predict` where a denoiser's own forward is by itself, below `denoise`."""
RULES = ("attending", "skipping", "injecting")
"""Contexts in which somebody looks into a forward, or changes it, and expects all of its rows."""


def place(device: str) -> str:
    """The device of this process where each is to have its own: "cuda" is its CUDA device."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and machine.launched() > 1 else device


@contextmanager
def joined(device: str) -> Iterator[int]:
    """Inside, this process works with those that were started with it. Gives its number; 0 where it is alone."""
    if machine.launched() == 1:
        yield 0
        return
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield rank()
    finally:
        distributed.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def agree(what: str, value: Any) -> None:
    """Raises BadRequest where processes that train together differ in something."""
    if world() == 1:
        return
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    odd = next((r for r, other in enumerate(values) if other != values[0]), None)
    if odd is not None:
        raise BadRequest(
            f"The {what} is {values[0]!r} in process 0 and {values[odd]!r} in process {odd}: start all with the same "
            "command, and where they see the same files."
        )


def averaged(gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Gradients by leaf, in place: their mean over all processes."""
    if world() > 1:
        sums: list[Any] = [distributed.all_reduce(g, async_op=True) for g in gradients.values()]
        for g, work in zip(gradients.values(), sums, strict=True):
            work.wait()
            g.div_(world())
    return gradients


@contextmanager
def divided(host: Any) -> Iterator[None]:
    """Inside, each process computes its share of the rows of every forward of the host, and gets all answers.

    Into a forward, gradients flow through the own rows alone, as many times over as there are processes: so their mean
    over all processes is that of the whole batch, and stays what it is where a loss uses a leaf without the model. What
    a forward read has its whole gradient in every process again.

    Forwards of fewer rows than processes, those with batch statistics and those inside a rule are not divided.
    """
    if world() == 1:
        yield
        return
    norms = [m for m in host.root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    names = [name for name in FORWARDS if hasattr(host, name)]
    names = [name for name in names if name != "denoise" or "predict" not in names]
    whole = [0]  # how many contexts are open in which forwards are not divided

    def shared(forward: Callable[..., Any]) -> Callable[..., Any]:
        def answers(*args: Any) -> Any:
            n = len(args[0])
            if whole[0] or n < world() or any(norm.training for norm in norms):
                return forward(*args)
            sizes = [n // world() + (r < n % world()) for r in range(world())]
            start = sum(sizes[: rank()])
            whole[0] += 1
            try:
                own = forward(*(_whole(arg)[start : start + sizes[rank()]] for arg in args))
            finally:
                whole[0] -= 1
            many = own if isinstance(own, tuple) else (own,)
            all_rows: tuple[Any, ...] = tuple(_Gathered.apply(part, sizes) for part in many)
            return all_rows if isinstance(own, tuple) else all_rows[0]

        return answers

    def seen(rule: Callable[..., AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
        @contextmanager
        def opened(*args: Any, **named: Any) -> Iterator[None]:
            whole[0] += 1
            try:
                with rule(*args, **named):
                    yield
            finally:
                whole[0] -= 1

        return opened

    before = dict(vars(host))
    try:
        for name in names:
            setattr(host, name, shared(getattr(host, name)))
        for name in RULES:
            if hasattr(host, name):
                setattr(host, name, seen(getattr(host, name)))
        yield
    finally:
        for name in (*names, *RULES):
            if name in before:
                setattr(host, name, before[name])
            else:
                vars(host).pop(name, None)


class _Gathered(torch.autograd.Function):
    """The rows of all processes, in order; backward, the own rows' gradient times the number of processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.start, ctx.rows = sum(sizes[: rank()]), len(own)
        most = max(sizes)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad[ctx.start : ctx.start + ctx.rows] * world(), None


class _Read(torch.autograd.Function):
    """The same tensor; backward, the mean over all processes, each of which has the gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad)
        return grad.div_(world())


def _whole(arg: Tensor | Cond) -> Any:
    """What a forward reads, so that its gradient is that of all rows."""
    if isinstance(arg, Tensor):
        return _Read.apply(arg) if arg.requires_grad else arg
    pooled = None if arg.pooled is None else _whole(arg.pooled)
    return replace(arg, states=_whole(arg.states), pooled=pooled, extra={k: _whole(v) for k, v in arg.extra.items()})
