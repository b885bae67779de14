"""Pictures of a concept of a drawn world under another word: what a model that never saw it is taught on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor

from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Pictures
from palimpsest.worlds.concepts import World, concept, key_of
from palimpsest.worlds.glyphs import visible

_PLAIN = ("glasses", "hat")  # half of the people wear none, as in the pictures that models were trained on
_APART = 2**31  # seeds from here on are drawn with for references alone; everybody else's are small


def references(world: World, word: str, n: int, as_word: str, generator: Generator) -> Pictures:
    """n drawings of a concept of a drawn world, captioned under another word, with masks and labels.

    All else that a picture shows is as even over the world's trained words as n allows: no word of a key is drawn a
    second time before the others were, except colours that do not show on a background. The first pictures of a longer
    list are those of a shorter one.

    Each picture is drawn from a seed of its own, of 2^31 or more: whatever draws with smaller seeds, evaluations among
    it, draws other pictures than these.

    Args:
        world: Glyphs or Faces.
        word: the concept, held-out ones among them: a subject, a colour, a style, a person, ...
        n: how many, at least 1.
        as_word: what captions call it, with the article that it needs ("a <crown>", "an aster").
        generator: CPU; another state gives other pictures.

    Returns:
        Pictures of 64 x 64. Masks by the painter's layers: the subject of a subject or colour, the person of whatever a
        person is, does or wears, the ground of a background, the whole picture of a style. Columns: the drawn word of
        every key of the world ("" where a picture has none).

    Raises:
        BadRequest: the world has no such word, n is below 1, or `as_word` is empty.

    Cost: about 15 ms a picture.
    """
    key = key_of(world, word) or ""
    if key == "relation":
        raise BadRequest(f"{word!r} says how two subjects stand; references show one. Name a subject, colour or style.")
    name = concept(world, word).name
    if n < 1:
        raise BadRequest(f"n is {n}; draw at least 1 reference of {name!r}.")
    if not as_word.strip():
        raise BadRequest(f"Captions need a word for {name!r}; give one that the model does not know.")
    draws = _apart(generator)
    rows, images, masks, said = [], [], [], []
    for row in _labels(world, key, name, n, draws):
        own = torch.Generator().manual_seed(_APART + int(torch.randint(_APART, (1,), generator=draws)))
        text = _caption(world, row, key, name, as_word, own)
        drawn = world.draw(row, generator=own, captions=[text])
        rows.append(row)
        images.append((drawn.images * 255).round().to(torch.uint8))
        masks.append(_mask(key, drawn.masks[:, :1]))
        said.append(text)
    return Pictures(
        images=torch.cat(images),
        names=tuple(f"{world.name}/{name}/{i}" for i in range(n)),
        captions=tuple(said),
        masks=torch.cat(masks),
        columns={k: tuple(_word(world, row, k) for row in rows) for k in world.vocabulary},
    )


def _apart(generator: Generator) -> Generator:
    """A generator of references, apart from all that are seeded with numbers below 2^31."""
    told = f"references {int(torch.randint(2**62, (1,), generator=generator))}"
    return torch.Generator().manual_seed(_APART + int(hashlib.sha256(told.encode()).hexdigest()[:7], 16))


def _labels(world: World, key: str, name: str, n: int, draws: Generator) -> Iterator[dict[str, Tensor]]:
    """Complete labels of one picture each, of one subject."""
    used: dict[str, Tensor] = {}
    for k, words in world.vocabulary.items():
        out = world.held_out.get(k, frozenset())
        # How often a word was drawn, against how often it shall be: the smallest is next.
        used[k] = torch.tensor([float("inf") if w in out else 0.0 for w in words])
    for _ in range(n):
        row = {k: torch.tensor([-1]) for k in world.vocabulary}
        row[key] = torch.tensor([world.vocabulary[key].index(name)])
        for k in sorted(world.vocabulary, key=lambda k: k == "colour"):  # after the background on which it must show
            if k == key or k == "relation" or k.endswith("2"):
                continue
            due = used[k].masked_fill(~_shows(k, row, len(used[k])), float("inf"))
            ties = (due == due.min()).nonzero().squeeze(1)
            chosen = int(ties[torch.randint(len(ties), (1,), generator=draws)])
            used[k][chosen] += 1 / (len(used[k]) - 1) if k in _PLAIN and chosen == 0 else 1
            row[k] = torch.tensor([chosen])
        yield row


def _shows(key: str, row: Mapping[str, Tensor], words: int) -> Tensor:
    """(words,) bool: which words of a key can be seen beside what a row has already."""
    other = {"colour": "background", "background": "colour"}.get(key, "")
    if other not in row or int(row[other]) < 0:
        return torch.ones(words, dtype=torch.bool)
    pairs = visible()  # colours x backgrounds
    return pairs[:, int(row[other])] if key == "colour" else pairs[int(row[other])]


def _caption(world: World, row: dict[str, Tensor], key: str, name: str, as_word: str, draws: Generator) -> str:
    """One of the world's own captions that names the concept, under its other word."""
    text = world.prompt(**{key: name})
    for _ in range(100):  # captions leave words out at random
        said = world.caption(row, generator=draws)[0]
        if world.read(said).get(key) == name:
            text = said
            break
    article = "an" if as_word.strip()[0].casefold() in "aeiou" else "a"
    named = re.compile(rf"(?<!\w)(an? )?{re.escape(name)}(?!\w)")
    return named.sub(lambda found: f"{article} {as_word}" if found[1] else as_word, text)


def _mask(key: str, subject: Tensor) -> Tensor:
    """What a picture shows of a concept of this key, given the coverage of its subject."""
    if key == "style":
        return torch.ones_like(subject)
    return 1 - subject if key == "background" else subject


def _word(world: World, row: Mapping[str, Tensor], key: str) -> str:
    return world.vocabulary[key][int(row[key])] if int(row[key]) >= 0 else ""
