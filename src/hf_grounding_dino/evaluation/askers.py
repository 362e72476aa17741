"""How a model is asked by the protocols of the papers: labels, labels inside phrases, captions, expressions.

No score threshold and no suppression of overlaps anywhere; a batch changes no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inference.large_vocabulary import PROMPT_TOKENS, Chunking, detect
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.defaults import PostProcessing
from ..processing.post_processing import boxes_in_image, class_detections, image_sizes, warn_of_broken
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..processing.prompts import EncodedPrompt, Span, closed_caption, encode_caption, span_token_mask
from .odinw import ClassPrompt
from .tasks import Answer, Case, CaseId

Spans = tuple[Span, ...]
TOP_K = 300
TOP_K_REFERRING = 30
_PROMPTS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class LabelAsker:
    """All labels, or those of each picture; a label scores as the mean of its tokens.

    labels: category id to the words of the prompt, in the prompt's order; several may be the same. What has no words
        is not asked for, and so never found.
    chunk_size: labels a prompt, as the papers count; None for as many as `chunk_tokens` allow.
    chunk_tokens: tokens a prompt at most; None for no limit.
    top_k: pairs of box and label that are kept, of each prompt where `each_ranked`, of each picture otherwise.
    each_ranked: let each prompt keep its own best, as the LVIS numbers of the family were made: 31 prompts of 40 names
        with 300 each are up to 9,300 boxes a picture.
    asked: of each case the category ids that it is asked for; without it, all.
    prompts_at_once: how many prompts of a picture run together; it changes no answer.
    kept: ask as `detect` does instead, for what is measured to be what it shows: a box has its best label alone, scores
        as the best token of that, above a threshold. `top_k` then counts in each picture, `chunk_size` as above.
    """

    labels: Mapping[int, str]
    chunk_size: int | None = None
    chunk_tokens: int | None = PROMPT_TOKENS
    top_k: int = TOP_K
    each_ranked: bool = False
    asked: Mapping[CaseId, tuple[int, ...]] | None = None
    prompts_at_once: int = _PROMPTS_AT_ONCE
    kept: PostProcessing | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that decides the answers beside model and pictures, as JSON."""
        sets: dict[str, Any] = {} if self.asked is None else {"asked": _digest(sorted(map(str, self.asked.items())))}
        if self.kept is not None:
            rule = {"score": "best token of the box's best label", "threshold": self.kept.threshold}
            sets |= {**rule, "nms": self.kept.nms, "top_k_of_each_prompt": False}
        return {
            "asker": "labels",
            "prompts": {str(number): words for number, words in self.labels.items()},
            "chunk_labels": self.chunk_size,
            "chunk_tokens": self.chunk_tokens,
            "top_k": self.top_k,
            "top_k_of_each_prompt": self.each_ranked,
            "score": "mean of the label's tokens",
            **sets,
        }

    def __call__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        images: Sequence[Image.Image],
        cases: Sequence[Case],
    ) -> list[Answer]:
        """The answers to a few cases, whose pictures are `images`."""
        answers = [nothing_found()] * len(cases)
        for numbers, rows in self._together(cases).items():
            if numbers:
                found = self._detect(model, processor, [images[row] for row in rows], numbers)
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer
        return answers

    def _together(self, cases: Sequence[Case]) -> dict[tuple[int, ...], list[int]]:
        """The cases, by position, that are asked for the same categories."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, case in enumerate(cases):
            wanted = tuple(self.labels) if self.asked is None else self.asked[case.case_id]
            groups.setdefault(tuple(number for number in wanted if self.labels[number].strip()), []).append(row)
        return groups

    def _detect(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        images: list[Image.Image],
        numbers: tuple[int, ...],
    ) -> list[Answer]:
        words = [self.labels[number] for number in numbers]
        chunking = Chunking(self.chunk_tokens, self.chunk_size, self.prompts_at_once, self.each_ranked)
        if self.kept is None:
            found = detect(model, processor, images, words, top_k=self.top_k, chunking=chunking)
        else:
            found = detect(
                model,
                processor,
                images,
                words,
                threshold=self.kept.threshold,
                top_k=None,
                scoring="max",
                chunking=chunking._replace(each_ranked=False),
                nms_threshold=self.kept.nms,
            )
            found = [{name: values[: self.top_k] for name, values in one.items()} for one in found]
        category_ids = np.array(numbers, dtype=np.int64)
        return [answer_of(one["scores"], one["boxes"], category_ids[one["labels"].cpu().numpy()]) for one in found]


@dataclass(frozen=True, kw_only=True)
class PhraseLabelAsker:
    """All labels in one prompt, some of them inside words around them of which the label alone scores (ODinW).

    prompts: category id to its words; what has no name is not asked for.
    top_k: pairs of box and label that are kept of each picture.
    """

    prompts: Mapping[int, ClassPrompt]
    top_k: int = TOP_K
    _numbers: tuple[int, ...] = field(init=False, repr=False)
    _caption: str = field(init=False, repr=False)
    _spans: tuple[Spans, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Write the prompt.

        Raises:
            ValueError: no label has a name.
        """
        caption, spans, numbers = "", [], []
        for number, prompt in self.prompts.items():
            if prompt.name.strip():
                start, end = prompt.span
                spans.append(((len(caption) + start, len(caption) + end),))
                numbers.append(number)
                caption += f"{prompt.text}. "
        if not numbers:
            raise ValueError("no label has a name to ask for")
        for name, value in (("_numbers", tuple(numbers)), ("_caption", caption.strip()), ("_spans", tuple(spans))):
            object.__setattr__(self, name, value)

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that decides the answers beside model and pictures, as JSON."""
        return {
            "asker": "labels in phrases",
            "prompts": {str(number): list(prompt) for number, prompt in self.prompts.items()},
            "top_k": self.top_k,
            "score": "mean of the label's tokens",
        }

    def __call__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        images: Sequence[Image.Image],
        cases: Sequence[Case],
    ) -> list[Answer]:
        """The answers to a few cases, whose pictures are `images`."""
        captions = [self._caption] * len(images)
        answers = _phrase_answers(model, processor, images, captions, [self._spans] * len(images), self.top_k)
        category_ids = np.array(self._numbers, dtype=np.int64)
        return [answer._replace(labels=category_ids[answer.labels]) for answer in answers]


@dataclass(frozen=True, kw_only=True)
class CaptionAsker:
    """A caption, of which phrases score as the mean of their tokens (Flickr30k Entities).

    top_k: pairs of box and phrase that are kept of each case, over all its phrases together.
    """

    top_k: int = TOP_K

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that decides the answers beside model and pictures, as JSON."""
        return {"asker": "caption", "top_k": self.top_k, "score": "mean of the phrase's tokens"}

    def __call__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        images: Sequence[Image.Image],
        cases: Sequence[Case],
    ) -> list[Answer]:
        """The answers to a few cases, whose pictures are `images`."""
        captions = [closed_caption(case.text) for case in cases]
        return _phrase_answers(model, processor, images, captions, [case.spans for case in cases], self.top_k)


