"""The comparison of losses is fair: equal starts, equal data, one evaluation; and its report says what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from hf_grounding_dino import MMGroundingDinoForObjectDetection
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.training import comparison
from hf_grounding_dino.training.comparison import (
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
from hf_grounding_dino.training.comparison_report import Mean, command, means, plot, steps_until, table, write_report
from tiny import sound_stock

SETTINGS = ComparisonSettings(steps=2, seeds=1, every=1, pictures=2, batch_size=3, side=80, denoising_queries=8)
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
        load, evaluate = comparison.load_variant, comparison.evaluate_records

        def loaded(variant: str, *arguments: Any) -> nn.Module:
            self.current, model = variant, load(variant, *arguments)
            self.starts[variant], self.models[variant] = copied(model), model
            model.register_forward_pre_hook(self._see, with_kwargs=True)
            return model

        def evaluated(model: nn.Module, processor: Any, records: Any) -> dict[str, float]:
            pictures = [records[i].image.tobytes() for i in range(len(records))]
            self.measured.append((self.current, type(model), copied(model), pictures))
            assert torch.equal(*(weights_of_one_layer(m) for m in (model, self.models[self.current])))
            return evaluate(model, processor, records)

        monkeypatch.setattr(comparison, "load_variant", loaded)
        monkeypatch.setattr(comparison, "evaluate_records", evaluated)
        self.trials = compare(SETTINGS, output)

    def _see(self, model: nn.Module, arguments: Any, inputs: dict[str, Any]) -> None:
        assert model.training
        self.batches[self.current].append(inputs)


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def weights_of_one_layer(model: nn.Module) -> torch.Tensor:
    return model.get_parameter(LAYER)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield Watched(tmp_path_factory.mktemp("comparison"), patch)


@sound_stock
def test_all_begin_with_the_same_weights(watched: Watched) -> None:
    """The variant with denoising has its label table besides."""
    stock, ours, denoised = (watched.starts[variant] for variant in VARIANTS)
    assert stock.keys() == ours.keys() == denoised.keys() - {TABLE}
    assert all(torch.equal(stock[name], other[name]) for name in stock for other in (ours, denoised))


def test_all_see_the_same_batches(watched: Watched) -> None:
    """Two steps of three pictures each, prompts and labels too, and the second step has other pictures."""
    stock, *others = (watched.batches[variant] for variant in VARIANTS)
    assert [len(batch["pixel_values"]) for batch in stock] == [3, 3]
    assert not torch.equal(stock[0]["pixel_values"], stock[1]["pixel_values"])
    for batches in others:
        torch.testing.assert_close(batches, stock, rtol=0, atol=0)


def test_nothing_is_padded(watched: Watched) -> None:
    """Targets relative to the padded canvas, as transformers takes them, are then those of the picture."""
    assert all(batch["pixel_mask"].all() for batch in watched.batches[STOCK])


def test_transformers_reads_the_labels_as_ours_does(watched: Watched) -> None:
    """A label of a prompt of n phrases is below n, where transformers' map of the prompt has n rows."""
    for batch in watched.batches[STOCK]:
        dots = (batch["input_ids"] == 1012).sum(1).tolist()
        assert all((label["class_labels"] < n).all() for label, n in zip(batch["labels"], dots, strict=True))
        assert any(len(label["boxes"]) for label in batch["labels"])


def test_all_are_measured_by_the_same_evaluation(watched: Watched) -> None:
    """After each of the two steps, in the class of this package, with the trained weights, on the same pictures."""
    assert [variant for variant, *_ in watched.measured] == [variant for variant in VARIANTS for _ in range(2)]
    assert {kind for _, kind, *_ in watched.measured} == {MMGroundingDinoForObjectDetection}
    assert all(pictures == watched.measured[0][3] for *_, pictures in watched.measured)
    for variant, _, weights, _ in watched.measured:
        assert not torch.equal(weights[LAYER], watched.starts[variant][LAYER])


def test_each_is_trained_by_its_own_loss(watched: Watched) -> None:
    """That of transformers gives the first stage's box head nothing; in ours it learns, and the label table too."""
    head = "model.encoder_output_bbox_embed.layers.2.weight"
    learnt = {v: not torch.equal(watched.models[v].state_dict()[head], watched.starts[v][head]) for v in VARIANTS}
    assert learnt == {STOCK: False, OURS: True, DENOISED: True}
    assert type(watched.models[STOCK]) is transformers.MMGroundingDinoForObjectDetection
    assert watched.models[STOCK].config.auxiliary_loss
    assert not torch.equal(watched.models[DENOISED].state_dict()[TABLE], watched.starts[DENOISED][TABLE])


def test_a_start_is_of_its_seed(tmp_path: Path) -> None:
    starts = [write_start(tmp_path / str(i), SETTINGS, seed) for i, seed in enumerate((0, 0, 1))]
    first, again, other = (weights_of_one_layer(load_variant(OURS, start, SETTINGS, 0)) for start in starts)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_closed_prompts_are_all_alike(tmp_path: Path) -> None:
    """56 labels of two words and a dot, between [CLS] and [SEP]: 170 tokens."""
    settings = dataclasses.replace(SETTINGS, closed=True)
    processor = GroundingDinoProcessor.from_pretrained(write_start(tmp_path, settings, 0))
    batches = list(training_data(settings, processor, 0))
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert ids.shape == (2 * 3, 170)
    assert (ids == ids[0]).all()


