"""What enters and leaves one pass through the network: encoded images, a prompt, a decoding.

Shapes: `B` batch, `S` image tokens, `T` text tokens, `Q` queries, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ...layers.context import ImageContext, Recording, by_kind
from ...layers.heads import pad_logits
from ..detector import GroundingDinoModelOutput, moved
from .decoder import DecoderOutput, HeadInputs
from .feature_enhancer import EnhancerOutput
from .query_selection import FirstStage, grid_proposals


class EncodedImage(NamedTuple):
    """Images after the backbone, before they meet any words: one encoding serves many prompts.

    image_BSD: the padded pyramid, flattened.
    context: where each of its tokens lies.
    """

    image_BSD: Tensor
    context: ImageContext

    @property
    def num_images(self) -> int:
        """B."""
        return self.image_BSD.shape[0]

    def select(self, rows: Sequence[int]) -> EncodedImage:
        """The images of the given numbers, in that order; one may come several times, for several prompts.

        One image for all prompts takes no memory of its own.

        Raises:
            ValueError: no numbers, or one that no image has.
        """
        rows = list(rows)
        if not rows or not all(0 <= row < self.num_images for row in rows):
            raise ValueError(f"Choose from images 0 to {self.num_images - 1}, not {rows}.")
        batch = self.num_images
        sizes: Any = tuple(tuple(level[row] for row in rows) for level in self.context.sizes)
        tensors: dict[str, Any] = {
            name: _take(value, rows)
            for name, value in self.context._asdict().items()
            if isinstance(value, Tensor) and len(value) == batch
        }
        return EncodedImage(_take(self.image_BSD, rows), self.context._replace(sizes=sizes, **tensors))

    def repeat(self, times: int) -> EncodedImage:
        """Each image `times` times in a row."""
        return self.select([row for row in range(self.num_images) for _ in range(times)])

    def to(self, where: torch.device | str | int | torch.dtype) -> EncodedImage:
        """The same images on a device, or with their features in another type; coordinates stay float32."""
        if not isinstance(where, torch.dtype):
            return EncodedImage(*moved(tuple(self), where))
        positions_BSD = self.context.positions_BSD.to(where)
        return EncodedImage(self.image_BSD.to(where), self.context._replace(positions_BSD=positions_BSD))


def _take(x: Tensor, rows: list[int]) -> Tensor:
    if set(rows) == {rows[0]}:
        return x[rows[0] :][:1].expand(len(rows), *x.shape[1:])
    return x[torch.tensor(rows, device=x.device)]


class Prompt(NamedTuple):
    """Words as the processor encodes them.

    input_ids: `(B, T)`.
    token_type_ids: `(B, T)`, None for zeros.
    may_attend_BT: True on tokens, False on padding.
    """

    input_ids: Tensor
    token_type_ids: Tensor | None
    may_attend_BT: Tensor

    @classmethod
    def of(cls, input_ids: Tensor | None, token_type_ids: Tensor | None, attention_mask: Tensor | None) -> Prompt:
        """Join the arguments of `forward`.

        Raises:
            ValueError: there are no `input_ids`.
        """
        if input_ids is None:
            raise ValueError("Give `input_ids`: the prompts as the processor encodes them.")
        real_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return cls(input_ids, token_type_ids, real_BT.bool())


def encoded_images(
    encode: Callable[[Tensor, Tensor | None], EncodedImage],
    pixel_values: Tensor | None,
    pixel_mask: Tensor | None,
    encoded_image: EncodedImage | None,
    prompt: Prompt,
) -> EncodedImage:
    """The images, encoded now or before.

    Raises:
        ValueError: not exactly one of `pixel_values` and `encoded_image`, or not as many encoded images as prompts.
    """
    if encoded_image is None:
        if pixel_values is None:
            raise ValueError("Give `pixel_values` or `encoded_image`.")
        return encode(pixel_values, pixel_mask)
    if pixel_values is not None or pixel_mask is not None:
        raise ValueError("Give `pixel_values` and `pixel_mask`, or `encoded_image`, which has both inside.")
    images, prompts = encoded_image.num_images, prompt.input_ids.shape[0]
    if images != prompts:
        raise ValueError(f"`encoded_image` has {images} images for {prompts} prompts: use its `repeat` or `select`.")
    return encoded_image


class Decoding(NamedTuple):
    """Everything the output reports of one forward pass.

    denoised: of the denoising queries, in training with them; all else is of the matching queries.
    """

    enhanced: EnhancerOutput
    first_stage: FirstStage
    decoded: DecoderOutput
    denoised: DecoderOutput | None


def wanted(config: PretrainedConfig, attentions: bool | None, hidden_states: bool | None) -> Recording:
    """What a pass keeps for the caller: as the call says, or else the configuration."""
    return Recording(
        states=bool(config.output_hidden_states if hidden_states is None else hidden_states),
        weights=bool(config.output_attentions if attentions is None else attentions),
    )


def hidden_states(decoding: Decoding, image: ImageContext, norm: nn.Module, box_head: nn.Module) -> dict[str, Any]:
    """What the output holds with `output_hidden_states`, by name.

    Args:
        decoding: what the network found, with the states of the enhancer.
        image: where its tokens lie.
        norm: of the decoder's states.
        box_head: of the first stage.
    """
    first_stage, enhanced = decoding.first_stage, decoding.enhanced
    offsets_BS4 = box_head(first_stage.features_BSD).float()
    return {
        "decoder_hidden_states": (norm(first_stage.content_BQD), *decoding.decoded.hidden),
        "encoder_vision_hidden_states": enhanced.image_states,
        "encoder_text_hidden_states": enhanced.text_states,
        "enc_outputs_class": first_stage.all_logits_BST,
        "enc_outputs_coord_logits": offsets_BS4 + torch.special.logit(grid_proposals(image).boxes_BS4),
    }


def model_output(decoding: Decoding, width: int, **on_demand: Any) -> GroundingDinoModelOutput:
    """A decoding under the names of transformers.

    Args:
        decoding: what the network found.
        width: the least width of the logits.
        **on_demand: the fields that a call has asked for.
    """
    enhanced, first_stage, decoded, denoised = decoding
    if denoised is not None:
        on_demand["denoising_hidden_states"] = torch.stack(denoised.hidden, 1)
        on_demand["denoising_reference_points"] = torch.stack(denoised.references, 1)
    if enhanced.weights:
        on_demand["encoder_attentions"] = by_kind(enhanced.weights)
        on_demand["decoder_attentions"] = by_kind(decoded.weights)
    if "enc_outputs_class" in on_demand:
        on_demand["enc_outputs_class"] = pad_logits(on_demand["enc_outputs_class"], width)
    may_attend_B11Q = first_stage.may_attend_B11Q
    return GroundingDinoModelOutput(
        last_hidden_state=decoded.hidden[-1],
        init_reference_points=decoded.references[0],
        intermediate_hidden_states=torch.stack(decoded.hidden, 1),
        intermediate_reference_points=torch.stack(decoded.refined, 1),
        encoder_last_hidden_state_vision=enhanced.image_BSD,
        encoder_last_hidden_state_text=enhanced.text_BTD,
        encoder_logits=pad_logits(first_stage.logits_BQT, width),
        encoder_pred_boxes=first_stage.boxes_BQ4,
        query_mask=None if may_attend_B11Q is None else may_attend_B11Q[:, 0, 0],
        **on_demand,
    )


def head_inputs(output: GroundingDinoModelOutput, may_attend_BT: Tensor) -> HeadInputs:
    """What the heads read of the base model's output.

    Args:
        may_attend_BT: True on tokens, False on padding.
    """
    first, after = output.init_reference_points, output.intermediate_reference_points
    hidden, text = output.intermediate_hidden_states, output.encoder_last_hidden_state_text
    assert first is not None and after is not None and hidden is not None and text is not None
    references_BKQ4 = torch.cat([first[:, None], after[:, :-1]], 1)
    return HeadInputs(hidden, references_BKQ4, output.query_mask, text, may_attend_BT)
