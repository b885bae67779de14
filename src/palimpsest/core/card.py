"""The card of a system: what it is and where it comes from. Imports neither torch nor any other heavy package."""

from __future__ import annotations

from dataclasses import dataclass


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
        needs: the capability of the host: "Denoiser", "Classifier", "Encoder" or "Generator".
        claim: the headline claim, in one line, with its number where the paper gives one.
        systems: ids of the published systems that this file covers, in the project's map.
    """

    name: str
    title: str
    year: int
    paper: str
    family: str
    needs: str
    claim: str
    systems: tuple[int, ...] = ()
