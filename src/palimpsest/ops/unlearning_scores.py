"""Scores that papers on unlearning summarise a model with."""

from __future__ import annotations


def adaptive_unlearning_score(forget: float, test: float, base_test: float, goal: float = 0.0) -> float:
    """DUCK's AUS: how little test accuracy was lost, over how far forgetting is from its goal.

        AUS = (1 - (base_test - test)) / (1 + |goal - forget|)

    Args:
        forget: accuracy on what was forgotten, in [0, 1].
        test: accuracy of the changed model on test data (of the kept classes, if classes were forgotten).
        base_test: accuracy of the untouched model there.
        goal: the forget accuracy that is right: 0 for classes, the test accuracy for samples.

    Returns:
        1 for perfect forgetting without loss, less otherwise; above 1 where test accuracy rose.
        Source: Cotogni et al., arXiv 2312.02052.
    """
    return (1 - (base_test - test)) / (1 + abs(goal - forget))


def normalised_unlearning_score(accuracy: float, attack: float) -> float:
    """MUFAC's NoMUS: half for the task, half for an attack that cannot tell.

        NoMUS = accuracy / 2 + (1 - 2 |attack - 1/2|) / 2

    Args:
        accuracy: of the changed model on test data, in [0, 1].
        attack: accuracy of a membership attack on balanced sets of forgotten and of held-out samples, in [0, 1].

    Returns:
        In [0, 1], larger is better. It is blind to forgetting too much: an attack that is wrong too often costs as
        much as one that is right.
        Source: Choi and Na, "Towards Machine Unlearning Benchmarks", arXiv 2311.02240.
    """
    return accuracy / 2 + (1 - 2 * abs(attack - 0.5)) / 2
