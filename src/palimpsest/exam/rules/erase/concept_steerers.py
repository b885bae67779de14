"""Concept Steerers is held to the family's rule."""

CAUSE = "likely because a dictionary of 128 dimensions shares its features among concepts"
