"""Grounding DINO and MM-Grounding-DINO: one network for both, after figure 3 of arXiv 2303.05499."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ...layers.backbone import ImageBackbone, build_input_projections, feature_pyramid
from ...layers.context import ImageContext, Size, TextContext
from ...layers.encoded_image import EncodedImage, encode_by_size, flatten_levels
from ...layers.heads import BoxHead, ContrastiveHead
from ...layers.positions import LearnedPositionEmbedding, SinePositionEmbedding, text_position_embedding
from ...layers.text_encoder import build_text_backbone
from ...losses.denoising import NoisedQueries
from ...processing.prompts import sub_sentence_attention
from ..detector import (
    EncodedText,
    GroundingDinoModelOutput,
    GroundingDinoObjectDetectionOutput,
    TextInputs,
    common_fields,
)
from ..pretrained import DetectorPreTrainedModel
from ..text_features import TextFeatureCache, TextNetwork
from .configuration_grounding_dino import (
    GROUP_NORM_GROUPS,
    AnyGroundingDinoConfig,
    GroundingDinoConfig,
    MMGroundingDinoConfig,
)
from .decoder import CrossModalityDecoder, DecoderInputs, with_denoising
from .feature_enhancer import FeatureEnhancer
from .heads import build_heads, head_inputs, predict_layers, refuse_untied_heads, tied_heads
from .label_embedding import DenoisingPreTrainedModel
from .loss import BatchTargets, compute_loss, prepare_targets
from .outputs import hidden_states, model_output
from .query_selection import EncoderProposals, gather_tokens, grid_proposals, select_queries


class GroundingDinoPreTrainedModel(DetectorPreTrainedModel):
    """What both model types share."""

    config_class: type[AnyGroundingDinoConfig] = GroundingDinoConfig
    _no_split_modules = ["EnhancerLayer", "DecoderLayer", "SwinStage", "BertLayer"]
    _keys_to_ignore_on_load_unexpected = [r"relative_position_index$"]
    _keys_to_ignore_on_load_missing = [r"swin\.layernorm\."]


class GroundingDinoModel(GroundingDinoPreTrainedModel):
    """Everything up to the queries after the last decoder layer, without the heads on top."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        own = cast(AnyGroundingDinoConfig, self.config)
        width, levels = own.d_model, own.num_feature_levels
        positions: SinePositionEmbedding | LearnedPositionEmbedding = LearnedPositionEmbedding(width)
        if own.position_embedding_type == "sine":
            positions = SinePositionEmbedding(width, own.positional_embedding_temperature)
        self.backbone = ImageBackbone(cast(PretrainedConfig, own.backbone_config), positions)
        channels = self.backbone.conv_encoder.model.channels
        self.input_proj_vision = build_input_projections(channels, width, levels, GROUP_NORM_GROUPS)
        self.text_backbone = build_text_backbone(own.get_text_config())
        self.text_projection = nn.Linear(own.get_text_config().hidden_size, width)
        self.level_embed = nn.Parameter(torch.empty(levels, width))
        self.encoder = FeatureEnhancer(own)
        self.enc_output = nn.Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width, own.layer_norm_eps)
        self.encoder_output_class_embed = ContrastiveHead(own.biased_class_heads)
        self.encoder_output_bbox_embed = BoxHead(width, epsilon=None)
        if own.embedding_init_target:
            self.query_position_embeddings = nn.Embedding(own.num_queries, width)
        self.decoder = CrossModalityDecoder(own)
        self.text_feature_cache = TextFeatureCache()
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
        self.text_feature_cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> GroundingDinoModel:
        self.text_feature_cache.clear()  # a move to another type and back may end at the same addresses
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
        text_inputs = TextInputs.from_ids(input_ids, attention_mask, token_type_ids)
        if encoded_image is None and pixel_values is not None:
            encoded_image = self.encode_image(pixel_values, pixel_mask)
        elif encoded_image is None or pixel_values is not None or pixel_mask is not None:
            raise ValueError("Give `pixel_values`, with `pixel_mask`, or `encoded_image`, which has both inside.")
        if encoded_image.num_images != (prompts := len(text_inputs.input_ids)):
            images = f"{encoded_image.num_images} images for {prompts} prompts"
            raise ValueError(f"There are {images}: use `repeat` or `select` of `encoded_image`.")
        image_BSD, image = flatten_levels(encoded_image, self._image_positions)
        encoded_text = self.encode_text(*text_inputs)
        return self.decode(image_BSD, image, encoded_text, output_attentions, output_hidden_states, noised)

    def decode(
        self,
        image_BSD: Tensor,
        image: ImageContext,
        encoded_text: EncodedText,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        noised: NoisedQueries | None = None,
    ) -> GroundingDinoModelOutput:
        """All that depends on images and words together; the arguments are those of `forward`."""
        config = self.config
        attentions = bool(config.output_attentions if output_attentions is None else output_attentions)
        states = bool(config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        text_BTD, text = encoded_text
        enhanced = self.encoder(image_BSD, text_BTD, image, text, attentions, states)
        proposals = self._select_queries(enhanced.image_BSD, enhanced.text_BTD, image, text)
        inputs = DecoderInputs(enhanced.image_BSD, enhanced.text_BTD, image, text, proposals.may_attend_B11Q)
        start = (proposals.content_BQD, proposals.boxes_BQ4.detach(), inputs)
        if noised is None:
            decoded, denoised = self.decoder(*start, attentions), None
        else:
            decoded = self.decoder(*with_denoising(*start, noised), attentions)
            count = noised.groups_BN.shape[1]
            decoded, denoised = decoded.select(slice(count, None)), decoded.select(slice(None, count))
        on_demand = {}
        if states:
            on_demand = hidden_states(
                enhanced, proposals, decoded, image, self.decoder.layer_norm, self.encoder_output_bbox_embed
            )
        return model_output(enhanced, proposals, decoded, denoised, config.max_text_len, **on_demand)

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> EncodedImage:
        """All that depends on the images alone, which several prompts can share: see `EncodedImage`.

        Args:
            pixel_values: `(B, 3, H, W)`, normalised images at the top left of the canvas.
            pixel_mask: `(B, H, W)`, 1 on each image's own pixels; ones when left out.

        Raises:
            ValueError: the mask has another size than the pixels, or leaves an image no pixel.
        """
        return encode_by_size(pixel_values.to(self.dtype), pixel_mask, self._pyramid)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> EncodedText:
        """All that depends on the words alone; phrases that were read before come from `text_feature_cache`.

        Args:
            input_ids: `(B, T)`, prompts as the processor encodes them.
            attention_mask: `(B, T)`, 1 on tokens, 0 on padding; ones when left out.
            token_type_ids: `(B, T)`; zeros when left out.

        Raises:
            ValueError: a phrase is longer than the text encoder has positions for.
        """
        special_token_ids = self.config.phrase_boundary_token_ids
        real_BT = TextInputs.from_ids(input_ids, attention_mask).attention_mask
        may_attend_BTT, position_ids = sub_sentence_attention(input_ids, special_token_ids)
        network = TextNetwork(self.text_backbone, self.text_projection, special_token_ids)
        text_BTD = self.text_feature_cache.features(network, input_ids, token_type_ids)
        positions = text_position_embedding(position_ids, self.config.d_model).to(text_BTD.dtype)
        return EncodedText(text_BTD, TextContext(may_attend_BTT[:, None], real_BT[:, None, None], positions))

    def _pyramid(self, pixel_values: Tensor) -> list[Tensor]:
        return feature_pyramid(self.backbone, self.input_proj_vision, pixel_values)

    def _image_positions(self, sizes: tuple[tuple[Size, ...], ...], spatial_shapes: tuple[Size, ...]) -> Tensor:
        embed, device = self.backbone.position_embedding, self.level_embed.device
        levels = zip(sizes, spatial_shapes, self.level_embed, strict=True)
        return torch.cat([embed(own, padded, device) + level for own, padded, level in levels], 1)

    def _select_queries(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext
    ) -> EncoderProposals:
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
        return EncoderProposals(
            content_BQD=self._query_content(chosen_BQD),
            boxes_BQ4=self.encoder_output_bbox_embed.refine(chosen_BQD, boxes),
            logits_BQT=logits,
            may_attend_B11Q=None if chosen.may_attend_BQ is None else chosen.may_attend_BQ[:, None, None],
            all_logits_BST=all_logits,
            features_BSD=features_BSD,
        )

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

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> EncodedText:
        """As `GroundingDinoModel.encode_text`."""
        return self.model.encode_text(input_ids, attention_mask, token_type_ids)

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
            num_boxes: what the loss is divided by; left out, `losses.criterion.count_boxes` of this batch. A loop that
                accumulates gradients gives the number for its whole step.
            num_items_in_batch: the same under the name, and as the whole number, that `transformers.Trainer` gives.

        Raises:
            ValueError: malformed labels, naming the image and the box, or as `GroundingDinoModel.forward`.
        """
        targets = None if labels is None else self.prepare_targets(labels, input_ids)
        inputs = (pixel_values, input_ids, token_type_ids, attention_mask, pixel_mask)
        noised = None if targets is None else targets.noised
        options = (output_attentions, output_hidden_states, encoded_image, noised)
        base: GroundingDinoModelOutput = self.model(*inputs, *options, return_dict=True)
        outputs = self._predict(base, TextInputs.from_ids(input_ids, attention_mask), targets)
        if targets is None:
            return outputs
        if num_items_in_batch is not None:
            num_boxes = torch.as_tensor(num_items_in_batch).clamp(min=1)
        loss, terms = self.compute_loss(outputs, targets, num_boxes)
        fields = dict(outputs, denoising_outputs=None)
        if not self.config.auxiliary_loss:
            fields["auxiliary_outputs"] = None
        # Made anew, since what is set later comes last, and the loss has to be first.
        return GroundingDinoObjectDetectionOutput(**fields | {"loss": loss, "loss_dict": terms})

    def _predict(
        self, base: GroundingDinoModelOutput, text_inputs: TextInputs, targets: BatchTargets | None
    ) -> GroundingDinoObjectDetectionOutput:
        """What the heads say after the last layer; with targets after every layer, and of the denoising queries."""
        heads, width = (self.bbox_embed, self.class_embed), self.config.max_text_len
        read, layers = head_inputs(base, text_inputs.attention_mask), range(self.config.decoder_layers)
        *auxiliary, last = predict_layers(layers[-1:] if targets is None else layers, *heads, read, width)
        denoising_outputs = None
        if targets is not None and targets.noised is not None:
            hidden, references = base.denoising_hidden_states, base.denoising_reference_points
            assert hidden is not None and references is not None
            read = read._replace(hidden_BKQD=hidden, references_BKQ4=references, query_mask_BQ=targets.noised.mask_BN)
            denoising_outputs = predict_layers(layers, *heads, read)
        return GroundingDinoObjectDetectionOutput(
            logits=last["logits"],
            pred_boxes=last["pred_boxes"],
            auxiliary_outputs=None if targets is None else auxiliary,
            denoising_outputs=denoising_outputs,
            input_ids=text_inputs.input_ids,
            **common_fields(base),
        )

    def prepare_targets(self, labels: Sequence[Mapping[str, Any]], input_ids: Tensor | None) -> BatchTargets:
        """Check the labels of a batch; in training with denoising queries, draw these.

        Raises:
            ValueError: malformed labels, naming the image and the box; or there are no `input_ids`.
        """
        return prepare_targets(labels, input_ids, self.config, self.denoising)

    def compute_loss(
        self,
        outputs: GroundingDinoObjectDetectionOutput,
        targets: BatchTargets,
        num_boxes: Tensor | float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what `outputs` hold, over `num_boxes` or else the batch's own, and its terms before weighting."""
        return compute_loss(outputs, targets, self.config, num_boxes)


class MMGroundingDinoModel(GroundingDinoModel):
    """`GroundingDinoModel` for the "mm-grounding-dino" type."""

    config_class = MMGroundingDinoConfig


class MMGroundingDinoForObjectDetection(GroundingDinoForObjectDetection):
    """`GroundingDinoForObjectDetection` for the "mm-grounding-dino" type (MM-Grounding-DINO, LLMDet)."""

    config_class = MMGroundingDinoConfig
