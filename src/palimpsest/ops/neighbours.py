"""Which concepts lie close to a concept: in a model's own text embeddings, or in image embeddings of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from palimpsest.core.concept import Concept, Kind
from palimpsest.core.host import Denoiser
from palimpsest.ops.text_states import last, texts

_THINGS = (
    "dog, cat, horse, bird, fish, cow, sheep, elephant, bear, lion, butterfly, frog, rabbit, car, truck, bus, "
    "bicycle, motorcycle, train, airplane, boat, house, castle, church, bridge, tower, tree, flower, mushroom, apple, "
    "banana, bread, cake, pizza, cup, bottle, chair, table, bed, lamp, clock, book, umbrella, shoe, hat, crown, "
    "guitar, piano, violin, camera, telephone, computer, ball, parachute, gun, knife, hammer, key, "
    "star, heart, moon, sun"
)
_STYLES = (
    "Vincent van Gogh, Claude Monet, Pablo Picasso, Rembrandt, Leonardo da Vinci, Michelangelo, Johannes Vermeer, "
    "Salvador Dali, Edvard Munch, Gustav Klimt, Paul Cezanne, Henri Matisse, Andy Warhol, Hokusai, Caravaggio, "
    "Albrecht Durer, William Turner, Georgia O'Keeffe, watercolour, oil painting, pencil sketch, charcoal, pixel art, "
    "cartoon, comic book, mosaic, stained glass, ukiyo-e, art nouveau, cubism, pop art, impressionism, graffiti"
)
_PEOPLE = (
    "Albert Einstein, Marie Curie, Isaac Newton, Charles Darwin, Ada Lovelace, Nikola Tesla, Abraham Lincoln, "
    "George Washington, Queen Victoria, Napoleon Bonaparte, Cleopatra, Julius Caesar, Mahatma Gandhi, Nelson Mandela, "
    "Winston Churchill, Martin Luther King, Frida Kahlo, Charlie Chaplin, Audrey Hepburn, Marilyn Monroe, "
    "Elvis Presley, Ludwig van Beethoven, Wolfgang Amadeus Mozart, William Shakespeare"
)
_ATTRIBUTES = (
    "red, green, blue, yellow, orange, purple, pink, brown, black, white, grey, golden, silver, wooden, metallic, "
    "glass, furry, shiny, old, young, large, small, smiling, angry, sad, surprised, bearded, bald, blond"
)
_SCENES = (
    "forest, beach, desert, mountains, city, village, street, kitchen, bedroom, office, garden, farm, river, lake, "
    "ocean, night sky, sunset, snow, rain, fog, autumn, underwater, outer space, battlefield, stadium, market, library"
)
CANDIDATES: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "object": tuple(_THINGS.split(", ")),
        "class": tuple(_THINGS.split(", ")),
        "style": tuple(_STYLES.split(", ")),
        "identity": tuple(_PEOPLE.split(", ")),
        "attribute": tuple(_ATTRIBUTES.split(", ")),
        "domain": tuple(_SCENES.split(", ")),
    }
)
"""Words of each kind that models of everyday pictures know; no model's own vocabulary."""


def everyday(concept: Concept) -> tuple[Concept, ...]:
    """The default candidates for neighbours of a concept: words of its kind, without its own name."""
    mine = concept.name.strip().casefold()
    return tuple(Concept(name=n, kind=concept.kind) for n in CANDIDATES[concept.kind] if n.casefold() != mine)


@torch.no_grad()
def nearest(host: Denoiser, concept: Concept, candidates: Sequence[Concept], k: int) -> list[tuple[Concept, float]]:
    """The k candidates whose name's last text state has the largest cosine with the concept's, nearest first.

    Args:
        candidates: fewer than k are all returned; the concept itself should not be among them. `everyday` gives some
            for models of everyday pictures.

    Returns:
        (candidate, cosine in [-1, 1]); equal cosines keep the order of the candidates.

    Cost: one batched text forward of len(candidates) + 1 short prompts.
    """
    if not candidates:
        return []
    # Up to the name: what a prompt says after it would make all states alike.
    states = last(host.tokens([texts(c, expand=False)[0] for c in (concept, *candidates)])).float()
    cosines = torch.nn.functional.cosine_similarity(states[:1], states[1:])
    order = cosines.argsort(descending=True, stable=True)[:k].tolist()
    return [(candidates[i], float(cosines[i])) for i in order]


def alike(vectors: Mapping[str, Tensor], name: str) -> list[tuple[str, float]]:
    """The other names by how alike their pictures are to one name's, most alike first.

    Cosine of the names' mean vectors after the mean of all names is taken away: what all pictures share (a frame, a
    white ground) says nothing.

    Args:
        vectors: name -> (n, d) embeddings of its pictures, by an image encoder.

    Returns:
        (name, cosine in [-1, 1]).
    """
    means = torch.stack([v.float().mean(0) for v in vectors.values()])
    means = means - means.mean(0)
    names = list(vectors)
    cosines = torch.nn.functional.cosine_similarity(means[names.index(name)][None], means)
    found = [(n, float(c)) for n, c in zip(names, cosines, strict=True) if n != name]
    return sorted(found, key=lambda entry: -entry[1])
