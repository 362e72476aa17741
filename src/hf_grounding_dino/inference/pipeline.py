"""The zero-shot object detection pipeline of transformers, with all labels of an image in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from io import IOBase
from itertools import islice, repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import transformers
from PIL import Image
from torch import Tensor
from transformers import ZeroShotObjectDetectionPipeline

from ..models.configuration import own_config
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..models.registry import MODEL_TYPES, load
from ..processing.closed_vocabulary import doubts
from ..processing.defaults import TUNED, Scoring
from ..processing.image_processing_grounding_dino import read_images, upright
from ..processing.labels import parse_labels
from ..processing.post_processing import Detections, checked_top_k, listed
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..processing.prompts import label_list
from ..processing.thresholds import Thresholds, threshold_per_label
from ..utils.hub import hub_options
from .large_vocabulary import PROMPT_TOKENS, Chunking, detect

DEFAULT_THRESHOLD = 0.1

Found = dict[str, Any]
"""One detection: `score`, `label`, and `box` with `xmin`, `ymin`, `xmax` and `ymax` in whole pixels."""

_LOAD_HERE = "load it with this package instead, or call register() first"
_FORWARD_OPTIONS = ("threshold", "scoring", "nms", "chunk_tokens", "chunk_labels", "chunk_batch")
_CALL_OPTIONS = ("batch_size", "num_workers", "timeout", "top_k", *_FORWARD_OPTIONS)


class GroundingDinoPipeline(ZeroShotObjectDetectionPipeline):
    """Find labels in images: `pipeline("zero-shot-object-detection", model=..., pipeline_class=...)`.

    Call and result are those of transformers. All labels of an image go through the model together, divided between
    prompts only where one cannot hold them, and with one pass of the image backbone.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(
        self, model: Any, processor: Any = None, tokenizer: Any = None, image_processor: Any = None, **kwargs: Any
    ) -> None:
        """Join a model with its processor, or with its tokenizer and image processor.

        A model of transformers is turned into the one of this package.

        Raises:
            ValueError: the model is not of this family, or there is neither a processor nor both of its parts.
        """
        if not isinstance(processor, GroundingDinoProcessor):
            tokenizer = tokenizer or getattr(processor, "tokenizer", None)
            image_processor = image_processor or getattr(processor, "image_processor", None)
            if tokenizer is None or image_processor is None:
                raise ValueError("Give a processor, or a tokenizer and an image processor.")
            processor = GroundingDinoProcessor(image_processor, tokenizer)
        # `pipeline(dtype=...)` of transformers gives it to the tokenizer too, which could then not be saved.
        processor.tokenizer.init_kwargs.pop("dtype", None)
        super().__init__(model=_own_model(model).eval(), processor=processor, **kwargs)

    def __call__(self, image: Any = None, candidate_labels: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Find the labels in one image or in many.

        Args:
            image: an image (PIL image, array, tensor, path or URL); a dict with `image` and `candidate_labels`; or a
                list, a dataset or a generator of either.
            candidate_labels: a list of labels, or one string of labels parted by commas, in which a label in double
                quotes may hold one; for a list of images also
                one list of labels an image. Dicts have their own.
            **kwargs: `threshold` (0.1): the least score, exclusive; one for all, one for each label as a list or a
                mapping, or "tuned" for those that `tune-thresholds` has put beside the model (scored by
                "mean", which they are for). `top_k`: the most detections of an image.
                `nms`: of two boxes of one label that overlap by more (IoU), keep the better. `batch_size` (1):
                images that run together. `timeout`: of URLs, in seconds. `scoring`: see `large_vocabulary.detect`;
                here it is "max". `chunk_tokens`, `chunk_labels`, `chunk_batch`: see `large_vocabulary.Chunking`.
                `num_workers` is without effect.

        Returns:
            The detections of an image by falling score, `[{"score", "label", "box": {xmin, ymin, xmax, ymax}}]`; a
            list of such for a list; an iterator over such, made as they are asked for, for the rest.

        Raises:
            ValueError: no labels, an empty or unknown label, one that the model cannot know (`closed_vocabulary`), no
                image, one that cannot be read, not as many lists of labels as images, or an option out of its
                range.
            TypeError: an option that does not exist.
        """
        candidate_labels = kwargs.pop("text_queries", candidate_labels)
        if candidate_labels is not None and not isinstance(candidate_labels, str):
            candidate_labels = label_list(candidate_labels)
        unknown = sorted(set(kwargs) - set(_CALL_OPTIONS))
        if unknown:
            raise TypeError(f"There is no option {unknown[0]!r}; there are {', '.join(_CALL_OPTIONS)}.")
        if kwargs.get("batch_size") is not None and kwargs["batch_size"] < 1:
            raise ValueError(f"batch_size={kwargs['batch_size']}: give 1 or more.")
        call = super(ZeroShotObjectDetectionPipeline, self).__call__
        if _is_one(image):
            return call(_item(image, candidate_labels), **kwargs)
        if not isinstance(image, (list, tuple, np.ndarray, Tensor)):
            return call((_item(one, candidate_labels) for one in _each(image)), **kwargs)
        labels = _labels_per_image(candidate_labels, len(image))
        items = [_item(one, own) for one, own in zip(image, labels, strict=False)]
        return call(items, **kwargs) if items else []

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        names = (("timeout",), _FORWARD_OPTIONS, ("top_k",))
        if kwargs.get("top_k") is not None:
            kwargs["top_k"] = checked_top_k(kwargs["top_k"], least=0)
        before, during, after = ({name: kwargs[name] for name in some if name in kwargs} for some in names)
        return before, during, after

    def get_iterator(
        self,
        inputs: Iterable[Found],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[list[Found]]:
        """The detections of each input, `batch_size` images at a time."""
        items = (self.preprocess(item, number=i, **preprocess_params) for i, item in enumerate(inputs))
        while batch := list(islice(items, batch_size)):
            for found in self.forward(batch, **forward_params):
                yield self.postprocess(found, **postprocess_params)

    def preprocess(self, inputs: Any, timeout: float | None = None, number: int = 0) -> Found:  # type: ignore[override]
        """The pixels of the upright image, and its list of labels.

        Raises:
            ValueError: there are no labels, or the image, called by its number, cannot be read.
        """
        image, labels = inputs["image"], inputs["candidate_labels"]
        if isinstance(labels, str):
            labels = parse_labels([labels])
        if labels is None or not len(labels):
            raise ValueError("No labels: give candidate_labels.")
        if isinstance(image, Image.Image):
            image = upright(image)
        (pixels,) = read_images([image], first=number, timeout=timeout)
        return {"image": pixels, "labels": label_list(labels)}

    def _forward(  # type: ignore[override]
        self,
        batch: Any,
        threshold: Any = DEFAULT_THRESHOLD,
        scoring: Scoring | None = None,
        nms: float | None = None,
        chunk_tokens: int | None = PROMPT_TOKENS,
        chunk_labels: int | None = None,
        chunk_batch: int = 4,
    ) -> list[Detections]:
        if isinstance(threshold, str) and threshold in TUNED:
            threshold = self._tuned_thresholds
        if scoring is None:
            scoring = "mean" if isinstance(threshold, Thresholds) else "max"
        same_labels: dict[tuple[str, ...], list[int]] = {}
        for row, item in enumerate(batch):
            same_labels.setdefault(tuple(item["labels"]), []).append(row)
        found: dict[int, Detections] = {}
        for labels, rows in same_labels.items():
            for doubt in doubts(self.model, labels):
                warnings.warn(doubt, stacklevel=2)
            results = detect(
                cast(GroundingDinoForObjectDetection, self.model),
                cast(GroundingDinoProcessor, self.processor),
                [batch[row]["image"] for row in rows],
                labels,
                threshold=threshold_per_label(threshold, labels),
                top_k=None,
                scoring=scoring,
                nms_threshold=nms,
                chunking=Chunking(chunk_tokens, chunk_labels, chunk_batch),
            )
            found |= zip(rows, results, strict=True)
        return [found[row] for row in range(len(batch))]

    @cached_property
    def _tuned_thresholds(self) -> Thresholds:
        """What `tune-thresholds` put beside the model, read once, from where and by what right the model was loaded."""
        return Thresholds.from_pretrained(self.model.name_or_path or "", **hub_options(self.model))

    def postprocess(self, found: Detections, top_k: int | None = None) -> list[Found]:  # type: ignore[override]
        """The best `top_k` detections in plain numbers and strings."""
        return listed(found)[: top_k or None]


def _is_one(image: Any) -> bool:
    if isinstance(image, (np.ndarray, Tensor)):
        return image.ndim <= 3
    return isinstance(image, (str, bytes, IOBase, Path, Image.Image, Mapping))


def _each(images: Any) -> Iterator[Any]:
    """The rows of an iterable, or of a dataset of torch, which may tell its end by its length alone."""
    if hasattr(images, "__iter__"):
        return iter(images)
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        return (images[i] for i in range(len(images)))
    raise ValueError(f"Give an image or images, not {type(images).__name__}.")


def _item(image: Any, labels: Any) -> Found:
    if not isinstance(image, Mapping):
        return {"image": image, "candidate_labels": labels}
    if "image" not in image:
        raise ValueError(f"A dict of the pipeline has 'image' and 'candidate_labels', not {sorted(map(str, image))}.")
    return {"image": image["image"], "candidate_labels": image.get("candidate_labels", labels)}


def _labels_per_image(labels: Any, num_images: int) -> Iterable[Any]:
    if labels is None or isinstance(labels, str) or all(isinstance(label, str) for label in labels):
        return repeat(labels)
    if len(labels) != num_images:
        raise ValueError(f"{len(labels)} lists of candidate_labels for {num_images} images.")
    return list(labels)


def _own_model(model: Any) -> GroundingDinoForObjectDetection:
    """The model itself, or its twin in this package with the same tensors."""
    row = MODEL_TYPES.get(model.config.model_type)
    detector: Any = load(row.detector) if row else ()
    if isinstance(model, detector):
        return model
    name = f"{type(model).__module__}.{type(model).__name__}"
    if row is None or row.stock is None or not isinstance(model, getattr(transformers, row.stock)):
        raise ValueError(f"{name} is not a model for this pipeline: give a GroundingDinoForObjectDetection.")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1 or getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"{name} is quantized or on several devices: {_LOAD_HERE}.")
    twin, report = cast(
        tuple[GroundingDinoForObjectDetection, dict[str, Any]],
        detector.from_pretrained(
            None,
            config=own_config(model.config),
            state_dict=model.state_dict(),
            dtype=model.dtype,
            output_loading_info=True,
        ),
    )
    if report["missing_keys"]:
        raise ValueError(f"{name} lacks {sorted(report['missing_keys'])[0]}: {_LOAD_HERE}.")
    heads = model.bbox_embed
    if len(heads) > 1 and _first(heads[0]) is _first(heads[1]) and not twin.config.decoder_bbox_embed_share:
        raise ValueError(f"This version of transformers has one box head for all layers of {name}: {_LOAD_HERE}.")
    twin.name_or_path = model.name_or_path
    twin.to(model.device)
    return twin


def _first(head: Any) -> Tensor:
    weight: Tensor = head.layers[0].weight
    return weight
