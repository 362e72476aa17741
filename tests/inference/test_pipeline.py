"""The pipeline: called as that of transformers, one pass for all labels, results in plain numbers and strings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoPipeline, GroundingDinoProcessor
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS, NANO
from hf_grounding_dino.inference.large_vocabulary import chunk_labels

TASK = "zero-shot-object-detection"
LABELS = list(DEMO_LABELS)


@pytest.fixture(scope="module")
def pipe() -> GroundingDinoPipeline:
    model = GroundingDinoForObjectDetection.from_pretrained(NANO)
    processor = GroundingDinoProcessor.from_pretrained(NANO)
    return pipeline(TASK, model=model, processor=processor, pipeline_class=GroundingDinoPipeline, device="cpu")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.open(DEMO_IMAGE).convert("RGB")


@pytest.fixture(scope="module")
def found(pipe: Any, image: Image.Image) -> Any:
    return pipe(image, candidate_labels=LABELS, threshold=0.3)


def same(one: Any, other: Any) -> bool:
    """Equal labels and boxes, scores within 1e-4."""
    boxes = [[(r["label"], *r["box"].values()) for r in rows] for rows in (one, other)]
    scores = [[r["score"] for r in rows] for rows in (one, other)]
    return boxes[0] == boxes[1] and np.allclose(*scores, atol=1e-4)


def test_from_a_folder() -> None:
    """The call of api.md, with nothing registered: this package's classes, though transformers loaded its own."""
    stock = transformers.MMGroundingDinoForObjectDetection.from_pretrained(NANO)
    if (
        stock.bbox_embed[0].layers[0].weight is stock.bbox_embed[1].layers[0].weight
    ):  # an older version that knows no heads of their own
        with pytest.raises(ValueError, match="one box head"):
            pipeline(TASK, model=str(NANO), pipeline_class=GroundingDinoPipeline, device="cpu")
        return
    made = pipeline(TASK, model=str(NANO), pipeline_class=GroundingDinoPipeline, device="cpu")
    assert isinstance(made, GroundingDinoPipeline)
    assert isinstance(made.model, GroundingDinoForObjectDetection) and not made.model.training
    assert isinstance(made.processor, GroundingDinoProcessor)
    expected = GroundingDinoForObjectDetection.from_pretrained(NANO).state_dict()
    state = made.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_it_equals_model_and_processor(pipe: Any, image: Image.Image, found: Any) -> None:
    """By falling score, boxes in whole pixels inside the picture; every shape of the demo picture is found."""
    inputs = pipe.processor(images=image, text=[LABELS])
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    size = [(image.height, image.width)]
    (expected,) = pipe.processor.post_process_grounded_object_detection(outputs, threshold=0.3, target_sizes=size)
    order = expected["scores"].argsort(descending=True)
    assert [r["label"] for r in found] == [expected["text_labels"][i] for i in order.tolist()]
    assert [list(r["box"].values()) for r in found] == expected["boxes"][order].int().tolist()
    assert np.allclose([r["score"] for r in found], expected["scores"][order], atol=1e-5)
    assert {r["label"] for r in found} == set(LABELS)
    for r in found:
        assert 0 <= r["box"]["xmin"] <= r["box"]["xmax"] <= image.width
        assert 0 <= r["box"]["ymin"] <= r["box"]["ymax"] <= image.height


