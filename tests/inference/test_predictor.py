"""The engine: batches of like shape, what is read ahead, memory that does not suffice, and the order of the answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from annotation.fake_annotation import FakePredictor, prepare
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.inference.large_vocabulary import Chunking, detect
from hf_grounding_dino.inference.predictor import Predictor, Request, Shard
from hf_grounding_dino.inference.prompting import CaptionPrompt, LabelPrompt, PhrasePrompt, ReferringPrompt, prompt_of
from hf_grounding_dino.processing.defaults import PostProcessing
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from tiny import tiny_model

PROMPT = LabelPrompt(("cat",))


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def requests(count: int) -> list[Request]:
    """Of four shapes in turn."""
    sizes = ((9, 6), (6, 9), (8, 8), (12, 5))
    return [Request(i, image(*sizes[i % 4]), PROMPT) for i in range(count)]


def ids(predictions: Any) -> list[Any]:
    return [one.request.id for one in predictions]


def test_batches_are_of_like_shape() -> None:
    """32 images of 4 shapes, 8 of each: 8 batches of 4, each of one shape."""
    predictor = FakePredictor()
    assert sorted(ids(predictor.run(requests(32)))) == list(range(32))
    assert len(predictor.batches) == 8 and all(len(sizes) == 1 for sizes in predictor.batches)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_come_in_order_where_asked(batch_size: int) -> None:
    """One at a time they come so anyway; an image that cannot be read is in its place."""
    items: list[Any] = requests(40)
    items[5] = Request(5, Path("none.png"), PROMPT)
    found = list(FakePredictor(batch_size=batch_size).run(items, in_order=batch_size > 1, keep_images=True))
    assert ids(found) == list(range(40))
    assert [one.problem for one in found if one.problem] == ["there is no such file"]
    assert all((one.image is None) == (one.request.id == 5) for one in found)


def test_a_problem_of_a_source_is_that_of_its_image_alone() -> None:
    def gone() -> Any:
        raise OSError("the drive is away")

    made = [lambda: Request(0, gone, PROMPT), lambda: Request(1, lambda: image(8, 8), PROMPT)]
    assert [one.problem for one in FakePredictor().run(made, in_order=True)] == ["the drive is away", None]


def test_what_is_not_wanted_takes_its_place_in_the_batches() -> None:
    """Eight of one shape, of which the last two are wanted: the second batch of four runs whole, the first does not."""
    items = [Request(i, image(8, 8), PROMPT, wanted=i >= 6) for i in range(8)]
    predictor = FakePredictor()
    assert ids(predictor.run(items)) == [6, 7]
    assert len(predictor.batches) == 1


def test_not_many_images_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two windows of 32 have been asked for before their answers are given."""
    begun = 0

    def endless() -> Any:
        nonlocal begun
        for request in requests(200):
            begun += 1
            yield request

    ahead = [begun - done for done, _ in enumerate(FakePredictor().run(endless()))]
    assert max(ahead) <= 64 + 4


