"""LAF claims, without labels, what others reach with them."""

from palimpsest.exam.verbs.unlearn import comparable

judge = comparable("that reads labels", ("unlearn/laf",))
