"""RealEra is held to the family's rule."""

CAUSE = "likely because its closed form leaves a fifth of the way to the anchor, so that neighbours stay"
