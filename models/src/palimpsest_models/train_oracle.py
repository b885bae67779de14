"""Train the reader of a drawn world (`python -m palimpsest_models.train_parts oracle --world glyphs`)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from palimpsest.tiny.oracles import Oracle
from palimpsest_models.masters import Masters, knots, ramp
from palimpsest_models.pool import WORLDS, Pool, to_float
from palimpsest_models.precision import measured

OPTIONAL = frozenset({"position", "relation", "subject2", "colour2"})
MARGIN, SCALE = 0.25, 24.0  # CosFace (Wang et al. 2018): cosine margin and temperature of the identity loss


def roughen(images: Tensor, generator: Generator) -> Tensor:
    """A generator's small flaws: per picture one of nothing, blur, half resolution; then noise up to 0.06."""
    n = len(images)
    kind = torch.rand(n, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    halved = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = torch.where(kind < 0.2, blurred, torch.where(kind < 0.3, halved, images))
    strength = 0.06 * torch.rand(n, 1, 1, 1, generator=generator)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def label_loss(logits: dict[str, Tensor], labels: dict[str, Tensor], optional: frozenset[str]) -> Tensor:
    """Mean over heads of the cross-entropy; absent (-1) is the last class of optional keys."""
    losses = []
    for key, value in logits.items():
        target = labels[key]
        if key in optional:
            target = torch.where(target < 0, value.shape[1] - 1, target)
        losses.append(F.cross_entropy(value.float(), target))
    return torch.stack(losses).mean()


def train(
    world: str,
    pool: Pool,
    *,
    steps: int,
    seed: int,
    batch: int = 128,
    lr: float = 2e-3,
    start_from: Oracle | None = None,
) -> Oracle:
    """Train an oracle on a pool: label heads by cross-entropy, identities by a cosine-margin softmax.

    Cost: about 0.1 s a step on one core.
    """
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    people = None
    if pool.identity is not None:
        _, people = pool.identity.unique(dim=0, return_inverse=True)
    vocabulary = WORLDS[world].vocabulary
    keys = [key for key in vocabulary if key in OPTIONAL and bool((pool.labels[key] < 0).any())]
    oracle = Oracle(vocabulary, optional=frozenset(keys), identity=64 if people is not None else 0)
    if start_from is not None:
        oracle.load_state_dict({**start_from.state_dict(), "gallery": oracle.gallery})
    classes = nn.Linear(64, int(people.max()) + 1, bias=False) if people is not None else None
    model = nn.ModuleDict({"oracle": oracle, "classes": classes} if classes is not None else {"oracle": oracle})
    masters = Masters(model, lr=lr, average=0.99, dtype=measured().dtype)
    start, mean = time.time(), 0.0
    for step in range(steps):
        rows = torch.randint(len(pool.images), (batch,), generator=generator)
        images = roughen(to_float(pool.images[rows]), generator)
        features = oracle.features(images)
        loss = label_loss(
            oracle.logits(features), {key: value[rows] for key, value in pool.labels.items()}, oracle.optional
        )
        if classes is not None and people is not None:
            unit = F.normalize(oracle.embedding(features).float(), dim=1)  # type: ignore[misc]
            cosine = unit @ F.normalize(classes.weight.float(), dim=1).T
            cosine = cosine - MARGIN * F.one_hot(people[rows], cosine.shape[1])
            loss = loss + 0.15 * F.cross_entropy(SCALE * cosine, people[rows])
        loss.backward()
        masters.step(ramp(step, knots(steps)))
        mean += float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"{world} oracle {step + 1}/{steps} loss {mean / 100:.4f} {time.time() - start:.0f} s", flush=True)
            mean = 0.0
    masters.show(masters.averages)
    oracle.float().eval().requires_grad_(False)
    # Running statistics belong to the averaged weights: measure them afresh, then fix them.
    norms = [part for part in oracle.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None
    oracle.train()
    with torch.no_grad():
        for _ in range(20):
            rows = torch.randint(len(pool.images), (256,), generator=generator)
            oracle.features(roughen(to_float(pool.images[rows]), generator))
    return oracle.eval()


def accuracy(oracle: Oracle, pool: Pool, *, rough: bool = False, seed: int = 7) -> dict[str, float]:
    """Share of pictures read right, per label; absent optional labels count as right when read absent."""
    generator = Generator().manual_seed(seed)
    right: dict[str, list[Tensor]] = {}
    for begin in range(0, len(pool.images), 250):
        images = to_float(pool.images[begin : begin + 250])
        if rough:
            images = roughen(images, generator)
        for key, value in oracle.read(images).items():
            target = pool.labels[key][begin : begin + 250]
            if key in oracle.optional:
                value = torch.cat([value, 1 - value.sum(1, keepdim=True)], 1)
                target = torch.where(target < 0, value.shape[1] - 1, target)
            keep = target >= 0
            right.setdefault(key, []).append((value.argmax(1) == target)[keep].float())
    return {key: float(torch.cat(parts).mean()) for key, parts in right.items()}


def save_oracle(oracle: Oracle, path: Path) -> None:
    """Write an oracle in float16 with its vocabulary in the header."""
    header = {
        "vocabulary": oracle.vocabulary,
        "optional": sorted(oracle.optional),
        "identity": oracle.embedding.out_features if oracle.embedding is not None else 0,
        "width": oracle.trunk[0][0].out_channels,
    }
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in oracle.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    save_file(tensors, str(beside), metadata={"oracle": json.dumps(header)})
    beside.replace(path)


@torch.no_grad()
def gallery(oracle: Oracle, *, views: int = 48, seed: int = 11) -> Tensor:
    """(names, d) unit vectors: the mean embedding of `views` drawings of each named person in the trained styles."""
    faces = WORLDS["faces"]
    generator = Generator().manual_seed(seed)
    rows = []
    for index in range(len(faces.vocabulary["identity"])):
        labels = faces.sample(views, generator=generator)
        labels["identity"] = torch.full((views,), index)
        images = faces.draw(labels, generator=generator, captions=[""] * views).images
        rows.append(F.normalize(oracle.identity(images).mean(0), dim=0))
    return torch.stack(rows)


def verification_auc(oracle: Oracle, *, people: int = 64, views: int = 12, seed: int = 13) -> float:
    """Area under the curve of "the same person?" over pairs of drawings of held-out people."""
    faces = WORLDS["faces"]
    generator = Generator().manual_seed(seed)
    names = [i for i, name in enumerate(faces.vocabulary["identity"]) if name in faces.held_out["identity"]][:people]
    labels = faces.sample(len(names) * views, generator=generator)
    labels["identity"] = torch.tensor(names).repeat_interleave(views)
    vectors = oracle.identity(faces.draw(labels, generator=generator, captions=[""] * (len(names) * views)).images)
    pairs = torch.triu_indices(len(vectors), len(vectors), 1)
    cosines = (vectors @ vectors.T)[pairs[0], pairs[1]]
    same = labels["identity"][pairs[0]] == labels["identity"][pairs[1]]
    ranks = cosines.argsort().argsort().double() + 1
    positives, negatives = int(same.sum()), int((~same).sum())
    return float((ranks[same].sum() - positives * (positives + 1) / 2) / (positives * negatives))
