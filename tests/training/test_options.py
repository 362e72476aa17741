"""Recipes are read with every mistake named, and come back as they were written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from hf_grounding_dino.data.records import SourceEntry
from hf_grounding_dino.training.options import OptionError, build, set_options
from hf_grounding_dino.training.recipe import as_yaml, read_recipe
from hf_grounding_dino.training.recipes import recipe_names, recipe_summary

from .runs import write_recipe


@dataclass(frozen=True)
class Inner:
    """Inside."""

    depth: int = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """Outside."""

    rate: float
    kind: Literal["a", "b"] = "a"
    wheels: int | None = None
    targets: str | tuple[str, ...] = "all"
    size: tuple[int, int] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    on: bool = False


def test_plain_values_become_dataclasses() -> None:
    """YAML 1.1 reads 1e-4 as a string; an int is a float where a float belongs, but a bool is no int."""
    values = yaml.safe_load(
        "{rate: 1e-4, kind: b, wheels: 4, size: [3, 4], inner: {names: [x]}, many: [{depth: 2}, {}], targets: [q, k]}"
    )
    expected = Outer(1e-4, "b", 4, ("q", "k"), (3, 4), Inner(names=("x",)), (Inner(2), Inner()))
    assert build(Outer, values) == expected
    assert build(Outer, {"rate": 1}).rate == 1.0
    assert build(Outer, {"rate": 1, "targets": "re"}).targets == "re"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the option rate is missing"),
        ({"rat": 1}, "unknown option rat; did you mean rate?"),
        ({"rate": 1, "inner": {"dept": 1}}, "unknown option inner.dept; did you mean depth?"),
        ({"rate": 1, "many": [{}, {"zzz": 1}]}, "unknown option many.1.zzz"),
        ({"rate": "fast"}, "rate is 'fast', where float belongs"),
        ({"rate": True}, "rate is True, where float belongs"),
        ({"rate": 1, "wheels": True}, "wheels is True, where int belongs"),
        ({"rate": 1, "wheels": 1.5}, "wheels is 1.5, where int belongs"),
        ({"rate": 1, "kind": "c"}, "kind is 'c', not one of a, b"),
        ({"rate": 1, "size": [1]}, "size has 1 values, not 2"),
        ({"rate": 1, "many": "x"}, "many is 'x', where a list belongs"),
        ({"rate": 1, "inner": 3}, "inner is 3, where names and values belong"),
        ({"rate": 1, "on": 1}, "on is 1, where bool belongs"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(Outer, values)
    assert str(caught.value) == message


def test_nested_values_are_set() -> None:
    values = {"train": [{"annotations": "a"}], "rate": 1}
    changed = set_options(
        values, ["train.0.annotations=x=y.json", "train.1.weight=0.5", "rate=null", "inner.names=[p, q]"]
    )
    assert changed == {
        "train": [{"annotations": "x=y.json"}, {"weight": 0.5}], "rate": None, "inner": {"names": ["p", "q"]},
    }  # fmt: skip
    assert values == {"train": [{"annotations": "a"}], "rate": 1}


@pytest.mark.parametrize(
    "assignment", ["train", "=3", "train.x=3", "train.5.weight=1", "rate.x=1", "rate=[", "train.0.annotations.x=1"]
)
def test_assignments_that_lead_nowhere_are_refused(assignment: str) -> None:
    with pytest.raises(OptionError, match="--set"):
        set_options({"train": [{"annotations": "a"}], "rate": 1}, [assignment])


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package_can_be_read(name: str, tmp_path: Path) -> None:
    """And written and read again; each says in its first line what it is for."""
    recipe = read_recipe(name)
    assert recipe_summary(name).endswith(".")
    (tmp_path / "again.yaml").write_text(as_yaml(recipe))
    assert read_recipe(str(tmp_path / "again.yaml")) == recipe


def test_the_recipe_of_a_file(tmp_path: Path) -> None:
    recipe = read_recipe(str(write_recipe(tmp_path)), ["train.0.weight=2", "learning_rate=1e-3"])
    assert isinstance(recipe.train[0], SourceEntry) and recipe.train[0].weight == 2.0
    assert recipe.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("max_steps=null", "give max_steps or epochs"),
        ("epochs=3", "give max_steps or epochs"),
        ("train=[]", "train is empty"),
        ("batch_size=0", "batch_size is 0"),
        ("interpolation=2", "interpolation is 2.0"),
        ("average_decay=1", "average_decay is 1.0"),
        ("schedule=step", "give milestones"),
        ("precision=int8", "precision is 'int8', not one of float32, bfloat16, float16"),
        ("prompts.negatives=-1", "negatives"),
        *((f"{name}={value}", rf"{name} is (nan|-?inf), where a finite number belongs")
          for name in ("learning_rate", "epochs", "average_decay", "gamma", "train.0.weight", "denoising.box_noise")
          for value in (".nan", ".inf", "-.inf", "nan", "1e999")),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_are_refused(tmp_path: Path, assignment: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_recipe(str(write_recipe(tmp_path)), [assignment])


def test_a_recipe_of_python_takes_no_nan(tmp_path: Path) -> None:
    recipe = read_recipe(str(write_recipe(tmp_path)))
    for name in ("learning_rate", "weight_decay", "max_grad_norm", "interpolation", "average_decay", "text_multiplier"):
        with pytest.raises(OptionError, match=f"^{name} is nan"):
            dataclasses.replace(recipe, **{name: math.nan})


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no recipe finetune; there are .*finetune_small"):
        read_recipe("finetune")
    with pytest.raises(OptionError, match="No such file"):
        read_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(OptionError, match=r"bad\.yaml"):
        read_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(OptionError, match="names and values"):
        read_recipe(str(tmp_path / "list.yaml"))
