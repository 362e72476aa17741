"""The recipes of published runs hold the arithmetic that their heads tell, and begin as these say."""

from __future__ import annotations

import re
import textwrap
from fractions import Fraction
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import BertConfig, SwinConfig

import hf_grounding_dino
from hf_grounding_dino.data.readers import FORMATS
from hf_grounding_dino.data.shapes import VOCABULARY
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.training.optim import learning_rate_schedule
from hf_grounding_dino.training.recipe import read_recipe
from hf_grounding_dino.training.recipes import recipe_names
from hf_grounding_dino.training.train_state import load_model

OF_OUR_OWN = {"shapes", "nano", "nano_places", "finetune_small", "lora_one_gpu"}
# Epochs [drops], images an epoch, images a step.
PUBLISHED = {
    "pretrain_t_o365": "30 [19, 26], 608606, 128",
    "pretrain_t_o365_goldg": "30 [19, 26], about 608606 + 149000 + 620000, 128",
    "pretrain_t_o365_goldg_grit": "30 [19, 26], about 608606 + 149000 + 620000 + 500000, 128",
    "pretrain_t_o365_goldg_v3det": "30 [19, 26], about 608606 + 149000 + 620000 + 180000, 128",
    "pretrain_t_o365_goldg_grit_v3det": "30 [19, 26], about 608606 + 149000 + 620000 + 180000 + 500000, 128",
    "coco_closed_set": "12 [8, 11], 118287, 64",
    "coco_open_set": "12 [8, 11], 118287, 64",
    "coco_ov_48_17": "12 [8, 11], 107761, 64",
    "lvis": "12 [11], about 100000, 64",
    "lvis_866_337": "12 [8, 11], about 100000, 64",
    "refcoco": "5 [3], about 120000, 32",
    "refcoco_plus": "5 [3], about 120000, 32",
    "refcocog": "5 [3], about 80000, 32",
    "grefcoco": "5 [3], about 190000, 32",
    "odinw": "12 [11], 448, 32",
}
# Learning rate, multipliers of backbone and text encoder, most names that are absent (None: captions, "all": a closed
# set), chance of a flip: recipe of MM-Grounding-DINO (arXiv 2401.02361) and its configurations in mmdetection.
RATES: dict[str, tuple[float, float, float, int | str | None, float]] = {
    **{name: (4e-4, 0.1, 0.1, 85, 0.5) for name in PUBLISHED if name.startswith("pretrain_")},
    "coco_closed_set": (2e-4, 0.1, 0.1, "all", 0.5),
    "coco_open_set": (5e-5, 0.1, 0.0, 20, 0.5),
    "coco_ov_48_17": (5e-5, 0.1, 0.1, "all", 0.5),
    "lvis": (2e-4, 0.1, 0.1, 85, 0.5),
    "lvis_866_337": (5e-5, 0.1, 0.1, 85, 0.5),
    **{name: (2e-4, 0.1, 0.1, None, 0.0) for name in ("refcoco", "refcoco_plus", "refcocog", "grefcoco")},
    "odinw": (1e-4, 0.1, 0.1, "all", 0.5),
}
START = "pretrain_t_o365"


class Plan(NamedTuple):
    """A row of the table."""

    epochs: int
    drops: list[int]
    is_rounded: bool
    images: int
    batch: int

    def steps(self, epochs: int) -> int:
        """Epochs as steps, halves up."""
        return int(Fraction(epochs * self.images, self.batch) + Fraction(1, 2))


def plan_of(name: str) -> Plan:
    found = re.fullmatch(r"(\d+) \[([\d, ]+)\], (about )?([\d +]+), (\d+)", PUBLISHED[name])
    assert found is not None
    epochs, drops, about, images, batch = found.groups()
    total = sum(int(part) for part in images.split("+"))
    return Plan(int(epochs), [int(drop) for drop in drops.split(",")], about is not None, total, int(batch))


def head_of(name: str) -> str:
    """The comment before the options, without its signs."""
    text = (resources.files("hf_grounding_dino.training.recipes") / f"{name}.yaml").read_text()
    lines = text.split("\nmodel:")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def command_of(name: str) -> str:
    """The first command of a head, in one line."""
    head = head_of(name).replace("\\\n", " ")
    line = next(line for line in head.splitlines() if line.startswith(("accelerate launch", "hf-grounding-dino train")))
    return " ".join(line.split())


def code_of(name: str) -> str:
    """The Python in a head: what is indented, and goes on no command."""
    lines = head_of(name).replace("\\\n", " ").splitlines()
    return textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    ")))


