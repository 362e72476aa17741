"""ODinW, object detection in the wild: what its sets are called, where they lie, and what they are asked for.

Each set is a COCO data set of its own, scored by `CocoDetection`; the benchmark is the mean of the sets' AP.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from .average_precision import NOTHING_TO_MEASURE


class ClassPrompt(NamedTuple):
    """How a class is asked for: in a few words, of which some are its name.

    prefix, suffix: around the name, with the spaces between.
    name: the words whose tokens give the score; empty where the benchmark does not ask for the class, so that all of
        it is missed.
    """

    prefix: str
    name: str
    suffix: str

    @property
    def text(self) -> str:
        """The whole prompt of the class."""
        return self.prefix + self.name + self.suffix

    @property
    def span(self) -> tuple[int, int]:
        """Where the name stands in `text`, as (start, end) characters."""
        return len(self.prefix), len(self.prefix) + len(self.name)


@dataclass(frozen=True, kw_only=True)
class OdinwSet:
    """One set of the benchmark, its validation part.

    name: as in the tables of results.
    folder: of the set, below the root of the data.
    annotations: the COCO file, below `folder`.
    images: the folder that file names in the annotations start from, below `folder`; empty for `folder` itself.
    prompts: category id to prompt, for the classes that are not asked for by their name in the file.
    """

    name: str
    folder: str
    annotations: str = "valid/annotations_without_background.json"
    images: str = "valid"
    prompts: Mapping[int, ClassPrompt] = field(default_factory=dict)


def _exported(name: str, folder: str) -> OdinwSet:
    return OdinwSet(name=name, folder=folder, annotations="val_annotations_without_background.json", images="")


def _renamed(*names: str) -> dict[int, ClassPrompt]:
    return {category_id: ClassPrompt("", name, "") for category_id, name in enumerate(names, 1)}


_PIECES = ("bishop", "king", "knight", "pawn", "queen", "rook")
_CHESS = ("", *(f"{colour} {piece}" for colour in ("black", "white") for piece in _PIECES))
_MUSHROOMS = "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco"
_POTHOLE = ClassPrompt("there are some ", "holes", " on the road")

ODINW_35 = (
    OdinwSet(name="AerialMaritimeDrone_large", folder="AerialMaritimeDrone/large"),
    OdinwSet(name="AerialMaritimeDrone_tiled", folder="AerialMaritimeDrone/tiled"),
    OdinwSet(
        name="AmericanSignLanguageLetters",
        folder="AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco",
    ),
    OdinwSet(name="Aquarium", folder="Aquarium/Aquarium Combined.v2-raw-1024.coco"),
    OdinwSet(name="BCCD", folder="BCCD/BCCD.v3-raw.coco"),
    _exported("boggleBoards", "boggleBoards/416x416AutoOrient/export"),
    OdinwSet(name="brackishUnderwater", folder="brackishUnderwater/960x540"),
    OdinwSet(name="ChessPieces", folder="ChessPieces/Chess Pieces.v23-raw.coco", prompts=_renamed(*_CHESS)),
    OdinwSet(name="CottontailRabbits", folder="CottontailRabbits", prompts=_renamed("rabbit")),
    _exported("dice", "dice/mediumColor/export"),
    OdinwSet(name="DroneControl", folder="DroneControl/Drone Control.v3-raw.coco"),
    OdinwSet(name="EgoHands_generic", folder="EgoHands/generic", prompts={1: ClassPrompt("", "hand", " of a person")}),
    OdinwSet(name="EgoHands_specific", folder="EgoHands/specific"),
    OdinwSet(name="HardHatWorkers", folder="HardHatWorkers/raw"),
    OdinwSet(name="MaskWearing", folder="MaskWearing/raw"),
    OdinwSet(name="MountainDewCommercial", folder="MountainDewCommercial"),
    OdinwSet(name="NorthAmericaMushrooms", folder=_MUSHROOMS, prompts=_renamed("flat mushroom", "yellow mushroom")),
    OdinwSet(name="openPoetryVision", folder="openPoetryVision/512x512"),
    OdinwSet(name="OxfordPets_by_breed", folder="OxfordPets/by-breed"),
    OdinwSet(name="OxfordPets_by_species", folder="OxfordPets/by-species"),
    OdinwSet(name="PKLot", folder="PKLot/640"),
    OdinwSet(
        name="Packages",
        folder="Packages/Raw",
        prompts={1: ClassPrompt("there is a ", "package", " on the porch")},
    ),
    OdinwSet(name="PascalVOC", folder="PascalVOC"),
    _exported("pistols", "pistols/export"),
    OdinwSet(name="plantdoc", folder="plantdoc/416x416"),
    OdinwSet(name="pothole", folder="pothole", prompts={1: _POTHOLE}),
    OdinwSet(name="Raccoon", folder="Raccoon/Raccoon.v2-raw.coco"),
    _exported("selfdrivingCar", "selfdrivingCar/fixedLarge/export"),
    OdinwSet(name="ShellfishOpenImages", folder="ShellfishOpenImages/raw"),
    OdinwSet(name="ThermalCheetah", folder="ThermalCheetah"),
    OdinwSet(name="thermalDogsAndPeople", folder="thermalDogsAndPeople"),
    OdinwSet(name="UnoCards", folder="UnoCards/raw"),
    OdinwSet(name="VehiclesOpenImages", folder="VehiclesOpenImages/416x416"),
    OdinwSet(name="WildfireSmoke", folder="WildfireSmoke"),
    OdinwSet(name="websiteScreenshots", folder="websiteScreenshots"),
)
"""The 35 sets (Li et al. 2022, ELEVATER, arXiv 2204.08790), with the prompts of GLIP and mmdetection."""

_NAMES_13 = (
    "AerialMaritimeDrone_large", "Aquarium", "CottontailRabbits", "EgoHands_generic", "NorthAmericaMushrooms",
    "Packages", "PascalVOC", "pistols", "pothole", "Raccoon", "ShellfishOpenImages", "thermalDogsAndPeople",
    "VehiclesOpenImages",
)  # fmt: skip
_BY_NAME = {each.name: each for each in ODINW_35} | {
    "pothole": replace(next(each for each in ODINW_35 if each.name == "pothole"), prompts={})
}

ODINW_13 = tuple(_BY_NAME[name] for name in _NAMES_13)
"""The 13 sets of GLIP (Li et al. 2022, arXiv 2112.03857); potholes are asked for by their plain name there, as in
mmdetection's published numbers."""


