"""Boundary shrink claims speed on classes."""

from palimpsest.exam.verbs.unlearn import faster

judge = faster(17)
