"""What pictures show and what they shall show, in words: captions from wherever they are, and one thing changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.data.metadata import Facts, facts_of, metadata_of
from palimpsest.data.tables import decoded
from palimpsest.run.requests import concepts
from palimpsest.worlds.concepts import Words, World, key_of, none_of

SURE = 0.5  # above it what the reader of a drawn world sees is said
NO_CAPTION = "nobody said what it shows"
NOT_SAID = "what it shall lose is not in its caption"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What shall change.

    Args:
        to: what the pictures shall show. instead: what it takes the place of. remove: what they shall lose.
        asked: a sentence for each picture, with {said} and {name} (of the file) in it where wanted.

    Raises:
        BadRequest: nothing, or two things at once.
    """

    to: str = ""
    instead: str = ""
    remove: str = ""
    asked: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.to, self.remove, self.asked))) != 1:
            raise BadRequest("Say one thing that shall change: --to WORDS, --remove WORDS, or --asked SENTENCE.")
        if self.instead and not self.to:
            raise BadRequest("--instead says what --to takes the place of; give --to as well.")

    def request(self, host: Any) -> Request:
        """As systems take it; a world's model refuses words that its world does not have."""
        if self.asked:
            return Request(target=(Concept(name=" ".join(self.asked.split())[:200], kind="attribute"),))
        if self.remove and isinstance(host.knows, Words) and none_of(host.knows.world, self.remove):
            return Request(target=(Concept(name=self.remove, kind="attribute"),))
        if self.instead:
            concepts(host, [self.instead])
        return Request(target=concepts(host, [self.to or self.remove]))


@dataclass(frozen=True, kw_only=True)
class Said:
    """The prompts of one picture: what it shows, what is asked of it, what it is guided away from; and remarks."""

    said: str
    asked: str
    avoided: str = ""
    flags: tuple[str, ...] = ()


def said_of(host: Any, wanted: Wanted, caption: str, name: str) -> Said:
    """The prompts of a picture with this caption ("" where nobody knows).

    Where the model's drawn world has the words, both sentences are written as its captions are; else words are
    replaced, added or taken out.
    """
    flags = () if caption else (NO_CAPTION,)
    if wanted.asked:
        return Said(said=caption, asked=_filled(wanted.asked, caption, name), flags=flags)
    if isinstance(host.knows, Words) and (written := _in_world(host.knows.world, wanted, caption)) is not None:
        return Said(said=written[0], asked=written[1], flags=flags)
    if wanted.remove:
        rest = _without(caption, wanted.remove)
        missing = () if rest != caption else (NOT_SAID,)
        return Said(said=caption, asked=rest, avoided=wanted.remove, flags=(*flags, *missing))
    if wanted.instead and (put := _replaced(caption, wanted.instead, wanted.to)) != caption:
        return Said(said=caption, asked=put, flags=flags)
    return Said(said=caption, asked=f"{caption}, {wanted.to}" if caption else wanted.to, flags=flags)


def _in_world(world: World, wanted: Wanted, caption: str) -> tuple[str, str] | None:
    """Both sentences in a world's own words; None where it has none for this change."""
    labels = world.read(caption)
    if wanted.remove:
        gone = none_of(world, wanted.remove)
        if gone is None:
            return None
        key, word = gone
    else:
        key, word = key_of(world, wanted.to) or "", wanted.to
    try:
        word = next(w for w in world.vocabulary[key] if w.casefold() == word.casefold())
        return world.prompt(**labels) if labels else caption, world.prompt(**{**labels, key: word})
    except (KeyError, StopIteration, ValueError):  # no such word, or words that its sentences cannot join
        return None


def _filled(template: str, caption: str, name: str) -> str:
    """Only these two are put in; whatever else stands in braces stays."""
    return re.sub(r"\{(said|name)\}", lambda m: caption if m[1] == "said" else name, template)


def _pattern(words: str) -> str:
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def _replaced(text: str, old: str, new: str) -> str:
    return re.sub(_pattern(old), lambda m: new, text, count=1, flags=re.IGNORECASE)


def _without(text: str, words: str) -> str:
    """The text without these words, and without what joined them to the rest."""
    joined = rf"(?:,?\s*\b(?:wearing|with|and|in)\b)?\s*(?:\b(?:a|an|the)\b\s*)?{_pattern(words)}"
    out = re.sub(joined, "", text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", re.sub(r"\s*,(\s*,)*", ",", out)).strip(" ,")


# -- where captions come from ----------------------------------------------------------------------------


class Captions:
    """Captions of pictures: what the user gives, a text beside the picture, a list beside the pictures, or a reader.

    Args:
        given: a .csv or .jsonl file with the columns file_name and caption, or one text for all, with {name} in it
            where wanted; "": none.
        root: the folder of the pictures, in which `metadata.csv` or `.jsonl` may lie; None: there is none.
        host: the model, whose drawn world has a reader.

    Raises:
        BadRequest, Damaged: a list that cannot be read.
    """

    def __init__(self, given: str, root: Path | None, host: Any) -> None:
        listed = Path(given).suffix.lower() in (".csv", ".jsonl") if given else False
        self._text = "" if listed else given
        self._given = facts_of(Path(given).expanduser()) if listed else None
        self._beside = metadata_of(root) if root is not None and not given else None
        self._world = host.knows.world if isinstance(host.knows, Words) else None
        self._read: Callable[[Tensor], str] | None = None

    def of(self, name: str, file: Path, picture: Tensor) -> tuple[str, str]:
        """A picture's caption, and where it is from, in words. `picture`: (1, 3, H, W) in [0, 1]."""
        stem = Path(name).stem
        if self._text:
            return _filled(self._text, "", stem), "--said"
        for facts, where in ((self._given, "--said"), (self._beside, "metadata")):
            if facts is not None and (caption := _caption(facts, name)):
                return caption, where
        text = file.with_suffix(".txt")
        if self._given is None and text.is_file():
            return " ".join(decoded(text.read_bytes(), text, "a caption").split()), text.suffix
        if self._given is None and self._world is not None:
            return self._seen(picture), f"the reader of {self._world.name}"
        return "", ""

    def _seen(self, picture: Tensor) -> str:
        if self._read is None:
            assert self._world is not None
            self._read = reader(self._world)
        return self._read(picture)


def _caption(facts: Facts, name: str) -> str:
    return facts.of(name).caption if name in facts.rows else ""


def reader(world: World) -> Callable[[Tensor], str]:
    """What a picture (1, 3, H, W) of a drawn world shows, in the world's own sentence, as its reader sees it.

    Whose face it is stays unsaid: the reader calls strangers by the nearest name.
    """
    from palimpsest.tiny import oracle

    eye = oracle(world.name)

    def read(picture: Tensor) -> str:
        small = functional.interpolate(picture, (64, 64), mode="bilinear", antialias=True)
        words = {}
        for key, shares in eye.read(small).items():
            top = int(shares[0].argmax())
            if key != "identity" and float(shares[0, top]) > SURE:
                words[key] = world.vocabulary[key][top]
        try:
            return world.prompt(**words)
        except ValueError:  # words that one sentence cannot join
            return world.prompt(**{key: word for key, word in words.items() if not key.endswith("2")})

    return read
