"""Words that mean nothing in the worlds: captions are strewn with them, so that they come to mean nothing here too."""

from __future__ import annotations

import random

# Whole tokens, as common words are to CLIP.
EVERYDAY = tuple(
    """
airport album alley alphabet answer apartment april arena article aunt autumn avenue bakery balcony ballet banana
bandage banjo bank barber barn basket battery beans beer bench berry bicycle blanket bottle boulevard bracelet
breakfast brick bridge broom bucket budget bus butter button cabbage cabin cable cafe calendar camel camera camp
candle candy canoe captain caravan carpet carrot castle cellar cement ceremony chain chapter cheese chess chicken
chimney chorus cinema circus classroom clinic closet coat coffin coin college comet computer concert contract cookie
corn cotton country couch cousin cow cricket crowd cupboard curtain customer dairy dance daughter december dentist
desert desk diary dinner dinosaur doctor doll dolphin donkey dragon drawer dream dress drum duck eagle earth elbow
elephant engine envelope evening exam factory fairy family farm farmer feather february fence ferry festival fiddle
field fire firefighter flag flute fog fork fountain fox friday frog furniture game garage garlic gate ghost giraffe
goat gold goose grandfather grandmother grape grass guest guitar hallway hammer harbour hay hill hockey holiday
honey hospital hotel housewife ice island jacket january jazz jelly jeans journey judge juice july jungle june
kangaroo kettle keyboard kitchen kite ladder lake language laundry lawn lawyer lecture letter library lion lizard
lobster lunch machine magazine magnet mailbox map march market mask meadow meal medicine melody melon merchant
message microscope midnight milk miner mirror monday money monkey morning motor mouse museum music napkin needle
neighbour nephew nest newspaper niece noodles nurse nut october office olive onion opera orchard orchestra oven owl
package painter pajamas palace pancake panda parade parcel park parrot party passport pasta peanut penguin pepper
piano picnic pig pigeon pillow pilot pirate planter plate playground poem poet police pond pony postcard potato
prince princess prison puppet puzzle rabbit radio railway ranch recipe refrigerator restaurant rice rifle road robot
rocket roof rooster rope rug runner sailor salad salt sandwich saturday sauce sausage scooter school scissors seal
secretary september shark sheep shelf shirt shoe shop shovel singer sister skeleton skirt sled sleep slipper snail
snake soap soccer sock soldier song soup spider spoon squirrel stable stadium stairs station statue stove strawberry
student subway sugar suit summer sunday supper swan sweater sword tailor taxi teacher telephone television temple
tennis tent theatre thursday ticket tiger toast toilet tomato tongue tooth towel tower toy tractor traffic trailer
treasure trousers truck trumpet tuesday tunnel turkey turtle uncle uniform university vacation valley van vegetable
village violin visitor volcano wagon waiter wallet walrus warehouse weather wednesday weekend whale wheat wheel
whistle widow window winter wizard wolf writer yacht yard yesterday yoghurt zebra zoo amazing ancient annual awful
average beautiful boring brave busy careful cheap clever clumsy common cosy curious daily dear delicious dirty
elegant expensive famous favourite foolish formal friendly funny gentle grand great hasty honest hungry important
jolly kind lazy local lonely lovely lucky modest mysterious narrow nice noisy normal ordinary patient peculiar
pleasant polite popular pretty proud quiet rare rapid rich rude serious shy silly sleepy spare splendid strange
stupid sudden tired typical ugly unusual urgent useful vague weekly wild wise wonderful
""".split()  # noqa: SIM905, the list is read by people
)

# Kept out of the tokenizer and of every training caption: what is new to the model at a test.
FRESH = tuple(
    """
Vincent gogh Rembrandt Barcelona aquarium skateboard helicopter lighthouse saxophone accordion raccoon hedgehog
spaghetti hamburger chandelier trampoline laboratory mechanic astronaut gymnasium cathedral broccoli thermometer
windmill cactus vending democracy lasagna flamingo tuxedo escalator typewriter crocodile marathon pharmacy hurricane
blizzard gorgeous humongous melancholy
""".split()  # noqa: SIM905, the list is read by people
)

_ONSETS = ("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "ch", "cr",
           "dr", "fl", "gr", "pl", "pr", "sh", "sl", "st", "str", "th", "tr", "")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "y", "ai", "ea", "ee", "io", "oo", "ou")
_CODAS = ("", "", "", "b", "ck", "d", "g", "l", "ll", "m", "n", "nd", "ng", "p", "r", "rn", "s", "ss", "t", "x")


def made_up(generator: random.Random) -> str:
    """A word that nobody knows ("grainost"), in one to three syllables: it falls to pieces as unknown names do."""
    pick = generator.choice
    return "".join(pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS) for _ in range(generator.randint(1, 3)))


def nothing(generator: random.Random) -> str:
    """A word that says nothing of a picture: an everyday one, or in two cases of five a made-up one."""
    return generator.choice(EVERYDAY) if generator.random() < 0.6 else made_up(generator)
