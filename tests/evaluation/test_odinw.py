"""The table of ODinW, and its mean."""

from __future__ import annotations

import warnings

import pytest

from hf_grounding_dino.evaluation.odinw import ODINW_13, ODINW_35, OdinwSet, odinw_mean

BY_NAME = {each.name: each for each in ODINW_35}


def test_there_are_13_of_35_sets_each_in_a_folder_of_its_own() -> None:
    assert (len(ODINW_13), len(ODINW_35)) == (13, 35)
    assert len(BY_NAME) == 35 and len({each.folder for each in ODINW_35}) == 35
    assert {each.name for each in ODINW_13} < set(BY_NAME)
    assert all((each.folder, each.annotations) == _place(BY_NAME[each.name]) for each in ODINW_13)
    assert not [each.folder for each in ODINW_35 if each.folder.startswith("/") or each.folder.endswith("/")]


def _place(each: OdinwSet) -> tuple[str, str]:
    return each.folder, each.annotations


def test_four_sets_have_annotations_beside_the_pictures() -> None:
    beside = {each.name for each in ODINW_35 if each.images == ""}
    assert beside == {"boggleBoards", "dice", "pistols", "selfdrivingCar"}
    for each in ODINW_35:
        start = "val_" if each.name in beside else "valid/"
        assert each.annotations == f"{start}annotations_without_background.json"
        assert each.images in ("", "valid")


def test_sets_that_have_prompts() -> None:
    assert {each.name: {i: prompt.text for i, prompt in each.prompts.items()} for each in ODINW_13 if each.prompts} == {
        "CottontailRabbits": {1: "rabbit"},
        "EgoHands_generic": {1: "hand of a person"},
        "NorthAmericaMushrooms": {1: "flat mushroom", 2: "yellow mushroom"},
        "Packages": {1: "there is a package on the porch"},
    }
    more = {each.name for each in ODINW_35 if each.prompts} - {each.name for each in ODINW_13 if each.prompts}
    assert more == {"ChessPieces", "pothole"}


def test_the_name_within_a_prompt() -> None:
    """The words before it, with the space, are 15 characters, and the name is 5."""
    prompt = BY_NAME["pothole"].prompts[1]
    assert (prompt.text, prompt.span) == ("there are some holes on the road", (15, 20))
    assert prompt.text[slice(*prompt.span)] == prompt.name


def test_chess_pieces_are_renamed_and_the_first_class_is_not_asked_for() -> None:
    names = [BY_NAME["ChessPieces"].prompts[i].name for i in range(1, 14)]
    assert names[:3] == ["", "black bishop", "black king"] and names[7] == "white bishop" and names[12] == "white rook"


def test_mean() -> None:
    """12 sets of 0.5 and one of 0.24: (6 + 0.24) / 13 = 0.48."""
    scores = {each.name: 0.5 for each in ODINW_13} | {"pistols": 0.24}
    assert odinw_mean(scores) == pytest.approx(0.48)
    assert odinw_mean({each.name: 1.0 for each in ODINW_35}, ODINW_35) == 1.0


def test_a_missing_set_is_named() -> None:
    scores = {each.name: 0.5 for each in ODINW_13}
    del scores["Raccoon"]
    scores["pothole"] = -1.0
    with pytest.raises(ValueError, match="2 of 13 sets of ODinW have no score: pothole, Raccoon"):
        odinw_mean(scores)
    with pytest.warns(UserWarning, match="pothole, Raccoon"):
        assert odinw_mean(scores, partial=True) == 0.5
    with pytest.raises(ValueError, match="13 of 13"):
        odinw_mean({}, partial=True)


def test_a_complete_mean_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odinw_mean({each.name: 0.5 for each in ODINW_13}, partial=True)


def test_scores_that_cannot_be() -> None:
    scores = {each.name: 0.5 for each in ODINW_13}
    with pytest.raises(ValueError, match=r"not pistols 53\.3"):
        odinw_mean(scores | {"pistols": 53.3})
    with pytest.raises(ValueError, match="not pistols nan"):
        odinw_mean(scores | {"pistols": float("nan")})
    with pytest.raises(ValueError, match="benchmark of 13: dice"):
        odinw_mean(scores | {"dice": 0.1})