class Cramped(FakePredictor):
    """Has memory for so many images at a time."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__()
        self.room, self.error, self.counts = room, error, []

    def _find(self, batch: Any) -> Any:
        if len(batch) > self.room:
            raise self.error
        self.counts.append(len(batch))
        return super()._find(batch)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_is_halved_where_memory_does_not_suffice(error: Exception) -> None:
    """Of 10 images in batches of 4, 4 and 2, with room for 2: five batches of 2."""
    predictor = Cramped(2, error)
    assert sorted(ids(predictor.run(requests(10)))) == list(range(10))
    assert predictor.counts == [2] * 5
    with pytest.raises(type(error)):
        list(Cramped(0, error).run(requests(10)))


def test_an_error_that_is_not_of_memory_is_not_tried_again() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        list(Cramped(2, RuntimeError("broken")).run(requests(10)))


@pytest.mark.parametrize("count", [0, 1, 32, 33, 100])
def test_shards_hold_each_item_once(count: int) -> None:
    for shards in (1, 3):
        parts = [Shard(i, shards).windows(range(count)) for i in range(shards)]
        assert sorted(i for part in parts for window in part for i in window) == list(range(count))
        assert [window[0] for window in parts[-1]] == list(range(32 * (shards - 1), count, 32 * shards))


def test_numbers_out_of_range() -> None:
    processor: Any = SimpleNamespace(image_processor=prepare)
    for options in ({"batch_size": 0}, {"readers": 0}, {"window": 0}):
        with pytest.raises(ValueError, match="give 1 or more"):
            Predictor(torch.nn.Identity(), processor, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no shard 4/3: from 1/3 to 3/3"):
        Shard(3, 3)
    for labels, caption in ((None, None), (["cat"], "a cat")):
        with pytest.raises(ValueError, match="either labels or a caption"):
            prompt_of(labels, caption)
    for options in ({"threshold": 2}, {"nms": -1}, {"thresholds": {"cat": float("nan")}}, {"top_k": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options)).rstrip('s')}.* is "):
            PostProcessing(**options)


# --- with a model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    size = {"shortest_edge": 80, "longest_edge": 133}
    tokenizer = build_tokenizer(["cat", "dog", "bird", "a", "the", "and"])
    return tiny_model().eval(), GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer)


PROMPTS = [
    LabelPrompt(("cat", "dog"), PostProcessing(threshold=0.0, top_k=7)),
    CaptionPrompt("a cat and a dog", PostProcessing(threshold=0.0, nms=0.5)),
    PhrasePrompt("a cat and a dog", (((2, 5),), ((12, 15),)), top_k=9),
    ReferringPrompt("the cat", top_k=3),
    LabelPrompt(()),
]


def test_every_kind_of_prompt_in_one_batch_as_alone(parts: tuple[Any, Any], tmp_path: Path) -> None:
    """Two images, each asked by all kinds: an image is read and encoded once, and the answers are those of one."""
    model, processor = parts
    for i, size in enumerate(((60, 40), (40, 60))):
        image(*size, seed=i).save(tmp_path / f"{i}.png")
    asked = [Request((i, n), tmp_path / f"{i}.png", prompt) for i in range(2) for n, prompt in enumerate(PROMPTS)]
    encoded = []
    encode = model.encode_image
    model.encode_image = lambda pixels, mask: encoded.append(len(pixels)) or encode(pixels, mask)
    try:
        together = {one.request.id: one for one in Predictor(model, processor, batch_size=10).run(asked)}
        assert encoded == [2]
        one_by_one = {one.request.id: one for one in Predictor(model, processor).run(asked)}
        assert encoded == [2, 1, 1]
    finally:
        del model.encode_image
    assert [len(together[0, n].found["scores"]) for n in (0, 2, 3, 4)] == [7, 9, 3, 0]
    for key, one in together.items():
        other = one_by_one[key]
        assert one.size == other.size
        assert one.found["text_labels"] == other.found["text_labels"]
        for name in ("scores", "boxes"):
            torch.testing.assert_close(one.found[name], other.found[name], atol=1e-3, rtol=1e-4)


def test_labels_are_found_as_by_detect(parts: tuple[Any, Any]) -> None:
    """Also above thresholds of their own, counted after what overlaps has gone."""
    model, processor = parts
    photo, labels = image(60, 40), ("cat", "dog", "bird")
    post = PostProcessing(threshold=0.0, nms=0.7, top_k=5, thresholds={"dog": 1.0}, chunk_size=2)
    found = Predictor(model, processor).predict(photo, LabelPrompt(labels, post)).found
    options: dict[str, Any] = {"scoring": "max", "top_k": None, "nms_threshold": 0.7}
    (every,) = detect(model, processor, photo, labels, chunking=Chunking(labels=2), **options)
    kept = [i for i, label in enumerate(every["labels"].tolist()) if label != 1][:5]
    assert found["labels"].tolist() == every["labels"][kept].tolist() and 1 not in found["labels"]
    torch.testing.assert_close(found["boxes"], every["boxes"][kept])


def test_a_model_in_training_is_asked_in_eval_mode(parts: tuple[Any, Any]) -> None:
    model, processor = parts
    model.train()
    first = Predictor(model, processor).predict(image(60, 40), PROMPTS[0]).found["scores"]
    assert model.training
    model.eval()
    assert torch.equal(first, Predictor(model, processor).predict(image(60, 40), PROMPTS[0]).found["scores"])
