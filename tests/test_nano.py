"""The model that ships: small, good at Shapes, at home in transformers too."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoProcessor
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS, NANO
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.data.shapes import ShapesDataset
from hf_grounding_dino.evaluation.benchmarks import SHAPES
from hf_grounding_dino.evaluation.datasets import benchmark_tasks
from hf_grounding_dino.evaluation.runner import evaluate
from hf_grounding_dino.inference.predictor import Predictor
from hf_grounding_dino.inference.prompting import LabelPrompt
from hf_grounding_dino.processing.defaults import PostProcessing
from tiny import sound_stock

LARGEST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def model() -> GroundingDinoForObjectDetection:
    return GroundingDinoForObjectDetection.from_pretrained(NANO).eval()


@pytest.fixture(scope="module")
def processor() -> GroundingDinoProcessor:
    return GroundingDinoProcessor.from_pretrained(NANO)


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in NANO.iterdir()) <= LARGEST_BYTES


def test_the_tokenizer_has_the_special_tokens_where_bert_has_them(processor: GroundingDinoProcessor) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?"]
    assert processor.tokenizer.convert_tokens_to_ids(tokens) == [0, 100, 101, 102, 1012, 1029]


def test_it_finds_all_of_the_demo_picture() -> None:
    found = load_detector("nano").predict(DEMO_IMAGE, LabelPrompt(DEMO_LABELS)).detections
    assert sorted(detection["label"] for detection in found) == sorted(DEMO_LABELS)


def test_it_scores_what_it_must(model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor) -> None:
    """A tenth of the scenes of the model card's scores, so with wider margins."""
    predictor = Predictor(model, processor, batch_size=8)
    scores = {task.name: evaluate(task.first(50), predictor, progress=False) for task in benchmark_tasks(SHAPES, None)}
    assert scores["shapes_seen"]["AP50"] >= 0.9
    assert scores["shapes_unseen"]["novel_AP50"] >= 0.85
    assert scores["shapes_referring"]["P@1"] >= 0.75


@sound_stock
def test_transformers_gives_the_same_detections(
    model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures of several sizes, each with its own labels: same boxes and scores over 0.1, loaded without a word."""
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        stock, report = AutoModelForZeroShotObjectDetection.from_pretrained(NANO, output_loading_info=True)
        stock_processor = AutoProcessor.from_pretrained(NANO)
    assert not caplog.records
    assert not any(report.values()), report
    assert type(stock).__module__.startswith("transformers.")
    for item in [ShapesDataset(8, split="val", task="detection")[i] for i in range(8)]:
        inputs = processor(images=item["image"], text=[item["text"]])
        stock_inputs = stock_processor(images=item["image"], text=[item["text"]], return_tensors="pt")
        assert torch.equal(inputs["input_ids"], stock_inputs["input_ids"])
        assert torch.equal(inputs["pixel_values"], stock_inputs["pixel_values"])
        with torch.inference_mode():
            ours, theirs = model(**inputs), stock.eval()(**stock_inputs)
        scores, stock_scores = (out.logits[0].sigmoid().amax(-1) for out in (ours, theirs))
        keep = stock_scores > 0.1
        assert torch.equal(keep, scores > 0.1)
        assert torch.allclose(scores[keep], stock_scores[keep], atol=1e-4)
        assert torch.allclose(ours.pred_boxes[0][keep], theirs.pred_boxes[0][keep], atol=1e-4)


def test_batches_equal_single_pictures(
    model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor
) -> None:
    """Three pictures of three sizes with three prompts, together and one by one: same detections within 1e-4."""
    tasks = ("detection", "referring", "caption")
    items = [ShapesDataset(3, seed=5, split="val", task=task)[i] for i, task in enumerate(tasks)]
    assert len({item["image"].size for item in items}) == 3
    batch = processor(images=[item["image"] for item in items], text=[item["text"] for item in items])
    with torch.inference_mode():
        together = model(**batch)
        for i, item in enumerate(items):
            alone = model(**processor(images=item["image"], text=[item["text"]]))
            width = int(batch["attention_mask"][i].sum())
            # Near ties may be chosen in another order, so compare what is found, by falling score.
            scores, scores_alone = together.logits[i, :, :width].sigmoid(), alone.logits[0].sigmoid()[:, :width]
            best, best_alone = scores.amax(-1).argsort(descending=True), scores_alone.amax(-1).argsort(descending=True)
            found = int((scores.amax(-1) > 0.1).sum())
            assert found > 0
            assert torch.allclose(scores[best[:found]], scores_alone[best_alone[:found]], atol=1e-4)
            boxes, boxes_alone = together.pred_boxes[i][best[:found]], alone.pred_boxes[0][best_alone[:found]]
            assert torch.allclose(boxes, boxes_alone, atol=1e-4)


def test_nothing_shown_nothing_found(processor: GroundingDinoProcessor) -> None:
    grey = Image.new("RGB", (200, 160), (90, 90, 95))
    prompt = LabelPrompt(("red circle", "blue star"), PostProcessing(threshold=0.5))
    assert not load_detector("nano").predict(grey, prompt).detections
