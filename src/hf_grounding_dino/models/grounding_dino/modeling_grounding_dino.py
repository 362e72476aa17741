"""Grounding DINO and MM-Grounding-DINO: one network for both, after figure 3 of arXiv 2303.05499.

Shapes: `B` batch, `S` image tokens, `T` text tokens, `Q` queries, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ...layers.backbone import ConvEncoder, ImageBackbone, build_input_projections, feature_pyramid, padded_pyramid
from ...layers.context import ImageContext, Recording, Size, TextContext
from ...layers.heads import BoxHead, ContrastiveHead, build_heads, pad_logits, refuse_untied_heads, tied_heads
from ...layers.positions import text_position_embedding
from ...layers.text_encoder import PhraseMemory, TextNetwork, build_text_backbone
from ...losses.criterion import Predictions
from ...losses.denoising import NoisedQueries
from ...processing.prompts import sub_sentence_attention
from ..detector import GroundingDinoModelOutput, GroundingDinoObjectDetectionOutput, common_fields
from .configuration_grounding_dino import (
    AnyGroundingDinoConfig,
    GroundingDinoConfig,
    MMGroundingDinoConfig,
    as_own_config,
)
from .decoder import CrossModalityDecoder, DecoderOutput, Memory, predict_layers
from .encoded_image import (
    Decoding,
    EncodedImage,
    Prompt,
    encoded_images,
    head_inputs,
    hidden_states,
    model_output,
    wanted,
)
from .feature_enhancer import FeatureEnhancer
from .label_embedding import DenoisingPreTrainedModel
from .objective import lesson_loss, prepare_lesson
from .query_selection import FirstStage, gather_tokens, grid_proposals, select_queries


class GroundingDinoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation for both model types."""

    config_class: type[AnyGroundingDinoConfig] = GroundingDinoConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EnhancerLayer", "DecoderLayer", "SwinStage", "BertLayer"]
    _keys_to_ignore_on_load_unexpected = [r"relative_position_index$"]
    _keys_to_ignore_on_load_missing = [r"swin\.layernorm\."]

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(as_own_config(config))
        # The class's name is written to disk, where it must be the one that belongs to the model type.
        self.__class__ = _class_for(type(self), cast(AnyGroundingDinoConfig, self.config))

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers.

        Raises:
            ValueError: `use_reentrant=True`, under which the contexts of the layers would lose their gradients.
        """
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError("`use_reentrant=True` is not supported for gradient checkpointing; leave it out.")
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def enable_input_require_grads(self) -> None:
        """As in transformers, for the words alone: what embeds an image gives more than a tensor."""
        embeddings = self.get_input_embeddings()
        self._require_grads_hook = embeddings.register_forward_hook(lambda *call: call[-1].requires_grad_(True))
        self._require_grads_hooks = [self._require_grads_hook]

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """As in transformers; afterwards no parameter that the network does not use is trained."""
        super().tie_weights(missing_keys, recompute_mapping)
        for module in self.modules():
            if isinstance(module, ConvEncoder):
                module.freeze_unused()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Initialise every module, as for the models of transformers: the parameters keep what was loaded."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize = getattr(module, "initialize_parameters", None)
        if initialize is not None:
            initialize()


class GroundingDinoModel(GroundingDinoPreTrainedModel):
    """Everything up to the queries after the last decoder layer, without the heads on top."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        own = cast(AnyGroundingDinoConfig, self.config)
        self.backbone = ImageBackbone(own)
        self.input_proj_vision = build_input_projections(self.backbone.conv_encoder.model.channels, own)
        self.text_backbone = build_text_backbone(own)
        self.text_projection = nn.Linear(own.get_text_config().hidden_size, own.d_model)
        self.level_embed = nn.Parameter(torch.empty(own.num_feature_levels, own.d_model))
        self.encoder = FeatureEnhancer(own)
        self.enc_output = nn.Linear(own.d_model, own.d_model)
        self.enc_output_norm = nn.LayerNorm(own.d_model, own.layer_norm_eps)
        self.encoder_output_class_embed = ContrastiveHead(own)
        self.encoder_output_bbox_embed = BoxHead(own.d_model, epsilon=None)
        if own.embedding_init_target:
            self.query_position_embeddings = nn.Embedding(own.num_queries, own.d_model)
        self.decoder = CrossModalityDecoder(own)
        self.phrase_memory = PhraseMemory()
        self.post_init()

    def initialize_parameters(self) -> None:
        """Normal level embeddings and queries, Xavier projections, as the original."""
        init.normal_(self.level_embed)
        init.xavier_uniform_(self.text_projection.weight)
        init.xavier_uniform_(self.enc_output.weight)
        for convolution in self.input_proj_vision.modules():
            if isinstance(convolution, nn.Conv2d):
                init.xavier_uniform_(convolution.weight)
        if self.config.embedding_init_target:
            init.normal_(self.query_position_embeddings.weight)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of the text encoder."""
        return self.text_backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings of the text encoder."""
        self.text_backbone.set_input_embeddings(value)

    def freeze_backbone(self) -> None:
        """Keep the image backbone as it is in training."""
        self.backbone.conv_encoder.set_requires_grad(False)

    def unfreeze_backbone(self) -> None:
        """Train the image backbone."""
        self.backbone.conv_encoder.set_requires_grad(True)

    def train(self, mode: bool = True) -> GroundingDinoModel:
        """As in torch; what is kept of the text encoder's work is forgotten, as weights may have changed before."""
        self.phrase_memory.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> GroundingDinoModel:
        self.phrase_memory.clear()  # a move to another type and back may end at the same addresses
        return super()._apply(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        encoded_image: EncodedImage | None = None,
        noised: NoisedQueries | None = None,
    ) -> GroundingDinoModelOutput:
        """Find the prompt's words in the images.

        Args:
            pixel_values: `(B, 3, H, W)`, normalised images at the top left of the canvas.
            input_ids: `(B, T)`, prompts as the processor encodes them; any length.
            token_type_ids: `(B, T)`; zeros when left out.
            attention_mask: `(B, T)`, 1 on tokens, 0 on padding; ones when left out.
            pixel_mask: `(B, H, W)`, 1 on each image's own pixels; ones when left out.
            output_attentions: return attention weights; the attention is then computed step by step.
            output_hidden_states: return the states of every layer.
            encoded_image: what `encode_image` gave, for B prompts, instead of `pixel_values` and `pixel_mask`.
            noised: denoising queries that are decoded beside, in training.

        Raises:
            ValueError: not exactly one of `pixel_values` and `encoded_image`, no `input_ids`, or their numbers differ.
        """
        record = wanted(self.config, output_attentions, output_hidden_states)
        prompt = Prompt.of(input_ids, token_type_ids, attention_mask)
        image_BSD, image = encoded_images(self.encode_image, pixel_values, pixel_mask, encoded_image, prompt)
        text_BTD, text = self._text(prompt)
        enhanced = self.encoder(image_BSD, text_BTD, image, text, record)
        first_stage = self._select_queries(enhanced.image_BSD, enhanced.text_BTD, image, text)
        memory = Memory(enhanced.image_BSD, enhanced.text_BTD, image, text, first_stage.may_attend_B11Q)
        decoded, denoised = self._decode(first_stage, memory, noised, record)
        decoding = Decoding(enhanced, first_stage, decoded, denoised)
        fields = {}
        if record.states:
            fields = hidden_states(decoding, image, self.decoder.layer_norm, self.encoder_output_bbox_embed)
        return model_output(decoding, self.config.max_text_len, **fields)

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> EncodedImage:
        """All that depends on the images alone, which several prompts can share: see `EncodedImage`.

        Args:
            pixel_values: `(B, 3, H, W)`, normalised images at the top left of the canvas.
            pixel_mask: `(B, H, W)`, 1 on each image's own pixels; ones when left out.

        Raises:
            ValueError: the mask has another size than the pixels, or leaves an image no pixel.
        """
        pixel_values = pixel_values.to(self.dtype)
        return EncodedImage(*padded_pyramid(pixel_values, pixel_mask, self._pyramid, self._image_positions))

    def _pyramid(self, pixel_values: Tensor) -> list[Tensor]:
        return feature_pyramid(self.backbone, self.input_proj_vision, pixel_values)

    def _image_positions(self, sizes: tuple[tuple[Size, ...], ...], spatial_shapes: tuple[Size, ...]) -> Tensor:
        embed, device = self.backbone.position_embedding, self.level_embed.device
        levels = zip(sizes, spatial_shapes, self.level_embed, strict=True)
        return torch.cat([embed(own, padded, device) + level for own, padded, level in levels], 1)

    def _text(self, prompt: Prompt) -> tuple[Tensor, TextContext]:
        special_token_ids = self.config.phrase_boundary_token_ids
        may_attend_BTT, position_ids = sub_sentence_attention(prompt.input_ids, special_token_ids)
        network = TextNetwork(self.text_backbone, self.text_projection, special_token_ids)
        text_BTD = self.phrase_memory.features(network, prompt.input_ids, prompt.token_type_ids)
        positions = text_position_embedding(position_ids, self.config.d_model).to(text_BTD.dtype)
        return text_BTD, TextContext(may_attend_BTT[:, None], prompt.may_attend_BT[:, None, None], positions)

    def _select_queries(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext
    ) -> FirstStage:
        """Section 3.3 of the paper."""
        proposals = grid_proposals(image)
        kept_BSD = image_BSD.masked_fill(proposals.keeps_features_BS1.logical_not(), 0.0)
        features_BSD = self.enc_output_norm(self.enc_output(kept_BSD))
        all_logits = self.encoder_output_class_embed(features_BSD, text_BTD, text.may_attend_B11T)
        chosen = select_queries(all_logits, image, self.config.num_queries)
        chosen_BQD = gather_tokens(features_BSD, chosen.indices_BQ)
        boxes = gather_tokens(proposals.boxes_BS4, chosen.indices_BQ)
        logits = gather_tokens(all_logits, chosen.indices_BQ)
        if chosen.may_attend_BQ is not None:
            logits = logits.masked_fill(chosen.may_attend_BQ.logical_not()[..., None], -torch.inf)
        return FirstStage(
            content_BQD=self._query_content(chosen_BQD),
            boxes_BQ4=self.encoder_output_bbox_embed.refine(chosen_BQD, boxes),
            logits_BQT=logits,
            may_attend_B11Q=None if chosen.may_attend_BQ is None else chosen.may_attend_BQ[:, None, None],
            all_logits_BST=all_logits,
            features_BSD=features_BSD,
        )

    def _decode(
        self, first_stage: FirstStage, memory: Memory, noised: NoisedQueries | None, record: Recording
    ) -> tuple[DecoderOutput, DecoderOutput | None]:
        """The matching queries, and the denoising queries beside them, after every decoder layer."""
        start = (first_stage.content_BQD, first_stage.boxes_BQ4.detach(), memory)
        if noised is None:
            return self.decoder(*start, record.weights), None
        denoised, decoded = noised.split(self.decoder(*noised.before(*start), record.weights))
        return decoded, denoised

    def _query_content(self, chosen_BQD: Tensor) -> Tensor:
        if self.config.embedding_init_target:
            return self.query_position_embeddings.weight.expand(chosen_BQD.shape[0], -1, -1)
        return chosen_BQD.detach()


