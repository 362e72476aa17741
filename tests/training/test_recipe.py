"""Recipes are read with every mistake named, and come back as they were written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from hf_grounding_dino.data.records import SourceEntry
from hf_grounding_dino.training.recipe import OLD_NAMES, Recipe, as_yaml, read_recipe
from hf_grounding_dino.training.recipes import OptionError, recipe_names, recipe_summary

MINIMAL = {"model": "nano", "output_dir": "run", "train": [{"annotations": "a.json"}], "max_steps": 4}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(MINIMAL))
    return str(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package_are_read_and_written(name: str, tmp_path: Path) -> None:
    """Each says in its first line what it is for."""
    recipe = read_recipe(name)
    assert recipe_summary(name).endswith(".")
    (tmp_path / "again.yaml").write_text(as_yaml(recipe))
    assert read_recipe(str(tmp_path / "again.yaml")) == recipe


def test_options_are_set(recipe: str) -> None:
    """YAML 1.1 reads 1e-4 as text; an int is a float where one belongs; lists grow by one."""
    changes = ["learning_rate=1e-4", "gamma=1", "train.0.annotations=x=y.json", "train.1.annotations=b",
               "train.1.weight=5.e-1", "prompts.negatives=3", "lora.targets=[q, k]", "augmentation=null"]  # fmt: skip
    read = read_recipe(recipe, changes)
    assert (read.learning_rate, read.gamma, read.augmentation) == (1e-4, 1.0, None)
    assert read.train == (SourceEntry(annotations="x=y.json"), SourceEntry(annotations="b", weight=0.5))
    assert read.prompts.negatives == 3 and read.lora is not None and read.lora.targets == ("q", "k")


def test_old_names_of_options_still_work(tmp_path: Path, recipe: str) -> None:
    values = {
        "pictures_at_once": 2, "average_decay": 0.5, "backbone_multiplier": 0.2, "text_multiplier": 0.3,
        "keep": [{"annotations": "b.json"}], "pictures_every": 7, "evaluate_pictures": 9,
    }  # fmt: skip
    assert values.keys() == OLD_NAMES.keys()
    new = {OLD_NAMES[name]: value for name, value in values.items()}
    for name, content in (("old", MINIMAL | values), ("new", MINIMAL | new)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    old = read_recipe(str(tmp_path / "old.yaml"))
    assert old == read_recipe(str(tmp_path / "new.yaml"))
    assert old == read_recipe(recipe, [f"{name}={yaml.safe_dump(value).strip()}" for name, value in values.items()
                                       if name != "keep"] + ["keep.0.annotations=b.json"])  # fmt: skip
    assert not set(yaml.safe_load(as_yaml(old))) & set(OLD_NAMES)
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(MINIMAL | {"average_decay": 0.5, "ema_decay": 0.6}))
    with pytest.raises(OptionError, match="average_decay is the old name of ema_decay: give one of them"):
        read_recipe(str(tmp_path / "both.yaml"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rat=1", "unknown option learning_rat; did you mean learning_rate?"),
        ("train.0.anotations=x", "unknown option train.0.anotations; did you mean annotations?"),
        ("denoising.querys=1", "unknown option denoising.querys; did you mean queries?"),
        ("lora={rnk: 1}", "unknown option lora.rnk; did you mean rank?"),
        ("zzz=1", "unknown option zzz"),
        ("eval=[{}]", "the option eval.0.annotations is missing"),
        ("batch_size=many", "batch_size is 'many': it should be a valid integer"),
        ("batch_size=true", "batch_size is True: it should be a valid integer"),
        ("batch_size=1.5", "batch_size is 1.5: it should be a valid integer"),
        ("batch_size=0", "batch_size is 0: it should be greater than 0"),
        ("learning_rate=fast", "learning_rate is 'fast': it should be a valid number"),
        ("decay_vectors=1", "decay_vectors is 1: it should be a valid boolean"),
        ("precision=int8", "precision is 'int8': it should be 'float32', 'bfloat16' or 'float16'"),
        ("freeze=backbone", "freeze is 'backbone': it should be a valid list"),
        ("denoising=3", "denoising is 3: it should be a mapping"),
        ("interpolation=2", "interpolation is 2: it should be less than or equal to 1"),
        ("ema_decay=1", "ema_decay is 1: it should be less than 1"),
        ("max_grad_norm=-1", "max_grad_norm is -1: it should be greater than or equal to 0"),
        ("num_workers=2000", "num_workers is 2000: it should be less than or equal to 1024"),
        ("prompts.negatives=-1", "prompts: negatives is at least 0, not -1"),
        ("augmentation.flip=2", "augmentation: flip is in [0, 1], not 2.0"),
        ("max_steps=null", "give max_steps or epochs, one of them"),
        ("epochs=3", "give max_steps or epochs, one of them"),
        ("train=[]", "train is empty: name at least one dataset"),
        ("schedule=step", "schedule is step: give milestones"),
        *((f"{name}={value}", f"{name} is {float(value.replace('.', '', 1))}: it should be a finite number")
          for name in ("learning_rate", "epochs", "gamma", "train.0.weight", "denoising.box_noise")
          for value in (".nan", "-.inf", "1.e999")),
        *((assignment, f"--set {assignment}: ") for assignment in
          ("train", "=3", "train.x=3", "train.5.weight=1", "seed.x=1", "train.0.annotations.x=1")),
        ("seed=[", "--set seed: the value is no YAML"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_the_option(recipe: str, assignment: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_recipe(recipe, ["seed=1", assignment])
    assert str(caught.value).startswith(f"{recipe}: {message}") and "\n" not in str(caught.value)


def test_a_recipe_of_python_takes_no_nan() -> None:
    for name in ("learning_rate", "max_grad_norm", "interpolation", "ema_decay", "text_lr_mult"):
        with pytest.raises(ValueError, match=name):
            Recipe(**MINIMAL | {"train": (SourceEntry(annotations="a"),), name: math.nan})


def test_every_option_is_described() -> None:
    assert all(field.description for field in Recipe.model_fields.values())


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no recipe finetune; there are .*finetune_small"):
        read_recipe("finetune")
    for content, message in ((None, "No such file"), ("a: [", r"x\.yaml: "), ("- a", "names and values")):
        if content is not None:
            (tmp_path / "x.yaml").write_text(content)
        with pytest.raises(OptionError, match=message):
            read_recipe(str(tmp_path / "x.yaml"))
