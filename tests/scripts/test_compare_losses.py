"""The comparison of losses is fair: equal starts, equal data, one evaluation; and its report says what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import loss_comparison
import pytest
import torch
import transformers
from compare_losses import Mean, means, plot, steps_until, table
from loss_comparison import (
    DENOISED,
    OURS,
    STOCK,
    VARIANTS,
    ComparisonSettings,
    Score,
    Trial,
    compare,
    load_variant,
    training_data,
    write_start,
    write_trials,
)
from PIL import Image
from torch import nn

from hf_grounding_dino import MMGroundingDinoForObjectDetection
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from tiny import sound_stock

SETTINGS = ComparisonSettings(steps=2, seeds=1, every=1, images=2, batch_size=3, side=80, denoising_queries=8)
TABLE = "denoising.label_embedding.weight"
LAYER = "model.decoder.layers.0.fc1.weight"


class Watched:
    """A comparison of two steps whose models, inputs and evaluations are written down."""

    def __init__(self, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starts: dict[str, dict[str, torch.Tensor]] = {}
        self.models: dict[str, nn.Module] = {}
        self.batches: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        self.measured: list[tuple[str, type, dict[str, torch.Tensor], list[bytes]]] = []
        self.current = ""
        load, evaluate = loss_comparison.load_variant, loss_comparison.evaluate_records

        def loaded(variant: str, *arguments: Any) -> nn.Module:
            self.current, model = variant, load(variant, *arguments)
            self.starts[variant], self.models[variant] = copied(model), model
            model.register_forward_pre_hook(self._see, with_kwargs=True)
            return model

        def evaluated(model: nn.Module, processor: Any, records: Any) -> dict[str, float]:
            images = [records[i].image.tobytes() for i in range(len(records))]
            self.measured.append((self.current, type(model), copied(model), images))
            assert torch.equal(model.get_parameter(LAYER), self.models[self.current].get_parameter(LAYER))
            return evaluate(model, processor, records)

        monkeypatch.setattr(loss_comparison, "load_variant", loaded)
        monkeypatch.setattr(loss_comparison, "evaluate_records", evaluated)
        self.trials = compare(SETTINGS, output)

    def _see(self, model: nn.Module, arguments: Any, inputs: dict[str, Any]) -> None:
        assert model.training
        self.batches[self.current].append(inputs)


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield Watched(tmp_path_factory.mktemp("comparison"), patch)


@sound_stock
def test_all_begin_with_the_same_weights_and_learn_by_their_own_loss(watched: Watched, tmp_path: Path) -> None:
    """The variant with denoising has its label table besides. A start is of its seed.

    The loss of transformers gives the box head of the encoder's proposals nothing; in ours it learns.
    """
    stock, ours, denoised = (watched.starts[variant] for variant in VARIANTS)
    assert stock.keys() == ours.keys() == denoised.keys() - {TABLE}
    assert all(torch.equal(stock[name], other[name]) for name in stock for other in (ours, denoised))
    other = load_variant(OURS, write_start(tmp_path, SETTINGS, 1), SETTINGS, 1)
    assert not torch.equal(other.get_parameter(LAYER), ours[LAYER])
    head = "model.encoder_output_bbox_embed.layers.2.weight"
    learnt = {v: not torch.equal(watched.models[v].state_dict()[head], watched.starts[v][head]) for v in VARIANTS}
    assert learnt == {STOCK: False, OURS: True, DENOISED: True}
    assert type(watched.models[STOCK]) is transformers.MMGroundingDinoForObjectDetection
    assert watched.models[STOCK].config.auxiliary_loss
    assert not torch.equal(watched.models[DENOISED].state_dict()[TABLE], denoised[TABLE])


def test_all_see_the_same_batches_as_transformers_reads_them(watched: Watched) -> None:
    """Two steps of three images each, prompts and labels too, and the second step has other images.

    Nothing is padded, as transformers takes targets relative to the padded canvas; and a label of a prompt of n phrases
    is below n, where transformers' map of the prompt has n rows.
    """
    stock, *others = (watched.batches[variant] for variant in VARIANTS)
    assert [len(batch["pixel_values"]) for batch in stock] == [3, 3]
    assert not torch.equal(stock[0]["pixel_values"], stock[1]["pixel_values"])
    for batches in others:
        torch.testing.assert_close(batches, stock, rtol=0, atol=0)
    for batch in stock:
        assert batch["pixel_mask"].all()
        dots = (batch["input_ids"] == 1012).sum(1).tolist()
        assert all((label["class_labels"] < n).all() for label, n in zip(batch["labels"], dots, strict=True))
        assert any(len(label["boxes"]) for label in batch["labels"])


def test_all_are_measured_by_the_same_evaluation(watched: Watched) -> None:
    """After each of the two steps, in the class of this package, with the trained weights, on the same images."""
    assert [variant for variant, *_ in watched.measured] == [variant for variant in VARIANTS for _ in range(2)]
    assert {kind for _, kind, *_ in watched.measured} == {MMGroundingDinoForObjectDetection}
    assert all(images == watched.measured[0][3] for *_, images in watched.measured)
    for variant, _, weights, _ in watched.measured:
        assert not torch.equal(weights[LAYER], watched.starts[variant][LAYER])


def test_closed_prompts_are_all_alike(tmp_path: Path) -> None:
    """56 labels of two words and a dot, between [CLS] and [SEP]: 170 tokens."""
    settings = dataclasses.replace(SETTINGS, closed=True)
    processor = GroundingDinoProcessor.from_pretrained(write_start(tmp_path, settings, 0))
    ids = torch.cat([batch["input_ids"] for batch in training_data(settings, processor, 0)])
    assert ids.shape == (2 * 3, 170)
    assert (ids == ids[0]).all()


def measured(variant: str, seed: int, *aps: float, seconds: float = 1.0) -> Trial:
    """AP after steps 1, 2, ..."""
    return Trial(variant, seed, [Score(step, ap, ap) for step, ap in enumerate(aps, start=1)], seconds)


def test_what_is_finished_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two finished runs and one that was stopped after its first evaluation, that one begins anew.

    Each evaluation is on disk at once, and results of other settings are refused.
    """
    write_trials(
        tmp_path, SETTINGS, [measured(STOCK, 0, 0.1, 0.2), measured(OURS, 0, 0.3), measured(DENOISED, 0, 0.4, 0.5)]
    )
    on_disk = []

    def measure(*_: Any) -> tuple[float, float]:
        on_disk.append(
            [len(trial["scores"]) for trial in json.loads((tmp_path / "comparison.json").read_text())["trials"]]
        )
        return 0.25, 0.5

    monkeypatch.setattr(loss_comparison, "measure", measure)
    trials = {trial.variant: trial for trial in compare(SETTINGS, tmp_path)}
    assert on_disk == [[2, 1, 2], [2, 2, 1]]
    assert trials[STOCK] == measured(STOCK, 0, 0.1, 0.2)
    assert trials[OURS].scores == [Score(1, 0.25, 0.5), Score(2, 0.25, 0.5)]
    with pytest.raises(ValueError, match=r"comparison.json was made with side=80, not 96"):
        compare(dataclasses.replace(SETTINGS, side=96), tmp_path)