def test_the_result_is_that_of_transformers(found: Any) -> None:
    assert json.loads(json.dumps(found)) == found
    for r in found:
        assert list(r) == ["score", "label", "box"]
        assert list(r["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert type(r["score"]) is float and all(type(side) is int for side in r["box"].values())


class Picture:
    """Every kind of single picture that shows the same."""

    @staticmethod
    def kinds() -> dict[str, Any]:
        image = Image.open(DEMO_IMAGE).convert("RGB")
        array = np.array(image)
        return {
            "PIL": image, "path": DEMO_IMAGE, "path string": str(DEMO_IMAGE), "array": array,
            "tensor": torch.from_numpy(array).permute(2, 0, 1), "bytes": Path(DEMO_IMAGE).read_bytes(),
        }  # fmt: skip


@pytest.mark.parametrize("kind", Picture.kinds())
def test_one_picture_of_any_kind(pipe: Any, found: Any, kind: str) -> None:
    one = Picture.kinds()[kind]
    assert same(pipe(one, candidate_labels=LABELS, threshold=0.3), found)
    (listed,) = pipe([one], candidate_labels=LABELS, threshold=0.3)
    assert same(listed, found)


def test_a_limit_of_time_changes_no_picture(pipe: Any, image: Image.Image, tmp_path: Path) -> None:
    """A picture of 16 bits is read as such, with `timeout` as without."""
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    asked = {"candidate_labels": LABELS, "threshold": 0.01}
    expected = pipe(str(tmp_path / "deep.png"), **asked)
    assert expected
    assert pipe(str(tmp_path / "deep.png"), timeout=5, **asked) == expected


def test_floating_point_in_0_to_1_finds_the_same(pipe: Any, image: Image.Image, found: Any) -> None:
    """Resized without rounding to bytes, so that scores differ a little."""
    got = pipe(np.array(image) / 255, candidate_labels=LABELS, threshold=0.3)
    assert [r["label"] for r in got] == [r["label"] for r in found]
    assert np.allclose([r["score"] for r in got], [r["score"] for r in found], atol=5e-3)


def test_dicts_and_generators(pipe: Any, image: Image.Image, found: Any) -> None:
    """A dict is one picture, a list of dicts a list; a generator is read as its results are asked for."""
    item = {"image": image, "candidate_labels": LABELS}
    assert same(pipe(item, threshold=0.3), found)
    listed = pipe([item, {**item, "candidate_labels": ["red square"]}], threshold=0.3)
    assert same(listed[0], found) and {r["label"] for r in listed[1]} == {"red square"}
    read: list[int] = []

    def pictures() -> Iterator[Any]:
        for i in range(3):
            read.append(i)
            yield item

    stream = pipe(pictures(), threshold=0.3)
    assert same(next(iter(stream)), found)
    assert len(read) < 3
    assert len(list(pipe((image for _ in range(2)), candidate_labels=LABELS, threshold=0.3))) == 2


class Rows(Dataset[Any]):
    """A dataset that knows its length and answers to any index, as torch allows."""

    def __init__(self, row: Any) -> None:
        self.row = row

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        assert index < len(self), "read beyond the end"
        return self.row


def test_a_dataset_ends_where_its_length_says(pipe: Any, image: Image.Image, found: Any) -> None:
    """Pictures or dicts; what is not there is never asked for."""
    item = {"image": image, "candidate_labels": LABELS}
    for results in (pipe(Rows(item), threshold=0.3), pipe(Rows(image), candidate_labels=LABELS, threshold=0.3)):
        rows = list(results)
        assert len(rows) == 2 and all(same(row, found) for row in rows)


def test_labels_in_any_form(pipe: Any, image: Image.Image, found: Any) -> None:
    """A string parted by commas, a tuple, an array, a generator, one list a picture; the argument's older name."""
    assert same(pipe(image, candidate_labels=np.array(LABELS), threshold=0.3), found)
    assert same(pipe([image], candidate_labels=(label for label in LABELS), threshold=0.3)[0], found)
    assert same(pipe(image, candidate_labels=", ".join(LABELS), threshold=0.3), found)
    (comma,) = pipe(image, candidate_labels='"red, square"', threshold=0.3, top_k=1)
    assert comma["label"] == "red, square"
    assert same(pipe(image, candidate_labels=tuple(LABELS), threshold=0.3), found)
    assert same(pipe(image, text_queries=LABELS, threshold=0.3), found)
    two = pipe([image, image], candidate_labels=[LABELS, ["red square"]], threshold=0.3)
    assert same(two[0], found) and {r["label"] for r in two[1]} == {"red square"}


@pytest.mark.parametrize("batch_size", [2, 8])
def test_batches_equal_single_pictures(pipe: Any, image: Image.Image, batch_size: int) -> None:
    """Pictures of unequal sizes with unequal labels, in and out of order."""
    small = image.crop((0, 0, 200, 150))
    items = [
        {"image": image, "candidate_labels": LABELS},
        {"image": small, "candidate_labels": LABELS},
        {"image": image, "candidate_labels": LABELS[:2]},
        {"image": small, "candidate_labels": LABELS},
    ]
    alone = [pipe(item, threshold=0.3) for item in items]
    together = pipe(items, threshold=0.3, batch_size=batch_size)
    assert all(same(one, other) for one, other in zip(together, alone, strict=True))


def count(module: Any) -> tuple[list[int], Any]:
    runs: list[int] = []
    return runs, module.register_forward_hook(lambda *_: runs.append(1))


def test_all_labels_in_one_pass(pipe: Any, image: Image.Image) -> None:
    """8 labels: one run of the network, one of the backbone; the second time no phrase is read anew."""
    counts = [count(module) for module in (pipe.model, pipe.model.model.backbone)]
    pipe(image, candidate_labels=LABELS)
    kept = len(pipe.model.model.text_feature_cache)
    pipe(image, candidate_labels=LABELS)
    for _, hook in counts:
        hook.remove()
    assert [len(runs) for runs, _ in counts] == [2, 2] and len(pipe.model.model.text_feature_cache) == kept > len(
        LABELS
    )


def test_many_labels_share_the_backbone(pipe: Any, image: Image.Image) -> None:
    """150 labels take several prompts, one run of the backbone, and a label of any prompt can win."""
    colours, shapes = ("red", "blue", "cyan", "green", "purple"), ("ring", "star", "cross", "square", "circle")
    labels = [f"{a} {b} {c}" for a in ("small", "big", "very big") for b in colours for c in shapes][:70] + LABELS
    labels = labels + [f"large {label}" for label in labels][:72]
    prompts = len(chunk_labels(labels, pipe.tokenizer))
    assert len(labels) == 150 and prompts > 1
    (runs, hook), (passes, other) = count(pipe.model.model.backbone), count(pipe.model)
    results = pipe(image, candidate_labels=labels, threshold=0.3, chunk_batch=2)
    hook.remove()
    other.remove()
    assert len(runs) == 1 and len(passes) == -(-prompts // 2)
    assert {r["label"] for r in results} <= set(labels) and results
    scores = [r["score"] for r in results]
    assert scores == sorted(scores, reverse=True)


def test_options(pipe: Any, image: Image.Image, found: Any) -> None:
    """`top_k` cuts, a higher threshold gives a subset, `nms` leaves one box of each label here; made or called with."""
    assert pipe(image, candidate_labels=LABELS, threshold=0.3, top_k=3) == found[:3]
    assert pipe(image, candidate_labels=LABELS, threshold=0.5) == [r for r in found if r["score"] > 0.5]
    every = pipe(image, candidate_labels=LABELS, threshold=0.05)
    single = pipe(image, candidate_labels=LABELS, threshold=0.05, nms=0.5)
    assert len(single) < len(every) and all(r in every for r in single)
    assert pipe(image, candidate_labels=LABELS, threshold=1.1) == []
    made = GroundingDinoPipeline(pipe.model, pipe.processor, device="cpu", threshold=0.3, top_k=2)
    assert made(image, candidate_labels=LABELS) == found[:2]
    assert made(image, candidate_labels=LABELS, top_k=None) == found
    with pytest.raises(TypeError, match="no option 'treshold'"):
        pipe(image, candidate_labels=LABELS, treshold=0.3)


def test_what_is_wrong_is_named(pipe: Any, image: Image.Image, tmp_path: Path) -> None:
    for labels in (None, [], ()):
        with pytest.raises(ValueError, match="No labels"):
            pipe(image, candidate_labels=labels)
    with pytest.raises(ValueError, match="an empty label in 'red square,'"):
        pipe(image, candidate_labels="red square,")
    with pytest.raises(ValueError, match="1 lists of candidate_labels for 2 images"):
        pipe([image, image], candidate_labels=[LABELS])
    with pytest.raises(ValueError, match=r"none\.png"):
        pipe(str(tmp_path / "none.png"), candidate_labels=LABELS)
    assert pipe([], candidate_labels=LABELS) == []
    with pytest.raises(ValueError, match=r"Image 1 \(none\.png\) cannot be read"):
        list(pipe(iter([image, "none.png"]), candidate_labels=LABELS))
    with pytest.raises(ValueError, match="'image' and 'candidate_labels'"):
        pipe({"picture": image, "candidate_labels": LABELS})
    for nothing in (None, 5):
        with pytest.raises(ValueError, match="Give an image"):
            pipe(nothing, candidate_labels=LABELS)
    for option in ({"top_k": -1}, {"top_k": 1.5}, {"batch_size": 0}, {"nms": -1}, {"nms": "x"}, {"scoring": "avg"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            pipe(image, candidate_labels=LABELS, **option)


def test_a_photograph_on_its_side_is_seen_upright(pipe: Any, image: Image.Image, found: Any) -> None:
    """In memory too, as in the pipeline of transformers."""
    lying = image.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    assert same(pipe(lying, candidate_labels=LABELS, threshold=0.3), found)


def test_other_models_are_refused() -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.OwlViTConfig(text_config=size, vision_config={**size, "image_size": 32, "patch_size": 16})
    processor = GroundingDinoProcessor.from_pretrained(NANO)
    with pytest.raises(ValueError, match="OwlViTForObjectDetection is not a model for this pipeline"):
        GroundingDinoPipeline(transformers.OwlViTForObjectDetection(config), processor)


def test_saved_it_is_a_repo_of_transformers(pipe: Any, tmp_path: Path) -> None:
    """No custom code is written, so that transformers loads it as its own."""
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "custom_pipelines" not in config and "auto_map" not in config
    assert not list(tmp_path.glob("*.py"))
    assert type(pipeline(TASK, model=str(tmp_path))) is transformers.ZeroShotObjectDetectionPipeline


def test_it_is_saved_though_the_tokenizer_was_told_a_dtype(pipe: Any, tmp_path: Path) -> None:
    """As `pipeline(dtype=...)` tells the processor what it tells the model, which JSON cannot hold."""
    processor = GroundingDinoProcessor.from_pretrained(NANO, dtype=torch.float16)
    assert processor.tokenizer.init_kwargs["dtype"] is torch.float16
    GroundingDinoPipeline(pipe.model, processor, device="cpu").save_pretrained(tmp_path)
    assert "dtype" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
