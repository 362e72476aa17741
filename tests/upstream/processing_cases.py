"""What transformers tests of every image processor and processor, run on those of this package.

`ImageProcessingTestMixin`, `AnnotationFormatTestMixin` and `ProcessorTesterMixin` come from the source distribution of
transformers: see scripts/upstream_tests.py.
"""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

import torch

from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.tokenizer import build_tokenizer

from ..test_image_processing_common import ImageProcessingTestMixin, prepare_image_inputs
from ..test_processing_common import ProcessorTesterMixin

OPTIONS = {
    "do_resize": True, "size": {"shortest_edge": 18, "longest_edge": 1333}, "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_rescale": True, "rescale_factor": 1 / 255,
    "do_pad": True,
}  # fmt: skip


class ImageTester:
    """Makes options and pictures."""

    batch_size, num_channels, min_resolution, max_resolution = 7, 3, 30, 400
    image_processing_classes: ClassVar[dict[str, Any]] = {"torchvision": GroundingDinoImageProcessor}

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return dict(OPTIONS)

    def get_expected_values(self, image_inputs: Any, batched: bool = False) -> tuple[int, int]:
        """Height and width of what is made: the short side 18, the long one cut; of a batch the largest."""
        sizes = []
        for image in image_inputs:
            if hasattr(image, "size") and not hasattr(image, "shape"):
                width, height = image.size
            else:
                height, width = image.shape[:2] if image.shape[-1] == 3 else image.shape[1:]
            scale = 18 / min(height, width)
            sizes.append((max(18, int(scale * height)), max(18, int(scale * width))))
        return max(height for height, _ in sizes), max(width for _, width in sizes)

    def expected_output_image_shape(self, images: Any) -> tuple[int, int, int]:
        return (self.num_channels, *self.get_expected_values(images, batched=True))

    def prepare_image_inputs(
        self, equal_resolution: bool = False, numpify: bool = False, torchify: bool = False
    ) -> Any:
        return prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )


class ImageProcessorCases(ImageProcessingTestMixin, unittest.TestCase):
    """The image processor."""

    image_processor_tester_class = ImageTester

    def test_properties(self) -> None:
        processor = GroundingDinoImageProcessor(**OPTIONS)
        for name in OPTIONS:
            self.assertTrue(hasattr(processor, name), name)

    def test_from_dict(self) -> None:
        made = GroundingDinoImageProcessor.from_dict(dict(OPTIONS))
        self.assertEqual(dict(made.size), {"shortest_edge": 18, "longest_edge": 1333})
        self.assertTrue(made.do_pad)

    def test_coco_annotations(self) -> None:
        """One box (10, 20, 30, 40) of a picture of 100 x 200: centre (25, 40) and size over the picture's."""
        (image,) = prepare_image_inputs(1, 100, 101, 3, equal_resolution=True, torchify=True)
        target = {"image_id": 7, "annotations": [{"bbox": [10, 20, 30, 40], "category_id": 3, "area": 1200}]}
        encoding = GroundingDinoImageProcessor(**OPTIONS)(images=image, annotations=target, return_tensors="pt")
        label = encoding["labels"][0]
        expected = torch.tensor([[25 / 101, 40 / 101, 30 / 101, 40 / 101]])
        torch.testing.assert_close(label["boxes"], expected, rtol=1e-3, atol=1e-3)
        self.assertEqual(label["class_labels"].tolist(), [3])


class ProcessorCases(ProcessorTesterMixin, unittest.TestCase):
    """The processor."""

    processor_class = GroundingDinoProcessor
    batch_size = 7

    @classmethod
    def _setup_image_processor(cls) -> Any:
        return GroundingDinoImageProcessor(**OPTIONS)

    @classmethod
    def _setup_tokenizer(cls) -> Any:
        return build_tokenizer(["cat", "remote", "control", "person", "car", "dog", "lower", "newer", "upper", "older"])

    def prepare_text_inputs(self, batch_size: int | None = None, **kwargs: Any) -> Any:
        labels = ["a cat", "remote control"]
        more = ["a person", "a car", "a dog", "a cat"]
        if batch_size is None:
            return labels
        return [labels, more, *[labels] * (batch_size - 2)][:batch_size]

    def test_text_preprocessing_equivalence(self) -> None:
        processor = self.get_processor()
        for caption, labels in (
            ("a cat. a remote control.", ["a cat", "a remote control"]),
            (["a cat. a dog.", "a car. a person."], [["a cat", "a dog"], ["a car", "a person"]]),
        ):
            ids = [processor(text=text)["input_ids"] for text in ([caption] if isinstance(caption, str) else caption,)]
            self.assertTrue(torch.equal(ids[0], processor(text=labels)["input_ids"]))