# --- going on ----------------------------------------------------------------------------------------------------


def measured(variant: str, seed: int, *aps: float, seconds: float = 1.0) -> Trial:
    """AP after steps 1, 2, ..."""
    return Trial(variant, seed, [Score(step, ap, ap) for step, ap in enumerate(aps, start=1)], seconds)


def test_what_is_finished_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two finished runs and one that was stopped after its first evaluation, that one begins anew."""
    write_trials(
        tmp_path, SETTINGS, [measured(STOCK, 0, 0.1, 0.2), measured(OURS, 0, 0.3), measured(DENOISED, 0, 0.4, 0.5)]
    )
    begun = []
    load = comparison.load_variant
    monkeypatch.setattr(
        comparison, "load_variant", lambda variant, *rest: (begun.append(variant), load(variant, *rest))[1]
    )
    trials = {trial.variant: trial for trial in compare(SETTINGS, tmp_path)}
    assert begun == [OURS]
    assert trials[STOCK] == measured(STOCK, 0, 0.1, 0.2)
    assert [score.step for score in trials[OURS].scores] == [1, 2]
    kept = json.loads((tmp_path / "comparison.json").read_text())["trials"]
    assert sorted((trial["variant"], len(trial["scores"])) for trial in kept) == [(v, 2) for v in sorted(VARIANTS)]


def test_each_evaluation_is_on_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its second evaluation, a run leaves its first; its results come after those of the variant before."""

    class StoppedError(Exception):
        pass

    write_trials(tmp_path, SETTINGS, [measured(STOCK, 0, 0.1, 0.2)])
    scores = iter([(0.25, 0.5)])

    def one_score(*arguments: Any) -> tuple[float, float]:
        try:
            return next(scores)
        except StopIteration:
            raise StoppedError from None

    monkeypatch.setattr(comparison, "measure", one_score)
    with pytest.raises(StoppedError):
        compare(SETTINGS, tmp_path)
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [trial["scores"] for trial in content["trials"]] == [[[1, 0.1, 0.1], [2, 0.2, 0.2]], [[1, 0.25, 0.5]]]


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    write_trials(tmp_path, SETTINGS, [])
    with pytest.raises(ValueError, match=r"comparison.json was made with side=80, not 96"):
        compare(ComparisonSettings(steps=2, seeds=1, every=1, pictures=2, batch_size=3, denoising_queries=8), tmp_path)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="every is 0"):
        ComparisonSettings(every=0)
    with pytest.raises(ValueError, match="side is 64"):
        ComparisonSettings(side=64)


# --- the report --------------------------------------------------------------------------------------------------

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


def test_steps_until_a_level() -> None:
    assert steps_until([(10, 0.1), (20, 0.3), (30, 0.2)], 0.2) == 20
    assert steps_until([(10, 0.1), (20, 0.3)], 0.3) == 20
    assert steps_until([(10, 0.1)], 0.2) is None


def test_the_table_says_how_soon_ours_is_there() -> None:
    """Transformers' loss ends with 0.2 and 0.3, 0.25 in the mean; ours has, in the mean, 0.1, 0.2, 0.3, 0.4.

    Seed 0 has 0.2 after 2 steps, seed 1 0.4 after 3. Denoising has no run of seed 1, and is above 0.25 after one step.
    12 s in 8 steps are 1.5 s.
    """
    text = table(FOUR_STEPS, TRIALS)
    assert "| 3 | 0.200 (0.100 to 0.300) | 0.300 (0.200 to 0.400) | 0.500 |" in text
    assert "| seconds a step | 1.50 | 0.25 | 0.25 |" in text
    assert "| seed 0, AP 0.200 | 2 (0.50) | 1 (0.25) |" in text
    assert "| seed 1, AP 0.300 | 3 (0.75) |  |" in text
    assert "| means, AP 0.250 | 3 (0.75) | 1 (0.25) |" in text


def test_the_command_makes_the_same_comparison() -> None:
    settings = ComparisonSettings(batch_size=3, closed=True)
    assert command(settings) == "python scripts/compare_losses.py --batch-size 3 --closed"
    assert command(ComparisonSettings()) == "python scripts/compare_losses.py"


def test_the_table_says_what_was_not_reached() -> None:
    text = table(FOUR_STEPS, [TRIALS[0], measured(OURS, 0, 0.0, 0.0, 0.0, 0.1)])
    assert "| seed 0, AP 0.200 | not reached |  |" in text


def test_the_plot_shows_every_variant(tmp_path: Path) -> None:
    """A dot's colour for each; without the third variant its colour is not there."""
    grey, blue, orange = (120, 120, 120), (0, 114, 178), (213, 94, 0)
    write_report(tmp_path, FOUR_STEPS, TRIALS)
    assert (tmp_path / "comparison.md").read_text() == table(FOUR_STEPS, TRIALS)
    assert (tmp_path / "comparison.png").stat().st_size > 0
    whole, part = (
        {color for _, color in image.getcolors(image.width * image.height) or []}
        for image in (plot(TRIALS), plot(TRIALS[:-1]))
    )
    assert {grey, blue, orange} <= whole
    assert {grey, blue} <= part and orange not in part


def test_nothing_measured_is_no_plot() -> None:
    with pytest.raises(ValueError, match="no score"):
        plot([Trial(OURS, 0, [])])
