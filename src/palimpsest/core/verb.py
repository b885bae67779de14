"""What a verb is: a literal in `<verb>/__init__.py`, from which its command, its page and its runs are made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A kind of change. In the verb's package every argument must be a literal: it is read without running it.

    Args:
        does: what it does, in one line, as the overview of commands says it.
        makes: the kind of its systems: "ModelEdit", "ImageEdit" or "Combine".
        subject: what its receipts are about: "generator", "classifier", ... (`receipt/subjects`).
        default: the system that is used where none is named.
        asks: parts of a request that the command takes: "target", "keep", "toward" (concepts), "forget" (samples).
        reads: data that every system of the verb learns from, as `Card.reads`.
        out: the folder of the results where none is named.
        examples: command lines for the help.
    """

    does: str
    makes: str
    subject: str
    default: str
    asks: tuple[str, ...] = ("target",)
    reads: tuple[str, ...] = ()
    out: str = "out"
    examples: tuple[str, ...] = ()
