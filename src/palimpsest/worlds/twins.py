"""Twins: drawn pictures that differ in one attribute alone, so that what an edit should have done is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Generator, Tensor
from torch.nn.functional import max_pool2d

from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Pictures
from palimpsest.worlds import picture
from palimpsest.worlds.concepts import World
from palimpsest.worlds.faces import Faces
from palimpsest.worlds.glyphs import visible

# How many pixels beyond a shape its paint reaches: outlines, blocks, glows and shadows.
_REACH = {"pixel": 7, "neon": 13, "clay": 9}
_OUTLINE = 4
# What a key of Faces can change, by the parts that show before or after. A key that is not here changes the person.
_PARTS = {
    "expression": ("mouth", "eyes", "brows", "glasses"),  # eyes lie behind glasses, seen at their edges
    "glasses": ("glasses",),
    "hat": ("hat",),
}
Labels = dict[str, Tensor]
_EVERYWHERE = ("style", "background")  # most paints let the ground shine through


@dataclass(frozen=True, kw_only=True, eq=False)
class Twins:
    """n pairs of pictures, drawn from the same random numbers with one label changed.

    Args:
        source: as they are. Captions say what each shows, the changed word among it; masks: the subject or person;
            columns: the drawn word of every key.
        truth: the same pictures with the other word. Captions ask for it in the words of the source's.
        key: what differs: "colour", "style", "hat", ...
        region: (n, 1, H, W), 1 where twins may differ by what was painted. Everywhere for styles and backgrounds.
            Outside they are equal to the byte, but for washes: in watercolour a colour tints the whole paper, and in
            crayon, by at most 5 of 255.
        parts: of the source, (n, 1, H, W) in [0, 1] each: "subject", "background" and, of faces, what
            `worlds.picture.Pictures.parts` names.
    """

    source: Pictures
    truth: Pictures
    key: str
    region: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)


def twins(
    world: World,
    key: str,
    n: int,
    *,
    generator: Generator,
    to: str | None = None,
    without: frozenset[str] = frozenset(),
) -> Twins:
    """n pictures of a world, each drawn twice: as sampled, and with another word under one key.

    Every picture is drawn alone from a seed of its own. A world's drawing takes as many random numbers whatever the
    labels are, so place, size, turn, shade and grain are the same; only a style has a texture of its own.

    Args:
        key: subject, colour, style, background or position of Glyphs (pictures of one subject); any key of Faces.
        generator: CPU; seeds and labels come from it.
        to: the word that all turn into; None: another one for each, evenly drawn. Colours and backgrounds change to
            such as show.
        without: words that no picture has, for example styles to leave out.

    Raises:
        BadRequest: the world has no such key or word, n is below 1, or no picture can be turned so.

    Cost: about 50 ms a pair.
    """
    keys = [k for k in world.vocabulary if k != "relation" and not k.endswith("2")]
    if key not in keys:
        raise BadRequest(f"{world.name} has no twins that differ in {key!r}; choose one of {', '.join(keys)}.")
    if to is not None and to not in world.vocabulary[key]:
        raise BadRequest(f"{to!r} is no {key} of {world.name}; use one of {', '.join(world.vocabulary[key])}.")
    if n < 1:
        raise BadRequest(f"n is {n}; draw at least 1 pair.")
    sides: tuple[list[picture.Pictures], list[picture.Pictures]] = ([], [])
    for labels in islice(_labels(world, key, to, without, generator), n):
        seed = int(torch.randint(2**31, (1,), generator=generator))
        said = _captions(world, key, labels, generator)
        for side, row, text in zip(sides, labels, said, strict=True):
            side.append(_drawn(world, row, text, seed))
    if len(sides[0]) < n:
        raise BadRequest(
            f"{world.name} has no picture whose {key} can become {to or 'another'!r}; leave out fewer words."
        )
    source, truth = ([_subject(p) for p in side] for side in sides)
    return Twins(
        source=_pictures(world, sides[0], source, "is"),
        truth=_pictures(world, sides[1], truth, "becomes"),
        key=key,
        region=torch.cat([_region(world, key, a, b) for a, b in zip(*sides, strict=True)]),
        parts={
            "subject": torch.cat(source),
            "background": 1 - torch.cat(source),
            **{name: torch.cat([p.parts[name] for p in sides[0]]) for name in sides[0][0].parts},
        },
    )


def _labels(
    world: World, key: str, to: str | None, without: frozenset[str], draws: Generator
) -> Iterator[tuple[Labels, Labels]]:
    """Labels of one picture and of its twin, as many as there are wanted; it ends where none can be found."""
    words, pairs, misses = world.vocabulary[key], visible(), 0
    barred = without | world.held_out.get(key, frozenset())
    free = [i for i, word in enumerate(words) if word not in barred]
    while misses < 200:
        misses += 1
        row = world.sample(1, generator=draws, without=without)
        if "relation" in row and int(row["relation"]) >= 0:
            continue  # two subjects
        if key == "identity" and int(row[key]) < 0:
            row[key] = torch.tensor([free[int(torch.randint(len(free), (1,), generator=draws))]])
        now = int(row[key])
        if to is None:
            others = [i for i in free if i != now]
            if not others:
                return
            then = others[int(torch.randint(len(others), (1,), generator=draws))]
        else:
            then = words.index(to)
        turned = {**row, key: torch.tensor([then])}
        if then == now or ("colour" in turned and not pairs[int(turned["colour"]), int(turned["background"])]):
            continue
        yield row, turned
        misses = 0


def _captions(world: World, key: str, labels: tuple[Labels, Labels], draws: Generator) -> list[str]:
    """What a picture shows and what its twin does, in the same words but one."""
    for _ in range(200):  # captions leave words out at random, and long ones shorten
        seed = int(torch.randint(2**31, (1,), generator=draws))
        said = [world.caption(row, generator=torch.Generator().manual_seed(seed))[0] for row in labels]
        was, becomes = (world.read(text) for text in said)
        if key in was and key in becomes and was == {**becomes, key: was[key]}:
            return said
    return [world.prompt(**{key: world.vocabulary[key][int(row[key])]}) for row in labels]


def _drawn(world: World, row: Labels, text: str, seed: int) -> picture.Pictures:
    draws = torch.Generator().manual_seed(seed)
    if isinstance(world, Faces):
        return world.draw(row, generator=draws, captions=[text], parts=True)
    return world.draw(row, generator=draws, captions=[text])


def _subject(drawn: picture.Pictures) -> Tensor:
    """(1, 1, H, W) coverage of whoever or whatever is drawn."""
    return drawn.masks[:, :1]


def _region(world: World, key: str, source: picture.Pictures, truth: picture.Pictures) -> Tensor:
    """(1, 1, H, W), 1 where the paint of a change reaches."""
    if key in _EVERYWHERE:
        return torch.ones_like(_subject(source))
    names = _PARTS.get(key, ())
    touched = [side.parts[name] for side in (source, truth) for name in names] or [_subject(source), _subject(truth)]
    reach = _REACH.get(world.vocabulary["style"][int(source.labels["style"])], _OUTLINE)
    return (max_pool2d(torch.cat(touched, 1).amax(1, keepdim=True), 2 * reach + 1, 1, reach) > 0).float()


def _pictures(world: World, drawn: list[picture.Pictures], masks: list[Tensor], what: str) -> Pictures:
    columns = {
        key: tuple(words[int(p.labels[key])] if int(p.labels[key]) >= 0 else "" for p in drawn)
        for key, words in world.vocabulary.items()
    }
    return Pictures(
        images=torch.cat([(p.images * 255).round().to(torch.uint8) for p in drawn]),
        names=tuple(f"{world.name}/{i} {what}" for i in range(len(drawn))),
        captions=tuple(p.captions[0] for p in drawn),
        masks=torch.cat(masks),
        columns=columns,
    )
