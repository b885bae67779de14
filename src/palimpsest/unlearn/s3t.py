"""S3T: exact unlearning; adapters are trained slice by slice, and those that saw a deleted sample are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.delta import Delta
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Several, Size
from palimpsest.core.host import Classifier
from palimpsest.core.method import ModelEdit, Work
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.train.classify import Augment, augmented, checked, cross_entropy, joined, stream
from palimpsest.train.loop import identity, minimise
from palimpsest.train.randomness import generator
from palimpsest.train.scratch import changes, copied, recalibrate, reset
from palimpsest.train.trained import Trained


@dataclass(frozen=True, kw_only=True)
class S3T(ModelEdit):
    """Sequence-aware sharded sliced training: the model after the deletion, exact for what its adapters learned.

    The data is cut into slices by name (or by group, so that an identity lies in one slice). The layers are cut into
    as many groups, from the head down. In a sequence, the k-th slice trains low-rank adapters of the k-th group, on
    top of the earlier ones. A deletion takes away the adapters of the first slice that it touches and all later ones.
    Of several sequences (cyclic shifts of the slices), the one that keeps most is used:

        patch = adapters of the longest prefix, over all sequences, without a slice that holds a forgotten sample

    No tensor of the patch has ever seen a forgotten sample: with the same slices and seed it is bit for bit the same
    whatever those samples hold. In service all sequences are trained before any request, and deleting costs nothing;
    here only the prefix that survives is trained.

    The host must not have seen the data itself: it is the public model that adapters are put on. Where it has, set
    `fresh`, which starts from random weights instead.

    Args:
        slices: how many, and layer groups with them.
        epochs: passes over each slice. lr, batch, augment, rank: of its training (Adam); rank 0 trains whole tensors.
        fresh: draw all weights afresh first.

    Cost: `epochs` forwards and backwards of each slice that is used; a deletion in service costs none.
    Differs from the paper: one shard; sequences are all cyclic shifts; only one sequence is trained.
    Fails when: every slice holds something to forget (a class, or samples at random): nothing exact is left, and it
        says so. A model whose lower layers know nothing learns little from the head down.
    Source: Chowdhury et al., "Towards Scalable Exact Machine Unlearning Using Parameter-Efficient Fine-Tuning", ICLR
        2025, arXiv 2406.16257.

    Example:
        >>> patch = S3T(slices=8)(host, request, data=split)   # doctest: +SKIP
    """

    slices: Several = 4
    epochs: Count = 5
    lr: NonNegative = 1e-3
    batch: Count = 64
    augment: Augment = "flip"
    rank: Size = 8
    fresh: bool = False

    quick: ClassVar[Mapping[str, Any]] = {"slices": 3, "epochs": 1, "batch": 32}

    card = Card(
        name="S3T",
        title="Towards Scalable Exact Machine Unlearning Using Parameter-Efficient Fine-Tuning",
        year=2025,
        paper="https://arxiv.org/abs/2406.16257",
        family="exact",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Takes more deletions than other exact systems before it must retrain, at better accuracy.",
    )

    def planned(self, data: Material) -> Work:
        """At most: slices that hold something to forget are not trained."""
        n = len(data["retain"])
        return Work(steps=self.epochs * -(-n // self.batch), samples=self.epochs * n)

    def run(self, host: Classifier, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        split, seed = checked(host, data), rng.initial_seed()
        every = joined(split["forget"], split["retain"])
        place = torch.tensor([self._slice(key) for key in every.columns.get("identity") or every.names])
        order = longest_prefix(self.slices, set(place[: len(split["forget"])].tolist()))
        if not order:
            raise BadRequest(
                f"All {self.slices} slices hold something to forget, so no adapter is left that is exact. "
                "Use more slices, or retrain."
            )
        student = copied(host)
        if self.fresh:
            reset(student, seed)
            recalibrate(student, every[place == order[0]], seed=seed, batch=self.batch)
        groups = layer_groups(host, self.slices)
        run = identity(self, host, request, seed)
        deltas: dict[str, Delta] = {}
        for names, part in zip(groups, order, strict=False):
            # Sorted, so that training does not depend on how a caller split the data.
            own = every[place == part]
            own = own[torch.tensor(sorted(range(len(own)), key=lambda i: own.names[i]))]
            with trace.part(f"slice-{part}") as trained:
                adapters = self._trained(student, names, own, seed, trained, {**run, "slice": part})
            Patch(base="", deltas=adapters).fuse(student, force=True)
            deltas |= adapters
        return Patch(base="", deltas=changes(host, student) if self.fresh else deltas)

    def _slice(self, key: str) -> int:
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") % self.slices

    def _trained(
        self, student: Classifier, names: list[str], own: Pictures, seed: int, trace: Trace, run: Mapping[str, Any]
    ) -> dict[str, Delta]:
        """The adapters of one layer group, from one slice."""
        trained = Trained(student.root, names, rank=self.rank, seed=seed)
        batch = min(self.batch, len(own))

        def loss(k: int) -> Tensor:
            rows = stream(len(own), batch, seed, k, names[0])
            images = augmented(own.pixels(rows), self.augment, generator(seed, "augment", names[0], k))
            return cross_entropy(student.logits(images), own.labels[rows])

        with trained.frozen():
            minimise(
                trained.leaves,
                loss,
                steps=self.epochs * -(-len(own) // batch),
                optimiser=torch.optim.Adam(trained.leaves.values(), lr=self.lr),
                trace=trace,
                run=run,
                within=trained.student,
                called=f"loss {names[0]}",
            )
        return trained.deltas()


def longest_prefix(slices: int, touched: set[int]) -> list[int]:
    """The longest run of untouched slices that some cyclic shift of 0..slices-1 begins with; the first of equals."""
    best: list[int] = []
    for start in range(slices):
        run: list[int] = []
        for k in range(slices):
            if (start + k) % slices in touched:
                break
            run.append((start + k) % slices)
        best = run if len(run) > len(best) else best
    return best


def layer_groups(host: Classifier, count: int) -> list[list[str]]:
    """Names of weights with two axes or more, from the head down, in `count` groups that differ in size by one at most.

    Raises:
        BadRequest: the model has fewer such weights than groups.
    """
    names = [name for name, p in host.root.named_parameters() if p.ndim >= 2][::-1]
    if len(names) < count:
        raise BadRequest(f"{host.name} has {len(names)} layers for {count} slices; use at most {len(names)} slices.")
    return [[names[i] for i in part.tolist()] for part in torch.arange(len(names)).tensor_split(count)]
