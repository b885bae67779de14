"""FLAT claims to forget without what is retained: it is compared with systems that do as much."""

from palimpsest.exam.verbs.unlearn import first

LEAVES = ("boundary_expanding", "boundary_shrink", "flat", "gradient_ascent", "scar", "upcore")
WITHOUT_RETAINED = tuple(f"unlearn/{leaf}" for leaf in LEAVES)
MEASURED = "smallest average gap of those that do not train on retained data"
judge = first(MEASURED, lambda o: o["average gap"].value, WITHOUT_RETAINED)
