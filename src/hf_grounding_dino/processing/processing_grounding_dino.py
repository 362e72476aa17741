"""Images and words in, scored and labelled boxes out, with the caller's own words as labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .image_processing_grounding_dino import GroundingDinoImageProcessor
from .post_processing import (
    Detections,
    boxes_in_image,
    caption_labels,
    class_detections,
    grounded_detections,
    image_sizes,
    names_per_image,
    referring_detections,
    warn_of_broken,
    without_overlaps,
)
from .prompts import (
    EncodedPrompt,
    PromptText,
    cut_prompt,
    decode_phrases,
    encode_prompt,
    keep_prompts,
    kept_prompts,
    one_prompt_per_image,
    phrase_numbers,
    phrase_scores,
    special_token_ids,
    without_padding,
)

_DECODED = (
    "These input_ids do not hold the words they were made of, as a copy of them does not that was not made by"
    " `inputs.to(...)`: the labels are read back from token ids, in lower case. Give text_labels for your own strings."
)
_TEXT_DEFAULTS = {"padding": True, "return_tensors": "pt"}
_IMAGE_DEFAULTS = {"return_tensors": "pt"}
_UNSUPPORTED_TEXT_OPTIONS = (
    "text_pair",
    "text_target",
    "text_pair_target",
    "is_split_into_words",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_offsets_mapping",
    "return_length",
)


class GroundingDinoInputs(BatchFeature):
    """The inputs of the model. The prompts they were made of travel on the tensor `input_ids`, to other devices too."""

    def to(self, *args: Any, **kwargs: Any) -> GroundingDinoInputs:
        """As in transformers."""
        before = self.data.get("input_ids")
        super().to(*args, **kwargs)
        keep_prompts(self.data.get("input_ids"), kept_prompts(before))
        return self


class GroundingDinoProcessor(ProcessorMixin):
    """An image processor and a tokenizer, and the way from the outputs of the model back to images and words.

    A stock image processor is turned into the one of this package.
    """

    def __init__(self, image_processor: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Join an image processor and a tokenizer.

        Raises:
            ValueError: the tokenizer has no vocabulary to speak of.
        """
        stock = (transformers.GroundingDinoImageProcessor, transformers.GroundingDinoImageProcessorPil)
        if isinstance(image_processor, stock) and not isinstance(image_processor, GroundingDinoImageProcessor):
            image_processor = GroundingDinoImageProcessor.from_dict(image_processor.to_dict())
        super().__init__(image_processor, tokenizer)
        if self.tokenizer.unk_token_id in self._special_token_ids:
            raise ValueError("The tokenizer does not know [CLS], [SEP], '.' and '?': are its files there?")

    def __call__(
        self,
        images: Any = None,
        text: PromptText | Sequence[PromptText] | None = None,
        annotations: Any = None,
        **kwargs: Any,
    ) -> GroundingDinoInputs:
        """Make the inputs of the model.

        Args:
            images: images: PIL images, arrays, tensors, paths or URLs, one or a list. PIL images are taken as they
                lie in memory, files upright (`image_processing_grounding_dino.read_images`).
            text: a caption, a list of labels, or a list of either, one an image (`prompts.one_prompt_per_image`).
            annotations: COCO annotations, one an image, for `labels` in the result. `category_id` is taken for the
                number of the phrase in the prompt, from 0 on, not for an id of COCO.
            **kwargs: options of the tokenizer (`padding`, `truncation`, `max_length`, `pad_to_multiple_of`,
                `return_tensors`) and of the image processor, flat or in `text_kwargs` and `images_kwargs`.
                Truncation drops whole phrases.

        Raises:
            ValueError: an image cannot be read, a label is empty or unknown, or the numbers of the two differ.
        """
        if images is None and text is None:
            raise ValueError("Give images, text or both.")
        options = self._merge_kwargs(
            self.valid_processor_kwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        pixels: dict[str, Any] = {}
        if images is not None:
            pixels = dict(self.image_processor(images, annotations, **(_IMAGE_DEFAULTS | options["images_kwargs"])))
        elif annotations is not None:
            raise ValueError("Annotations need the images they belong to.")
        words: dict[str, Any] = {}
        if text is not None:
            num_images = len(pixels["pixel_values"]) if pixels else None
            words = self._encode(one_prompt_per_image(text, num_images), _TEXT_DEFAULTS | options["text_kwargs"])
        return GroundingDinoInputs({**words, **pixels})

    def _encode(self, texts: Sequence[PromptText], options: dict[str, Any]) -> dict[str, Any]:
        for name in _UNSUPPORTED_TEXT_OPTIONS:
            if options.get(name):
                raise ValueError(f"{name} has no meaning for a prompt of phrases.")
        by_identity = {id(text): encode_prompt(text, self.tokenizer) for text in texts}
        prompts = [by_identity[id(text)] for text in texts]
        max_length = options.get("max_length")
        if options.get("truncation") not in (None, False, "do_not_truncate"):
            longest = self.tokenizer.model_max_length if max_length is None else max_length
            prompts = [cut_prompt(prompt, longest, self._special_token_ids) for prompt in prompts]
        columns = {
            "input_ids": [list(prompt.input_ids) for prompt in prompts],
            "token_type_ids": [[0] * len(prompt.input_ids) for prompt in prompts],
            "attention_mask": [[1] * len(prompt.input_ids) for prompt in prompts],
        }
        padding = options.get("padding", True)
        padded = self.tokenizer.pad(
            columns,
            padding=padding,
            max_length=max_length if padding == "max_length" else None,
            pad_to_multiple_of=options.get("pad_to_multiple_of"),
            padding_side="right",  # phrases count from the left: padding before them would be a phrase
            return_tensors=options.get("return_tensors"),
        )
        keep_prompts(padded["input_ids"], prompts)
        return {name: padded[name] for name in columns if options.get(f"return_{name}", True) is not False}

    @property
    def _special_token_ids(self) -> tuple[int, ...]:
        tokenizer: PreTrainedTokenizerBase = self.tokenizer
        return special_token_ids(tokenizer)

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        input_ids: Any = None,
        threshold: float = 0.25,
        text_threshold: float = 0.25,
        target_sizes: Any = None,
        text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        box_threshold: float | None = None,
    ) -> list[Detections]:
        """The boxes that score above `threshold`, each called by its best phrase, in the order of the queries.

        Args:
            outputs: what the model gave: `logits`, `pred_boxes` and, unless given here, `input_ids`.
            input_ids: the token ids of the prompts.
            threshold: the least score, exclusive. A box scores as the best token of its phrase.
            text_threshold: for captions, the least score of a token for its word to be in the label, exclusive.
            target_sizes: (height, width) of each image, for boxes in pixels; without it they are in [0, 1].
            text_labels: the name of each phrase: one list for all images, or one list an image. By default the
                strings that the processor was called with, which travel on the tensor `input_ids` that it gave, also by
                `inputs.to(device)`. A copy made otherwise has them no longer: then, with a warning, what the tokenizer
                decodes, in lower case.
            box_threshold: an older name of `threshold`, which it overrides.

        Returns:
            For each image `scores (k,)`, `boxes (k, 4)` as (x0, y0, x1, y1) clipped to the image, `text_labels` a list
            of k strings, and `labels (k,)`, the number of the phrase, which is the index in the list of labels.

        Raises:
            ValueError: the numbers of images, sizes, labels and phrases do not agree.
        """
        threshold = threshold if box_threshold is None else box_threshold
        named = text_labels is not None
        results = []
        for prompt, numbers_T, logits_QT, boxes_Q4, size in self._per_image(
            outputs, input_ids, text_labels, target_sizes
        ):
            probabilities_QT = logits_QT.float().sigmoid()
            num_phrases = len(prompt.phrases)
            scores, labels, queries = grounded_detections(probabilities_QT, numbers_T, num_phrases, threshold)
            if prompt.caption is None or named:
                names = [prompt.phrases[label] for label in labels.tolist()]
            else:
                names = caption_labels(prompt, probabilities_QT[queries], numbers_T, labels, text_threshold)
            boxes = boxes_in_image(boxes_Q4[queries], size)
            results.append({"scores": scores, "boxes": boxes, "text_labels": names, "labels": labels})
        return results

    def post_process_object_detection(
        self,
        outputs: Any,
        text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        threshold: float = 0.0,
        target_sizes: Any = None,
        top_k: int | None = 300,
        *,
        input_ids: Any = None,
        nms_threshold: float | None = None,
        one_label_per_box: bool = False,
    ) -> list[Detections]:
        """The best pairs of box and class, as the benchmarks of the family want them, by falling score.

        Args:
            outputs: what the model gave: `logits`, `pred_boxes` and, unless given here, `input_ids`.
            text_labels: the classes of the prompt: one list for all images, or one list an image.
            threshold: the least score, exclusive. A class scores as the mean of its tokens.
            target_sizes: (height, width) of each image, for boxes in pixels; without it they are in [0, 1].
            top_k: how many pairs to keep of each image; None keeps all.
            input_ids: the token ids of the prompts.
            nms_threshold: of two boxes of one class that overlap by more (IoU), keep the better; off by default.
            one_label_per_box: leave each box its best class only.

        Returns:
            As `post_process_grounded_object_detection`; one box may come with several classes.

        Raises:
            ValueError: the numbers of images, sizes, labels and phrases do not agree.
        """
        results = []
        for prompt, numbers_T, logits_QT, boxes_Q4, size in self._per_image(
            outputs, input_ids, text_labels, target_sizes
        ):
            # A class scores as the mean of its tokens, which no other class of the prompt has a part in.
            scores_QP = phrase_scores(logits_QT.float().sigmoid(), numbers_T, len(prompt.phrases), "mean")
            scores, labels, queries = class_detections(
                scores_QP, threshold=threshold, top_k=top_k, one_label_per_box=one_label_per_box
            )
            boxes = boxes_in_image(boxes_Q4[queries], size)
            names = [prompt.phrases[label] for label in labels.tolist()]
            result = {"scores": scores, "boxes": boxes, "text_labels": names, "labels": labels}
            results.append(result if nms_threshold is None else without_overlaps(result, nms_threshold))
        return results

    def post_process_referring(self, outputs: Any, target_sizes: Any = None, top_k: int = 1) -> list[Detections]:
        """The boxes that the whole sentence refers to, best first: `scores (k,)` and `boxes (k, 4)` an image.

        Args:
            outputs: what the model gave: `logits` and `pred_boxes`.
            target_sizes: (height, width) of each image, for boxes in pixels; without it they are in [0, 1].
            top_k: how many boxes to keep of each image. A box scores as the best token of the sentence.

        Raises:
            ValueError: not one size for each image.
        """
        warn_of_broken(outputs)
        sizes = image_sizes(target_sizes, len(outputs.logits), outputs.pred_boxes.device)
        results = []
        for logits_QT, boxes_Q4, size in zip(outputs.logits, outputs.pred_boxes, sizes, strict=True):
            scores, queries = referring_detections(logits_QT, top_k)
            results.append({"scores": scores, "boxes": boxes_in_image(boxes_Q4[queries], size)})
        return results

    def _per_image(
        self, outputs: Any, input_ids: Any, text_labels: Any, target_sizes: Any
    ) -> list[tuple[EncodedPrompt, Tensor, Tensor, Tensor, Tensor | None]]:
        """The prompt, the phrase number of each of its tokens, the logits, the boxes and the size of each image."""
        warn_of_broken(outputs)
        logits, boxes = outputs.logits, outputs.pred_boxes
        sizes = image_sizes(target_sizes, len(logits), boxes.device)
        prompts = self._prompts_of(outputs, input_ids, text_labels)
        numbers = [
            phrase_numbers(torch.tensor([prompt.input_ids], device=logits.device), self._special_token_ids)[0]
            for prompt in prompts
        ]
        return list(zip(prompts, numbers, logits, boxes, sizes, strict=True))

    def _prompts_of(self, outputs: Any, input_ids: Any, text_labels: Any) -> list[EncodedPrompt]:
        """The prompt of each image, with the names of its phrases: given, or those on the ids, or decoded."""
        ids = getattr(outputs, "input_ids", None) if input_ids is None else input_ids
        if ids is None:
            raise ValueError("The outputs hold no input_ids: give those the model was called with.")
        special = self._special_token_ids
        rows = [without_padding(row, special) for row in torch.as_tensor(ids).tolist()]
        num_images, width = len(outputs.logits), outputs.logits.shape[-1]
        if len(rows) != num_images:
            raise ValueError(f"{len(rows)} rows of input_ids for {num_images} images.")
        longest = max(map(len, rows), default=0)
        if longest > width:
            raise ValueError(f"A prompt of {longest} tokens cannot have given logits for {width} tokens.")
        names = names_per_image(text_labels, num_images)
        kept = kept_prompts(ids)
        if kept is None or [prompt.input_ids for prompt in kept] != rows:
            kept = [EncodedPrompt(row, decode_phrases(row, self.tokenizer), None, ()) for row in rows]
            if text_labels is None:
                warnings.warn(_DECODED, stacklevel=4)
        prompts = []
        for i, (prompt, given) in enumerate(zip(kept, names, strict=True)):
            if given is not None and len(given) != len(prompt.phrases):
                raise ValueError(f"Image {i}: {len(given)} text_labels for a prompt of {len(prompt.phrases)} phrases.")
            prompts.append(prompt if given is None else prompt._replace(phrases=tuple(given)))
        return prompts