@dataclass(frozen=True, kw_only=True)
class ExpressionAsker:
    """A whole sentence, whose best token is the score of a box (RefCOCO, gRefCOCO).

    top_k: boxes that are kept of each case.
    """

    top_k: int = TOP_K_REFERRING

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that decides the answers beside model and pictures, as JSON."""
        return {"asker": "expression", "top_k": self.top_k, "score": "maximum over all tokens"}

    def __call__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        images: Sequence[Image.Image],
        cases: Sequence[Case],
    ) -> list[Answer]:
        """The answers to a few cases, whose pictures are `images`."""
        outputs = _outputs(model, processor, images, [closed_caption(case.text) for case in cases])
        found = processor.post_process_referring(outputs, target_sizes=_sizes(images), top_k=self.top_k)
        return [answer_of(one["scores"], one["boxes"], np.zeros(len(one["scores"]), np.int64)) for one in found]


def nothing_found() -> Answer:
    """An answer without boxes."""
    return Answer(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def answer_of(scores_K: Tensor, boxes_K4: Tensor, labels_K: Any) -> Answer:
    """An answer on the CPU, in the types it is kept in."""
    scores, boxes = (values.detach().float().cpu().numpy() for values in (scores_K, boxes_K4))
    return Answer(boxes, scores, np.asarray(labels_K, dtype=np.int64))


def _phrase_answers(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    phrases: Sequence[Sequence[Spans]],
    top_k: int,
) -> list[Answer]:
    """The best pairs of box and phrase of each picture; labels are positions in its `phrases`."""
    outputs = _outputs(model, processor, images, captions)
    warn_of_broken(outputs)
    sizes = image_sizes(_sizes(images), len(images), outputs.pred_boxes.device)
    answers = []
    for caption, spans, logits_QT, boxes_Q4, size in zip(
        captions, phrases, outputs.logits, outputs.pred_boxes, sizes, strict=True
    ):
        masks_PT = _phrase_masks(encode_caption(caption, processor.tokenizer), spans).to(logits_QT.device)
        probabilities_QT = logits_QT[:, : masks_PT.shape[1]].float().sigmoid()
        # Nothing of another phrase has a part in the mean; a phrase without a token scores 0.
        scores_QP = (probabilities_QT @ masks_PT.T) / masks_PT.sum(1).clamp(min=1)
        scores, labels, queries = class_detections(scores_QP, threshold=-1.0, top_k=top_k, one_label_per_box=False)
        answers.append(answer_of(scores, boxes_in_image(boxes_Q4[queries], size), labels.cpu()))
    return answers


def _phrase_masks(prompt: EncodedPrompt, phrases: Sequence[Spans]) -> Tensor:
    """Which tokens each phrase takes, float32 (P, T)."""
    masks = torch.zeros(len(phrases), len(prompt.input_ids))
    for phrase, spans in enumerate(phrases):
        for span in spans:
            # Characters that the tokenizer drops have no token.
            if any(start < span[1] and end > span[0] for start, end in prompt.char_spans):
                masks[phrase][span_token_mask(prompt, [span])] = 1
    return masks


@torch.inference_mode()
def _outputs(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    images: Sequence[Image.Image],
    captions: Sequence[str],
) -> Any:
    """What the model says to one caption a picture."""
    inputs = processor(images=list(images), text=list(captions)).to(model.device)
    return model(**inputs)


def _sizes(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    return [(image.height, image.width) for image in images]


def _digest(parts: Sequence[str]) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:16]
