"""TRCE is held to the family's rule."""

CAUSE = (
    "likely because its solve moves the states that close a prompt, and in this small text space every state "
    "holds all words"
)
