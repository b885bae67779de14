"""SCAR claims, without retained data, what others reach with it."""

from palimpsest.exam.rules.unlearn.flat import WITHOUT_RETAINED
from palimpsest.exam.verbs.unlearn import comparable

judge = comparable("that trains on retained data", WITHOUT_RETAINED)