def test_every_recipe_is_known() -> None:
    """A new recipe needs a row of the table, or belongs to those that repeat no published run."""
    assert set(recipe_names()) == PUBLISHED.keys() | OF_OUR_OWN
    assert PUBLISHED.keys() == RATES.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_are_epochs_of_images(name: str) -> None:
    """12 epochs of 118,287 images at 64 a step are 22178.8 steps, so 22,179; a drop after 8 comes at 14,786.

    A step is shared by the processes of the command, as 128 images are 32 processes with 4; and 8 processes, or 1, have
    equal parts of it. The schedule can be built.
    """
    recipe, plan = read_recipe(name), plan_of(name)
    assert recipe.batch_size == plan.batch
    assert recipe.max_steps == plan.steps(plan.epochs)
    assert list(recipe.milestones) == [plan.steps(drop) for drop in plan.drops]
    if name == "coco_closed_set":
        assert (recipe.max_steps, recipe.milestones) == (22179, (14786, 20331))
    about = "about " if plan.is_rounded else ""
    told = f"Steps: {plan.epochs} epochs {plan.drops} × {about}{plan.images:,} images ÷ {plan.batch}"
    assert f"{told} = {recipe.max_steps:,} {list(recipe.milestones)}." in head_of(name)
    processes = int(re.findall(r"--num_processes (\d+)", command_of(name))[0])
    assert recipe.batch_size == processes * (recipe.micro_batch_size or 0)
    assert recipe.batch_size % 8 == 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    learning_rate_schedule(
        optimizer, recipe.schedule, recipe.max_steps, warmup_steps=recipe.warmup_steps, milestones=recipe.milestones
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_rates_prompts_and_rules_are_the_published_ones(name: str) -> None:
    """Of mmdetection: steps of 0.1, gradients clipped at 0.1, decay on vectors too, denoising, no average."""
    recipe = read_recipe(name)
    negatives: int | str | None = "all" if recipe.prompts.all_labels else recipe.prompts.negatives
    if all(entry.format == "mdetr" for entry in recipe.train):
        negatives = None
    assert recipe.augmentation is not None
    rates = (recipe.learning_rate, recipe.backbone_lr_mult, recipe.text_lr_mult)
    assert (*rates, negatives, recipe.augmentation.flip) == RATES[name]
    assert (recipe.schedule, recipe.gamma, recipe.max_grad_norm) == ("step", 0.1, 0.1)
    assert (recipe.weight_decay, recipe.decay_vectors, recipe.ema_decay) == (1e-4, True, None)
    assert recipe.denoising is not None and recipe.denoising.queries == 100
    assert recipe.gradient_checkpointing and recipe.precision == "float32" and recipe.interpolation == 1
    assert recipe.warmup_steps == (1000 if name.startswith("pretrain_") else 0)
    for entry in recipe.train:
        assert entry.epoch_size == (500000 if "grit" in entry.annotations else None) and entry.weight == 1


@pytest.mark.parametrize("name", [*PUBLISHED, "lora_one_gpu"])
def test_heads_say_how_and_what_to_expect(name: str) -> None:
    """The command is for this recipe, what it sets can be set, and the score is not claimed as ours."""
    recipe, head, command = read_recipe(name), head_of(name), command_of(name)
    assert re.search(rf"train {name}( |$)", command)
    assert "expected" in head.lower() and "not run by us" in head and "Hardware:" in head
    assert recipe.model and recipe.output_dir and recipe.eval
    assert {entry.format for entry in (*recipe.train, *recipe.eval)} <= set(FORMATS)
    assignments = re.findall(r"--set (\S+=\S+)", command)
    assert assignments
    read_recipe(name, assignments)


def tiny_swin(name: str, **options: Any) -> transformers.SwinBackbone:
    assert name == "microsoft/swin-tiny-patch4-window7-224"
    sizes: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
    return transformers.SwinBackbone(SwinConfig(window_size=4, **sizes, **options))


def tiny_bert(name: str, **options: Any) -> transformers.BertModel:
    assert name == "google-bert/bert-base-uncased"
    config = BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config, **options)


def test_pre_training_begins_as_its_head_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of the head, with small Swin, BERT and sizes, leaves a folder that `train` begins from.

    The image and the text encoder are those that were read; heads are apart, as MM-Grounding-DINO's.
    """
    code = code_of(START)
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = partial(hf_grounding_dino.MMGroundingDinoConfig, **small, num_queries=20)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.setattr(transformers.SwinBackbone, "from_pretrained", tiny_swin)
        patch.setattr(transformers.AutoModel, "from_pretrained", tiny_bert)
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _: build_tokenizer(VOCABULARY))
        patch.setattr(hf_grounding_dino, "MMGroundingDinoConfig", config, raising=False)
        exec(compile(code, START, "exec"), names)
    assert read_recipe(START).model == "start_t"
    model, _ = load_model("start_t")
    for part, read in (
        (model.model.backbone.conv_encoder.model, names["swin"]),
        (model.model.text_backbone, names["bert"]),
    ):
        expected = read.state_dict()
        assert part.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in part.state_dict().items())
    assert model.config.model_type == "mm-grounding-dino"
    assert (model.config.dropout, model.config.fusion_dropout, model.config.fusion_droppath) == (0.0, 0.1, 0.0)
    assert model.config.backbone_config.drop_path_rate == 0.2
    assert model.bbox_embed[0] is not model.bbox_embed[1]
