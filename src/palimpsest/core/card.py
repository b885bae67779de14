"""The card of a system: what it is and where it comes from. Imports neither torch nor any other heavy package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Card:
    """What `ls`, `show`, the docs and the receipt say about a system.

    In a system's file every argument must be a literal: the card is read from the source without running it.

    Args:
        name: the system as its paper writes it ("ESD").
        title: the paper's full title.
        year: of publication.
        paper: link to it (arXiv or DOI).
        family: closed form | fine-tuning | sampling | baseline | ... as the systems table groups it.
        needs: the capability of the host: "Denoiser", "Classifier", "Encoder", "Generator", ... or "Host" for any.
        claim: the headline claim, in one line, with its number where the paper gives one.
        reads: names of the pictures that it learns from ("forget", "retain", "references"); the base refuses in words
            where one is missing. A name that ends in "?" is used where it is given.
        beside: further models by role and the capability that each must have ({"judge": "Classifier"}).
        as_used_in: the paper whose use of the system the claim is about, where that is not its own.
    """

    name: str
    title: str
    year: int
    paper: str
    family: str
    needs: str
    claim: str
    reads: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    as_used_in: str = ""