class GroundingDinoForObjectDetection(DenoisingPreTrainedModel, GroundingDinoPreTrainedModel):
    """The detector: a box and a similarity to every word from every query.

    Constructed from a configuration of either model type; `from_pretrained` takes a repo of either.

    `torch.compile(model, fullgraph=True, dynamic=False)` reads images of one size at a time, with a graph for each size
    and prompt length, `torch.compiler.config.recompile_limit` of them (8); `size_divisor` and `pad_to_multiple_of` of
    the processor keep these few. The loss stays out of the graph: leave `fullgraph` out to train with `labels`, where
    other numbers of boxes make further graphs.
    """

    accepts_loss_kwargs = True  # asks `Trainer` for `num_items_in_batch`

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        own = cast(AnyGroundingDinoConfig, self.config)
        self._tied_weights_keys = tied_heads(own)
        self.model = GroundingDinoModel(own)
        self.bbox_embed, self.class_embed = build_heads(own, own.logit_epsilon_heads)
        self.denoising = None
        self.model.decoder.bbox_embed, self.model.decoder.class_embed = build_heads(own, own.logit_epsilon)
        self.post_init()

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Make decoder head i and head i one tensor, and all heads one where the configuration shares them.

        Raises:
            ValueError: a checkpoint holds different heads although the configuration shares them.
        """
        if missing_keys is not None:
            refuse_untied_heads(self, missing_keys)
        super().tie_weights(missing_keys, recompute_mapping)

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> EncodedImage:
        """As `GroundingDinoModel.encode_image`."""
        return self.model.encode_image(pixel_values, pixel_mask)

    @can_return_tuple
    def forward(  # noqa: PLR0913 - the arguments of transformers, and three more
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_boxes: Tensor | float | None = None,
        encoded_image: EncodedImage | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> GroundingDinoObjectDetectionOutput:
        """Detect the prompt's words in the images, and with labels compute the loss.

        Arguments beyond these are those of `GroundingDinoModel.forward`.

        Args:
            labels: a dict an image: `boxes (n, 4)`, (cx, cy, w, h) in [0, 1] of the un-padded image, and either
                `class_labels (n,)`, which phrase of the prompt each box is, or `token_mask (n, T)`, which tokens it
                is called by. n may be 0. An int `noise_seed` fixes what `enable_denoising` draws for the image.
            num_boxes: what the loss is divided by; left out, `losses.count_boxes` of this batch. A loop that
                accumulates gradients gives the number for its whole step.
            num_items_in_batch: the same under the name, and as the whole number, that `transformers.Trainer` gives.

        Raises:
            ValueError: malformed labels, naming the image and the box, or as `GroundingDinoModel.forward`.
        """
        lesson = None if labels is None else prepare_lesson(labels, input_ids, self.config, self.denoising)
        inputs = (pixel_values, input_ids, token_type_ids, attention_mask, pixel_mask)
        options = (output_attentions, output_hidden_states, encoded_image, None if lesson is None else lesson.noised)
        base: GroundingDinoModelOutput = self.model(*inputs, *options, return_dict=True)
        prompt = Prompt.of(input_ids, token_type_ids, attention_mask)
        layers = range(self.config.decoder_layers)[0 if lesson is not None else -1 :]
        heads = (self.bbox_embed, self.class_embed)
        predictions = Predictions(*predict_layers(layers, *heads, head_inputs(base, prompt.may_attend_BT)))
        width = self.config.max_text_len
        *auxiliary, (logits, boxes) = ((pad_logits(z, width), b) for z, b in zip(*predictions, strict=True))
        loss, terms = None, None
        if lesson is not None:
            if num_items_in_batch is not None:
                num_boxes = torch.as_tensor(num_items_in_batch).clamp(min=1)
            loss, terms = lesson_loss(lesson, predictions, base, prompt.may_attend_BT, heads, self.config, num_boxes)
        wanted = lesson is not None and self.config.auxiliary_loss
        return GroundingDinoObjectDetectionOutput(
            loss=loss,
            loss_dict=terms,
            logits=logits,
            pred_boxes=boxes,
            auxiliary_outputs=[{"logits": z, "pred_boxes": b} for z, b in auxiliary] if wanted else None,
            input_ids=prompt.input_ids,
            **common_fields(base),
        )


class MMGroundingDinoModel(GroundingDinoModel):
    """`GroundingDinoModel` for the "mm-grounding-dino" type."""

    config_class = MMGroundingDinoConfig


class MMGroundingDinoForObjectDetection(GroundingDinoForObjectDetection):
    """`GroundingDinoForObjectDetection` for the "mm-grounding-dino" type (MM-Grounding-DINO, LLMDet)."""

    config_class = MMGroundingDinoConfig


_TWINS = (
    (GroundingDinoModel, MMGroundingDinoModel),
    (GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection),
)


def _class_for(
    cls: type[GroundingDinoPreTrainedModel], config: AnyGroundingDinoConfig
) -> type[GroundingDinoPreTrainedModel]:
    """The class of a pair that belongs to the configuration; `cls` itself where it is of no pair."""
    for pair in _TWINS:
        if cls in pair:
            return pair[isinstance(config, MMGroundingDinoConfig)]
    return cls
