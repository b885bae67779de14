"""Concept inference claims to forget classes."""

from palimpsest.exam.verbs.unlearn import close

judge = close(("class",))
