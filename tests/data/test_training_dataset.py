"""Items and steps of training: the same whoever loads them, with what cannot be read replaced and listed."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_grounding_dino.data.augmentation import Augmentation, AugmentationSettings
from hf_grounding_dino.data.collate import GroundingCollator
from hf_grounding_dino.data.records import DataError, Record, SourceEntry
from hf_grounding_dino.data.sampling import BatchSampler, Sample
from hf_grounding_dino.data.shapes import VOCABULARY, ShapesDataset
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.data.training_dataset import Skipped, StepBatch, TrainingDataset, training_batches
from hf_grounding_dino.data.training_prompts import PromptSampler, PromptSettings
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from listed_records import ListedRecords

NAMES = ("red circle", "blue square", "green triangle", "red square")
TOKENIZER = build_tokenizer(VOCABULARY)


class Stream:
    """Records that can only be read from the beginning."""

    name, label_names, category_ids, findings = "stream", NAMES, (), ()

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.begun = 0

    def __iter__(self) -> Iterator[Record]:
        self.begun += 1
        return iter(self.records)

    def shard(self, index: int, count: int) -> Stream:
        return Stream(self.records[index::count])


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def detection_record(index: int, image: Any = None, boxes: Sequence[Sequence[float]] = ((4, 4, 20, 24),)) -> Record:
    """An image whose red channel is its number, with boxes of the label of that number."""
    size = (48, 40) if index % 3 else (40, 48)
    image = png(Image.new("RGB", size, (index, 9, 9))) if image is None else image
    labels = torch.full((len(boxes),), index % len(NAMES))
    return Record(image_id=index, image=image, boxes=torch.tensor(boxes), labels=labels, size=size)


def detection_source(length: int, **images: Any) -> ListedRecords:
    """`images`: images of single records, as `at_3=...`."""
    records = [detection_record(i, images.get(f"at_{i}")) for i in range(length)]
    return ListedRecords(name="signs", records=records, label_names=NAMES)


def shapes_source(length: int) -> ListedRecords:
    items = [ShapesDataset(length, seed=8, task="caption", size=(80, 64))[i] for i in range(length)]
    records = [
        Record(
            image_id=item["image_id"],
            image=png(item["image"]),
            boxes=item["boxes"],
            caption=str(item["text"]),
            spans=tuple(tuple(spans) for spans in item["spans"]),
            size=(80, 64),
        )
        for item in items
    ]
    return ListedRecords(name="captions", records=records)


def make_set(*sources: Any, augmentation: Any = None) -> TrainingDataset:
    settings = PromptSettings(negatives=2)
    return TrainingDataset(sources, [PromptSampler(s.label_names, TOKENIZER, settings) for s in sources], augmentation)


def make_plan(dataset: TrainingDataset, sources: Sequence[Any], batch_size: int = 4) -> BatchSampler:
    entry = SourceEntry(format="coco", annotations="a.json", epoch_size=7)
    return BatchSampler(sources, [entry] * len(sources), batch_size=batch_size, seed=2)


def steps(sources: Sequence[Any], **options: Any) -> list[StepBatch]:
    size = {"shortest_edge": 32, "longest_edge": 64}
    collate = GroundingCollator(GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), TOKENIZER))
    dataset = make_set(*sources, augmentation=options.pop("augmentation", None))
    batch_size = options.pop("batch_size", 4)
    defaults = {"first_step": 0, "max_steps": 6, "rank": 0, "world": 1, "micro_batch_size": 2, "num_workers": 0}
    plan = make_plan(dataset, sources, batch_size)
    return list(training_batches(plan, dataset, collate, **(defaults | options)))


def contents(step: StepBatch) -> list[tuple[Any, ...]]:
    """All that a step trains on, comparable by ==, an image each."""
    found = []
    for batch in step.micro_batches:
        for i, label in enumerate(batch["labels"]):
            words = label.get("class_labels", label.get("token_mask"))
            mask = batch["pixel_mask"][i].bool()
            found.append(
                (
                    label["image_id"],
                    label["noise_seed"],
                    label["boxes"].tolist(),
                    words.nonzero().tolist() if words.ndim == 2 else words.tolist(),
                    batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist(),
                    batch["pixel_values"][i][:, mask].tolist(),
                )
            )
    return found


# --- one item ----------------------------------------------------------------------------------------------------


def test_an_item_says_where_its_words_are() -> None:
    """Record 5 has one box of label 1, "blue square", in a 48 x 40 image."""
    item = make_set(detection_source(8))[Sample(0, 5, 77)]
    assert item["image_id"] == 5 and item["noise_seed"] == 77 and item["skipped"] == []
    assert item["image"].size == (48, 40) and item["image"].getpixel((0, 0)) == (5, 9, 9)
    assert [item["text"][i] for i in item["class_labels"]] == ["blue square"]
    assert item["boxes"].tolist() == [[4, 4, 20, 24]]
    captions = shapes_source(2)
    item = make_set(captions)[Sample(0, 1, 0)]
    assert item["text"] == captions[1].caption and "class_labels" not in item
    assert item["spans"] == [list(spans) for spans in captions[1].spans or ()]


def test_an_item_depends_on_its_sample_alone() -> None:
    """Equal samples are equal items, whatever the global generators do; over 20 seeds the prompts differ."""
    dataset = make_set(detection_source(3))
    before = dataset[Sample(0, 1, 3)]
    for module in (torch, np.random, random):
        (getattr(module, "manual_seed", None) or module.seed)(1234)
    assert dataset[Sample(0, 1, 3)]["text"] == before["text"]
    assert len({tuple(dataset[Sample(0, 1, seed)]["text"]) for seed in range(20)}) > 5


def test_boxes_are_clipped_to_the_pixels_not_to_the_size_in_the_file() -> None:
    """The image is 30 x 20, the file says 48 x 40: a box ends at 30, one beyond and one of no height are dropped."""
    boxes = [[4.0, 4, 40, 18], [31, 2, 40, 10], [2, 20, 9, 30]]
    record = detection_record(1, Image.new("RGB", (30, 20)), boxes)
    item = make_set(ListedRecords(name="a", records=[record], label_names=NAMES))[Sample(0, 0, 0)]
    assert item["boxes"].tolist() == [[4, 4, 30, 18]]
    assert len(item["class_labels"]) == 1


# --- images that cannot be read --------------------------------------------------------------------------------


def test_the_next_record_stands_in_for_an_unreadable_image(tmp_path: Path) -> None:
    """Records 3 (no such file) and 4 (not an image) of 6 are skipped for 5; from 5, if that fails, it goes on at 0."""
    missing = tmp_path / "missing.png"
    item = make_set(detection_source(6, at_3=missing, at_4=b"hello"))[Sample(0, 3, 9)]
    assert item["image_id"] == 5 and item["noise_seed"] == 9
    assert item["skipped"] == [
        Skipped(str(missing), "there is no such file"),
        Skipped("signs, image 4", "it is not an image"),
    ]
    assert make_set(detection_source(6, at_5=b""))[Sample(0, 5, 9)]["image_id"] == 0


def test_a_data_set_without_readable_images_is_an_error(tmp_path: Path) -> None:
    """Of 150 records 100 are tried, of 2 both."""
    broken = {f"at_{i}": tmp_path / f"{i}.png" for i in range(150)}
    with pytest.raises(DataError, match=r"^100 images in a row .* the first is .*120\.png: there is no such file$"):
        make_set(detection_source(150, **broken))[Sample(0, 120, 0)]
    with pytest.raises(DataError, match=r"^2 images in a row"):
        make_set(detection_source(2, **broken))[Sample(0, 0, 0)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_that_error_is_one_line_from_a_worker_too(num_workers: int, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        steps([detection_source(1, at_0=tmp_path / "no.png")], num_workers=num_workers)
    assert str(caught.value).startswith("1 images in a row cannot be read, the first is ")
    assert "\n" not in str(caught.value)


def test_a_step_lists_what_was_skipped() -> None:
    """One of 7 images is broken and an epoch takes each once: in 7 steps of 4, 28 drawings, it is listed 4 times."""
    found = steps([detection_source(7, at_2=b"broken")], max_steps=7, num_workers=1)
    assert [one for step in found for one in step.skipped] == [Skipped("signs, image 2", "it is not an image")] * 4
    assert all("skipped" not in batch for step in found for batch in step.micro_batches)


# --- steps -------------------------------------------------------------------------------------------------------


def test_workers_give_what_this_process_gives() -> None:
    """And the global random state is left alone."""
    sources = [detection_source(9), shapes_source(3)]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    expected = [contents(step) for step in steps(sources, augmentation=Augmentation(SMALL))]
    again = steps(sources, num_workers=2, augmentation=Augmentation(SMALL))
    assert [contents(step) for step in again] == expected
    assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]


def test_a_copy_for_another_process_gives_the_same() -> None:
    """What a spawned worker gets is pickled: a set with a stream that is half read, and an augmentation."""
    stream = Stream([detection_record(i) for i in range(5)])
    dataset = make_set(detection_source(5), stream, augmentation=Augmentation(SMALL))
    samples = [Sample(source, 3, 6) for source in range(2)]
    before = [dataset[sample] for sample in samples]
    copy = pickle.loads(pickle.dumps(dataset))
    for item, again in zip(before, [copy[sample] for sample in samples], strict=True):
        assert item["text"] == again["text"] and item["image"].tobytes() == again["image"].tobytes()


def test_two_ranks_train_on_what_one_does() -> None:
    """Batches of 6 by at most 2 are 3 forwards; of 3 for each of two ranks, 2 of 1 and 2."""
    sources = [detection_source(9), shapes_source(3)]
    one = steps(sources, batch_size=6)
    two = [steps(sources, batch_size=6, rank=rank, world=2) for rank in range(2)]
    assert [len(step.micro_batches) for step in one] == [3] * 6
    boxes = [len(label["boxes"]) for batch in one[0].micro_batches for label in batch["labels"]]
    assert one[0].num_boxes == sum(boxes)
    for whole, first, second in zip(one, *two, strict=True):
        assert len(first.micro_batches) == len(second.micro_batches) == 2
        assert contents(first) + contents(second) == contents(whole)
        assert first.num_boxes + second.num_boxes == whole.num_boxes


def test_going_on_at_a_step_is_running_through() -> None:
    sources = [detection_source(9), shapes_source(3)]
    through = [contents(step) for step in steps(sources)]
    assert [contents(step) for step in steps(sources, first_step=4)] == through[4:]
    assert steps(sources, first_step=6) == []


def test_what_cannot_be_divided_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="4 images cannot be divided among 3"):
        steps([detection_source(5)], world=3)
    with pytest.raises(ValueError, match="1 prompt samplers for 2 data sets"):
        TrainingDataset([detection_source(1)] * 2, [PromptSampler(NAMES, TOKENIZER, PromptSettings())])


# --- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_workers", "world"), [(0, 1), (2, 2)])
def test_a_stream_gives_the_same_after_a_stop(num_workers: int, world: int) -> None:
    """7 of 8 streamed records and 7 of 9 listed ones an epoch; one streamed image is broken."""
    records = [detection_record(i, b"broken" if i == 3 else None) for i in range(8)]
    sources, options = [Stream(records), detection_source(9)], {"num_workers": num_workers, "world": world}
    through = [contents(step) for step in steps(sources, **options)]
    assert [contents(step) for step in steps(sources, first_step=3, **options)] == through[3:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_is_divided_among_ranks_and_workers(num_workers: int) -> None:
    """Each of 2 or 4 readers has a part of 24 records, and all together each record once in 6 steps of 4."""
    stream = Stream([detection_record(i) for i in range(24)])
    seen = []
    for rank in range(2):
        ran = steps([stream], rank=rank, world=2, num_workers=num_workers, max_steps=6)
        seen += [image[0] for step in ran for image in contents(step)]
    assert sorted(seen) == list(range(24))
    assert stream.begun == 0, "nobody reads what is not its own"


def test_reading_ahead_for_a_replacement_does_not_begin_a_stream_again() -> None:
    """Records 1 and 2 of 6 are broken: samples 0 to 4 give 0, 3, 3, 3, 4 in one reading."""
    stream = Stream([detection_record(i, b"broken" if i in (1, 2) else None) for i in range(6)])
    dataset = make_set(stream)
    assert [dataset[Sample(0, i, i)]["image_id"] for i in range(5)] == [0, 3, 3, 3, 4]
    assert stream.begun == 1


# --- augmentation ------------------------------------------------------------------------------------------------


SMALL = AugmentationSettings().scaled(64, 96)


def test_augmented_boxes_keep_their_words() -> None:
    """A high image, red above and blue below, flipped and cropped: each box's middle has the color of its label."""
    image = Image.new("RGB", (30, 120), (255, 0, 0))
    image.paste((0, 0, 255), (0, 60, 30, 120))
    boxes = torch.tensor([[0.0, 0, 30, 60], [0, 60, 30, 120]])
    labels, spans = torch.tensor([0, 1]), (((2, 12),), ((20, 31),))
    halves = Record(image_id=0, image=image, boxes=boxes, labels=labels)
    caption = Record(image_id=0, image=image, boxes=boxes, caption="a red circle over a blue square", spans=spans)
    dataset = make_set(
        ListedRecords(name="halves", records=[halves], label_names=NAMES),
        ListedRecords(name="captions", records=[caption]),
        augmentation=Augmentation(SMALL),
    )
    seen = []
    for sample in [Sample(source, 0, seed) for source in range(2) for seed in range(12)]:
        item = dataset[sample]
        text = item["text"]
        words = item.get("class_labels", item.get("spans"))
        names = [text[word] if sample.source == 0 else text[word[0][0] : word[0][1]] for word in words]
        assert len(names) == len(item["boxes"])
        for name, (left, top, right, bottom) in zip(names, item["boxes"].tolist(), strict=True):
            red, _, blue = item["image"].getpixel((int(left + right) // 2, int(top + bottom) // 2))
            assert (red > blue) == ("red" in name)
        seen.append(tuple(names))
    assert {("red circle",), ("blue square",), ("red circle", "blue square")} <= set(seen)


def test_a_label_whose_boxes_are_cropped_away_is_asked_for_all_the_same() -> None:
    """A box in a corner is lost in some of 30 crops; "red circle" is in the prompt each time."""
    record = detection_record(0, Image.new("RGB", (96, 96)), [[0.0, 0, 6, 6]])
    source = ListedRecords(name="a", records=[record], label_names=NAMES)
    items = [make_set(source, augmentation=Augmentation(SMALL))[Sample(0, 0, seed)] for seed in range(30)]
    assert all("red circle" in item["text"] for item in items)
    assert {len(item["class_labels"]) for item in items} == {0, 1}


def test_an_image_is_not_flipped_where_its_prompt_names_a_side() -> None:
    """A set with the label "left square": the box, left in the image, is left in all of 12 items."""
    names = ("left square",)
    tokenizer = build_tokenizer((*VOCABULARY, "left"))
    record = detection_record(0, Image.new("RGB", (64, 64)), [[0.0, 20, 6, 40]])
    source = ListedRecords(name="a", records=[record], label_names=names)
    settings = replace(SMALL, flip=1.0, crop=0.0)
    sampler = PromptSampler(names, tokenizer, PromptSettings())
    dataset = TrainingDataset([source], [sampler], Augmentation(settings))
    assert {float(dataset[Sample(0, 0, seed)]["boxes"][0, 0]) for seed in range(12)} == {0.0}