FOUR_STEPS = ComparisonSettings(steps=4, seeds=2, every=1)
TRIALS = [
    measured(STOCK, 0, 0.0, 0.1, 0.1, 0.2, seconds=4.0),
    measured(STOCK, 1, 0.0, 0.1, 0.3, 0.3, seconds=8.0),
    measured(OURS, 0, 0.1, 0.2, 0.2, 0.4),
    measured(OURS, 1, 0.1, 0.2, 0.4, 0.4),
    measured(DENOISED, 0, 0.3, 0.4, 0.5, 0.6),
]


def test_means_are_of_the_steps_that_all_seeds_reached() -> None:
    """Seed 1 was stopped after step 1, where the seeds have 0.2 and 0.4."""
    assert means([measured(OURS, 0, 0.2, 0.8), measured(OURS, 1, 0.4)], OURS) == [Mean(1, pytest.approx(0.3), 0.2, 0.4)]
    assert means([], OURS) == []
    assert steps_until([(10, 0.1), (20, 0.3), (30, 0.2)], 0.2) == 20
    assert steps_until([(10, 0.1)], 0.2) is None


def test_the_table_says_how_soon_ours_is_there() -> None:
    """Transformers' loss ends with 0.2 and 0.3, 0.25 in the mean; ours has, in the mean, 0.1, 0.2, 0.3, 0.4.

    Seed 0 has 0.2 after 2 steps, seed 1 0.4 after 3. Denoising has no run of seed 1, and is above 0.25 after one step.
    12 s in 8 steps are 1.5 s.
    """
    text = table(FOUR_STEPS, TRIALS)
    assert "`python scripts/compare_losses.py --steps 4 --seeds 2 --every 1`" in text
    assert "| 3 | 0.200 (0.100 to 0.300) | 0.300 (0.200 to 0.400) | 0.500 |" in text
    assert "| seconds a step | 1.50 | 0.25 | 0.25 |" in text
    assert "| seed 0, AP 0.200 | 2 (0.50) | 1 (0.25) |" in text
    assert "| seed 1, AP 0.300 | 3 (0.75) |  |" in text
    assert "| means, AP 0.250 | 3 (0.75) | 1 (0.25) |" in text
    text = table(FOUR_STEPS, [TRIALS[0], measured(OURS, 0, 0.0, 0.0, 0.0, 0.1)])
    assert "| seed 0, AP 0.200 | not reached |  |" in text


def test_the_plot_is_an_image(tmp_path: Path) -> None:
    plot(TRIALS, tmp_path / "comparison.png")
    Image.open(tmp_path / "comparison.png").verify()
    with pytest.raises(ValueError, match="no score"):
        plot([Trial(OURS, 0, [])], tmp_path / "none.png")
