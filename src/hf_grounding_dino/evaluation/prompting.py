"""How a model is prompted by the protocols of the papers: labels, labels inside phrases, captions, expressions.

No score threshold and no suppression of overlaps anywhere, unless `LabelPrompting.post` asks for what `detect` shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from ..inference.large_vocabulary import PROMPT_TOKENS, Chunking
from ..inference.prompting import LabelPrompt, PhrasePrompt, Prompt, ReferringPrompt
from ..processing.defaults import PostProcessing
from .benchmarks import ClassPrompt
from .metrics.base import ItemId
from .tasks import Sample

TOP_K, TOP_K_REFERRING = 300, 30


class Prompting(ABC):
    """What a model is asked about each sample."""

    labels_of_all: Sequence[str] = ()
    """The labels that every image is searched for; empty where each sample has a text of its own."""

    @abstractmethod
    def prompt(self, sample: Sample) -> Prompt:
        """The prompt of a sample."""

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Everything that decides the predictions beside model and images, as JSON: prompts, chunk size, top-k, ..."""

    def category_ids(self, sample: Sample) -> Sequence[int] | None:
        """What the labels of the detections, positions in the prompt, are called in the reference; None: the same."""
        return None


@dataclass(frozen=True, kw_only=True)
class LabelPrompting(Prompting):
    """All labels, or those of each image; a label scores as the mean of its tokens.

    labels: category id to the words of the prompt, in the prompt's order; several may be the same. What has no words
        is not prompted, and so never found.
    chunk_size: labels a prompt, as the papers count; None for as many as `chunk_tokens` allow.
    chunk_tokens: tokens a prompt at most; None for no limit.
    top_k: pairs of box and label that are kept, of each prompt where `each_ranked`, of each image otherwise.
    each_ranked: let each prompt keep its own best, as the LVIS numbers of the family were made: 31 prompts of 40 names
        with 300 each are up to 9,300 boxes an image.
    asked: of each sample the category ids that it is asked for; without it, all.
    post: measure what `detect` shows instead: a box has its best label alone, scores as the best token of that, above
        a threshold; `top_k` then counts in each image.
    """

    labels: Mapping[int, str]
    chunk_size: int | None = None
    chunk_tokens: int | None = PROMPT_TOKENS
    top_k: int = TOP_K
    each_ranked: bool = False
    asked: Mapping[ItemId, tuple[int, ...]] | None = None
    post: PostProcessing | None = None

    def prompt(self, sample: Sample) -> LabelPrompt:
        """The labels of a sample."""
        words = tuple(self.labels[number] for number in self.category_ids(sample))
        chunking = Chunking(self.chunk_tokens, self.chunk_size, each_ranked=self.each_ranked and self.post is None)
        post = self.post or PostProcessing(threshold=0.0, top_k=self.top_k, scoring="mean")
        return LabelPrompt(words, post, chunking)

    def category_ids(self, sample: Sample) -> tuple[int, ...]:
        """Of the labels of a sample, in the prompt's order."""
        wanted = self.labels if self.asked is None else self.asked[sample.sample_id]
        return tuple(number for number in wanted if self.labels[number].strip())

    @property
    def labels_of_all(self) -> list[str]:  # type: ignore[override]
        """All labels."""
        return [words for words in self.labels.values() if words.strip()]

    @property
    def protocol(self) -> dict[str, Any]:
        """As `Prompting.protocol`."""
        protocol: dict[str, Any] = {
            "prompting": "labels",
            "prompts": {str(number): words for number, words in self.labels.items()},
            "chunk_labels": self.chunk_size,
            "chunk_tokens": self.chunk_tokens,
            "top_k": self.top_k,
            "top_k_of_each_prompt": self.each_ranked,
            "score": "mean of the label's tokens",
        }
        if self.asked is not None:
            asked = "\n".join(sorted(map(str, self.asked.items())))
            protocol["asked"] = sha256(asked.encode()).hexdigest()[:16]
        if self.post is not None:
            rule = {"score": "best token of the box's best label", "threshold": self.post.threshold}
            protocol |= {**rule, "nms": self.post.nms, "top_k": self.post.top_k, "top_k_of_each_prompt": False}
        return protocol


@dataclass(frozen=True, kw_only=True)
class LabelInPhrasePrompting(Prompting):
    """All labels in one prompt, some of them inside words around them of which the label alone scores (ODinW).

    prompts: category id to its words; what has no name is not prompted.
    top_k: pairs of box and label that are kept of each image.
    """

    prompts: Mapping[int, ClassPrompt]
    top_k: int = TOP_K

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ValueError: no label has a name.
        """
        if not self._named:
            raise ValueError("no label has a name to prompt with")

    @cached_property
    def _named(self) -> dict[int, ClassPrompt]:
        return {number: prompt for number, prompt in self.prompts.items() if prompt.name.strip()}

    @cached_property
    def _prompt(self) -> PhrasePrompt:
        caption, phrases = "", []
        for prompt in self._named.values():
            start, end = prompt.span
            phrases.append(((len(caption) + start, len(caption) + end),))
            caption += f"{prompt.text}. "
        return PhrasePrompt(caption.strip(), tuple(phrases), self.top_k)

    def prompt(self, sample: Sample) -> PhrasePrompt:
        """The same for all."""
        return self._prompt

    def category_ids(self, sample: Sample) -> list[int]:
        """Of the classes with a name."""
        return list(self._named)

    @property
    def labels_of_all(self) -> list[str]:  # type: ignore[override]
        """All names."""
        return [prompt.name for prompt in self._named.values()]

    @property
    def protocol(self) -> dict[str, Any]:
        """As `Prompting.protocol`."""
        prompts = {str(number): list(prompt) for number, prompt in self.prompts.items()}
        score = "mean of the label's tokens"
        return {"prompting": "labels in phrases", "prompts": prompts, "top_k": self.top_k, "score": score}


@dataclass(frozen=True, kw_only=True)
class CaptionPrompting(Prompting):
    """A caption, of which phrases score as the mean of their tokens (Flickr30k Entities).

    top_k: pairs of box and phrase that are kept of each sample, over all its phrases together.
    """

    top_k: int = TOP_K

    def prompt(self, sample: Sample) -> PhrasePrompt:
        """The caption of a sample."""
        return PhrasePrompt(sample.text, sample.phrases, self.top_k)

    @property
    def protocol(self) -> dict[str, Any]:
        """As `Prompting.protocol`."""
        return {"prompting": "caption", "top_k": self.top_k, "score": "mean of the phrase's tokens"}


@dataclass(frozen=True, kw_only=True)
class ExpressionPrompting(Prompting):
    """A whole sentence, whose best token is the score of a box (RefCOCO, gRefCOCO).

    top_k: boxes that are kept of each sample.
    """

    top_k: int = TOP_K_REFERRING

    def prompt(self, sample: Sample) -> ReferringPrompt:
        """The expression of a sample."""
        return ReferringPrompt(sample.text, self.top_k)

    @property
    def protocol(self) -> dict[str, Any]:
        """As `Prompting.protocol`."""
        return {"prompting": "expression", "top_k": self.top_k, "score": "maximum over all tokens"}
