"""SAFREE is held to the family's rule."""

CAUSE = (
    "likely because every state of a prompt holds all its words in this small text space, so that little of "
    "the concept lies in the direction that is taken out"
)
