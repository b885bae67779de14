"""The words that a model of everyday pictures knows: those of its own tokenizers, and names that the package lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from palimpsest import machine
from palimpsest.core.concept import Concept, Kind
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError
from palimpsest.core.files import read_tensors, write_beside
from palimpsest.core.host import Vocabulary
from palimpsest.ops.listed import LISTS, OTHER, WordList, forms, list_of, of_kind, parts, split, stem
from palimpsest.ops.prompts import asking, holds, in_settings

FORMAT = 1
VOTERS, AGREED = 7, 5  # nearest listed names that vote on a word's kind, and how many must agree
SPELLINGS = 0.95  # quantile of listed names' nearest others, above which a word is another spelling of a name
VOTED: frozenset[Kind] = frozenset(("object", "attribute", "domain"))
"""Kinds that words of a tokenizer may be of. A tokenizer's names of persons are those of the living: of persons and
artists only the lists' are taken."""
LENGTHS = 4  # texts of so many tokens and more are centred together
ENOUGH = 50  # texts of a length whose mean says what the length adds


class Reader(Protocol):
    """What a host's `reader` does: it reads single words as the model does (`hosts.words`)."""

    @property
    def words(self) -> tuple[str, ...]:
        """Whole words of the model's tokenizers."""
        ...

    @property
    def sha256(self) -> str:
        """Of all that decides `words` and `read`."""
        ...

    def read(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> tuple[Tensor, Tensor]:
        """(n, d) the state of each text's last token; (n,) how many tokens it has."""
        ...


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where names lie among a model's text states.

    Args:
        names: those that are listed and words of the model's tokenizers, none of them twice.
        kinds: of each, an index into `Kind`'s values; -1: none.
        rows: (n, d) float32, the states less the mean of their length, of unit norm.
        means: (LENGTHS, d), the mean state of texts of 1, 2, ... tokens, the last for all longer ones.
        spelling: cosine from which on two names are one in other letters.
    """

    names: tuple[str, ...]
    kinds: Tensor
    rows: Tensor
    means: Tensor
    spelling: float

    def place(self, states: Tensor, lengths: Tensor) -> Tensor:
        """(n, d) of unit norm: states of texts of so many tokens."""
        return normalize(states.float() - self.means[_bins(lengths)], dim=1)


class Lexicon:
    """The vocabulary of a host that knows none by itself: listed names, and words of its own tokenizers.

    How near two names lie is the cosine of their last text states, each less the mean of all texts of as many tokens:
    what all texts of a length share says nothing of what they mean.

    A word of a tokenizer has no kind. `AGREED` of the `VOTERS` listed names nearest to it must be of one kind, which is
    then its own; names that say nothing about a picture vote too (`ops.listed.OTHER`). A word that lies nearer to a
    listed name than all but a twentieth of the listed names lie to each other is that name in other letters ("bunny"
    to rabbit, "agle" to eagle), and left out; by the same measure a word is no neighbour of a target that it spells.

    Everything is read once and kept by the reader's hash in the cache folder.

    Args:
        host: its `reader` reads the words; without one only the lists are known, and nothing is near.

    Cost: once one forward of the text encoder for tens of thousands of words of a token or two (`bench/words.py`:
    minutes on two cores for the encoder of Stable Diffusion 1.x); afterwards a file of some ten megabytes is read.
    """

    judge = ""

    def __init__(self, host: Any) -> None:
        self.name: str = host.name
        self.reader: Reader | None = getattr(host, "reader", None)

    # -- reading -----------------------------------------------------------------------------------------

    @property
    def unread(self) -> int:
        """How many words must be read before anything is near; 0 where they were, or nothing reads them."""
        return 0 if self.reader is None or self._file.is_file() else len(self._texts)

    def read(self, progress: Callable[[int, int], None] | None = None) -> Places:
        """Where the words lie, from the cache, or read now and kept there; `progress` is told (read, in all).

        Raises:
            BadRequest: the host has no reader.
        """
        if self.reader is None:
            raise BadRequest(f"{self.name} has no tokenizer that tells its words, so none of them is near another.")
        if self._file not in _read:
            _read.clear()
            with suppress(Damaged):  # a broken file is read anew
                _read[self._file] = _kept(self._file)
        if self._file not in _read:
            _read[self._file] = places = _placed(self._texts, *self.reader.read(self._texts, progress))
            with suppress(PalimpsestError):  # a full disk costs the next one time, nothing else
                _keep(places, self._file)
        return _read[self._file]

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The listed names, then the tokenizers' words that are forms of none of them and of no other."""
        assert self.reader is not None
        taken = frozenset().union(*map(parts, _listed()))
        own: dict[str, str] = {}
        for word in sorted(self.reader.words, key=lambda w: (len(w), w)):
            own.setdefault(stem(split(word)), word)
        return (*_listed(), *sorted(word for key, word in own.items() if key not in taken))

    @cached_property
    def _file(self) -> Path:
        assert self.reader is not None
        said = json.dumps([FORMAT, self.reader.sha256, _listed()])
        return machine.cache_folder() / "words" / f"{hashlib.sha256(said.encode()).hexdigest()}.safetensors"

    # -- as a vocabulary ---------------------------------------------------------------------------------

    def concept(self, word: str, kind: Kind | None = None) -> Concept:
        """The word as a Concept: of the kind that is given, else of that of its list, else an object."""
        found = list_of(word)
        return Concept(name=word, kind=kind or (None if found is None else found.kind) or "object")

    def __contains__(self, word: str) -> bool:
        """Every word: a text encoder reads whatever is written."""
        return bool(split(word))

    def nearest(self, host: Any, concept: Concept, *, avoid: frozenset[str]) -> list[tuple[Concept, float]]:
        """Names of the concept's kind, nearest first; none that is a form of the concept or of a name to avoid."""
        if self.reader is None:
            return []
        places, kind = self.read(), "object" if concept.kind == "class" else concept.kind
        cosines = places.rows @ places.place(*self.reader.read([concept.name]))[0]
        few = (places.kinds == get_args(Kind).index(kind)).nonzero()[:, 0]
        few = few[cosines[few].argsort(descending=True, stable=True)].tolist()
        names = (concept.name, *avoid)
        form, letters = forms(names), ["".join(split(name)) for name in names]
        # Names that are listed are other things than a listed target, however near they lie.
        distinct = len(_listed()) if kind not in VOTED or list_of(concept.name) else 0
        return [
            (Concept(name=name, kind=concept.kind), cosine)
            for i, name, cosine in ((i, places.names[i], float(cosines[i])) for i in few)
            if not form(name)
            and (i < distinct or cosine < places.spelling)
            and (i < len(_listed()) or not any(text in name or name in text for text in letters if text))
        ]

    def others(self, concepts: Sequence[Concept], *, avoid: frozenset[str]) -> list[tuple[Concept, str]]:
        """Common names of other fields than the concepts', of one list in turn, the farthest first."""
        fields = {field for c in concepts for field in _fields(c)}
        lists = [found for found in LISTS if found.field not in fields]
        form = forms([*avoid, *(c.name for c in concepts)])
        columns = [[name for name in found.common if not form(name)] for found in lists]
        whom = " and ".join(c.name for c in concepts)
        far = self._nearness(concepts)
        said = {n: "" for column in columns for n in column}
        if far:
            columns = [sorted(column, key=far.__getitem__) for column in columns]
            said = {n: f", far from {whom} in the model's text embeddings (cosine {far[n]:.2f})" for n in said}
        return [
            (self.concept(column[i], found.kind), f"{found.one}{said[column[i]]}")
            for i in range(max(map(len, columns), default=0))
            for found, column in zip(lists, columns, strict=True)
            if i < len(column)
        ]

    def prompts(
        self, concept: Concept, n: int, *, generator: torch.Generator, avoid: frozenset[str] = frozenset()
    ) -> list[str]:
        """The concept's own prompts, else its name alone and in the templates; then in settings, in random order.

        Raises:
            BadRequest: there are not n different ones.
        """
        settings = in_settings(concept)
        shuffled = [settings[i] for i in torch.randperm(len(settings), generator=generator).tolist()]
        others = [a for a in avoid if a.casefold() != concept.name.casefold()]
        more = [p for p in shuffled if not any(holds(p, other) for other in others)]
        found = list(dict.fromkeys((*asking(concept), *more)))[:n]
        if len(found) < n:
            raise BadRequest(
                f"There are only {len(found)} different prompts for {concept.name!r}; ask for fewer than {n}."
            )
        return found

    def _nearness(self, concepts: Sequence[Concept]) -> dict[str, float]:
        """Of each listed name to the nearest of the concepts; {} where nothing reads."""
        if self.reader is None or not concepts:
            return {}
        places = self.read()
        rows = places.place(*self.reader.read([c.name for c in concepts]))
        listed = _listed()
        return dict(zip(listed, (places.rows[: len(listed)] @ rows.T).max(1).values.tolist(), strict=True))


_read: dict[Path, Places] = {}  # the last one in this process


def vocabulary(host: Any) -> Vocabulary:
    """The words that a host knows: its own vocabulary, as models of drawn worlds have one, or its `Lexicon`."""
    own = getattr(host, "knows", None)
    return Lexicon(host) if own is None else own


@lru_cache(maxsize=1)
def _listed() -> tuple[str, ...]:
    return tuple(name for found in (*LISTS, OTHER) for name in found.names)


def _fields(concept: Concept) -> set[str]:
    """The fields of the lists that a concept belongs to: of the one that it stands in, else of all of its kind."""
    lists = of_kind(concept.kind)
    own: WordList | None = list_of(concept.name)
    return {found.field for found in ((own,) if own in lists else lists) if found is not None}


def _bins(lengths: Tensor) -> Tensor:
    return (lengths - 1).clamp(0, LENGTHS - 1)


def _placed(texts: tuple[str, ...], states: Tensor, lengths: Tensor) -> Places:
    """Which of the texts are names of which kind, and where they lie; the listed ones come first."""
    bins = _bins(lengths)
    counts = torch.bincount(bins, minlength=LENGTHS)
    means = torch.stack([(states[bins == b] if counts[b] >= ENOUGH else states).mean(0) for b in range(LENGTHS)])
    rows = normalize(states - means[bins], dim=1)
    kinds, listed = _kinds(), len(_listed())
    names = rows[:listed]
    spelling = _spelling(names)
    votes = torch.full((len(texts) - listed,), -1)
    for i, part in enumerate(rows[listed:].split(4096)):
        cosines, voters = (part @ names.T).topk(VOTERS, dim=1)
        count = torch.stack([(kinds[voters] == k).sum(1) for k in range(len(get_args(Kind)))], 1)
        best, kind = count.max(1)
        fits = (best >= AGREED) & torch.isin(kind, _voted()) & (cosines[:, 0] < spelling)
        votes[4096 * i : 4096 * i + len(part)] = torch.where(fits, kind, -1)
    kept = torch.cat([torch.arange(listed), listed + (votes >= 0).nonzero()[:, 0]])
    return Places(
        names=tuple(texts[i] for i in kept.tolist()),
        kinds=torch.cat([kinds, votes])[kept],
        rows=rows[kept].half().float(),  # as they will be read again
        means=means,
        spelling=spelling,
    )


def _spelling(names: Tensor) -> float:
    """The cosine that but a twentieth of the listed single words of kinds that are voted on have with another one.

    Forms of one name ("red" and "dark red") do not count, and words of no kind neither.
    """
    one = [i for i, (name, kind) in enumerate(zip(_listed(), _kinds().tolist(), strict=True)) if _counts(name, kind)]
    rows = names[one]
    nearest = (rows @ rows.T).fill_diagonal_(-1).max(1).values
    return float(nearest.quantile(SPELLINGS))


def _counts(name: str, kind: int) -> bool:
    return kind >= 0 and get_args(Kind)[kind] in VOTED and len(split(name)) == 1


@lru_cache(maxsize=1)
def _kinds() -> Tensor:
    """(listed,) index of each listed name's kind; -1: none."""
    kinds = [-1 if found.kind is None else get_args(Kind).index(found.kind) for found in (*LISTS, OTHER)]
    return torch.tensor([k for k, found in zip(kinds, (*LISTS, OTHER), strict=True) for _ in found.names])


def _voted() -> Tensor:
    return torch.tensor([get_args(Kind).index(kind) for kind in sorted(VOTED)])


def _keep(places: Places, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"rows": places.rows.half(), "kinds": places.kinds.to(torch.int8), "means": places.means}
    said = {"names": json.dumps(places.names), "spelling": repr(places.spelling)}
    write_beside(path, lambda tmp: save_file(tensors, tmp, metadata=said))


def _kept(path: Path) -> Places:
    """Raises Damaged where there is no such file, or not a whole one."""
    said, tensors = read_tensors(path, "a model's words")
    try:
        names = tuple(json.loads(said["names"]))
        kinds, rows, means = tensors["kinds"].long(), tensors["rows"].float(), tensors["means"]
        spelling = float(said["spelling"])
    except (KeyError, ValueError) as e:
        raise Damaged(f"{path} holds no model's words; delete it.") from e
    if not len(names) == len(kinds) == len(rows) >= len(_listed()):
        raise Damaged(f"{path} holds {len(names)} names and {len(rows)} rows; delete it.")
    return Places(names=names, kinds=kinds, rows=rows, means=means, spelling=spelling)