def odinw_mean(scores: Mapping[str, float], sets: Sequence[OdinwSet] = ODINW_13, *, partial: bool = False) -> float:
    """The mean AP of a benchmark from the AP of its sets, in [0, 1].

    Args:
        scores: name of a set to its AP.
        sets: `ODINW_13` or `ODINW_35`.
        partial: take the mean of the sets that are there, with a warning that names the others.

    Raises:
        ValueError: a set without a score (or with -1, COCO's nothing to measure) unless `partial`, no score at all, a
            score outside [0, 1], or one of a set that is not among `sets`; the message names the sets.
    """
    names = [each.name for each in sets]
    if unknown := [name for name in scores if name not in names]:
        raise ValueError(f"no sets of this benchmark of {len(names)}: {', '.join(unknown)}")
    measured = {name: scores[name] for name in names if scores.get(name, NOTHING_TO_MEASURE) != NOTHING_TO_MEASURE}
    if outside := [f"{name} {score}" for name, score in measured.items() if not 0 <= score <= 1]:
        raise ValueError(f"AP is in [0, 1], not {', '.join(outside)}")
    if missing := [name for name in names if name not in measured]:
        message = f"{len(missing)} of {len(names)} sets of ODinW have no score: {', '.join(missing)}"
        if not partial or not measured:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
    return float(np.mean(list(measured.values())))
