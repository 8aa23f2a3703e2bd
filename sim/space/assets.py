"""What stands in the scenes, what it is called, and which scenes and things are kept for the test.

Train and test share neither a scene nor an asset; `layouts` has the scenes and things of train in places of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "layouts", "test")


@dataclass(frozen=True)
class Asset:
    """asset: its name in LIBERO's registry, or after `robosuite:` in robosuite's.

    fixed: it has no free joint.  lies: its file lays it down; it stands after a quarter turn about x.
    """

    asset: str
    name: str
    fixed: bool = False
    lies: bool = False


TRAIN = (
    Asset("alphabet_soup", "alphabet soup can", lies=True),
    Asset("bbq_sauce", "bbq sauce bottle"),
    Asset("butter", "butter box"),
    Asset("chocolate_pudding", "chocolate pudding box"),
    Asset("ketchup", "ketchup bottle", lies=True),
    Asset("milk", "milk carton", lies=True),
    Asset("tomato_sauce", "tomato sauce can", lies=True),
    Asset("cookies", "cookie box", lies=True),
    Asset("akita_black_bowl", "black bowl"),
    Asset("plate", "plate"),
    Asset("red_coffee_mug", "red mug"),
    Asset("chefmate_8_frypan", "frying pan"),
    Asset("basket", "basket"),
    Asset("moka_pot", "moka pot"),
    Asset("black_book", "black book"),
    Asset("glazed_rim_porcelain_ramekin", "ramekin"),
    Asset("wooden_cabinet", "wooden cabinet", fixed=True),
    Asset("flat_stove", "stove", fixed=True),
)
TEST = (
    Asset("cream_cheese", "cream cheese box"),
    Asset("orange_juice", "orange juice carton", lies=True),
    Asset("salad_dressing", "salad dressing bottle", lies=True),
    Asset("macaroni_and_cheese", "macaroni box", lies=True),
    Asset("popcorn", "popcorn box"),
    Asset("white_bowl", "white bowl"),
    Asset("white_yellow_mug", "yellow and white mug"),
    Asset("wine_bottle", "wine bottle"),
    Asset("yellow_book", "yellow book"),
    Asset("desk_caddy", "desk caddy"),
    Asset("wooden_tray", "wooden tray"),
    Asset("bowl_drainer", "bowl drainer"),
    Asset("microwave", "microwave", fixed=True),
    Asset("white_cabinet", "white cabinet", fixed=True),
)
ROBOSUITE_TRAIN = (
    Asset("robosuite:can", "soda can"),
    Asset("robosuite:milk", "milk carton"),
    Asset("robosuite:cereal", "cereal box"),
    Asset("robosuite:red cube", "red cube"),
    Asset("robosuite:green cube", "green cube"),
)
ROBOSUITE_TEST = (
    Asset("robosuite:bread", "loaf of bread"),
    Asset("robosuite:lemon", "lemon"),
    Asset("robosuite:bottle", "glass bottle"),
    Asset("robosuite:square nut", "square nut"),
    Asset("robosuite:round nut", "round nut"),
)
# Scene -> what may stand in it.  robosuite's few things are joined by LIBERO's of the same split.
SCENES = {
    "train": {
        "libero_kitchen": TRAIN,
        "libero_living_room": TRAIN,
        "libero_tabletop": TRAIN,
        "libero_floor": TRAIN,
        "robosuite_table": ROBOSUITE_TRAIN + tuple(a for a in TRAIN if not a.fixed and a.name != "milk carton"),
    },
    "test": {
        "libero_study": TEST,
        "libero_coffee_table": TEST,
        "robosuite_pegs": ROBOSUITE_TEST + tuple(a for a in TEST if not a.fixed),
    },
}
SCENES["layouts"] = SCENES["train"]
IRREGULAR = {"loaf of bread": "loaves of bread"}


def plural(name: str) -> str:
    """Such as boxes, knives, loaves of bread."""
    if name in IRREGULAR:
        return IRREGULAR[name]
    return name + ("es" if name.endswith(("x", "s", "sh", "ch")) else "s")
