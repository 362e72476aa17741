"""The architecture, validated: every option works or is refused here with a message that names it."""

from __future__ import annotations

from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from ...losses.weights import LOSS_PRESETS, LossWeights
from ..configuration import FamilyConfig
from ..detector import KEYS_TO_IGNORE_AT_INFERENCE

BERT_SPECIAL_TOKEN_IDS = (101, 102, 1012, 1029)
GROUP_NORM_GROUPS = 32
POSITION_EMBEDDINGS = ("sine", "learned")
POSITIVE_OPTIONS = (
    "d_model",
    "num_queries",
    "num_feature_levels",
    "decoder_layers",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_n_points",
    "decoder_n_points",
    "max_text_len",
)
RATE_OPTIONS = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "text_enhancer_dropout",
    "fusion_droppath",
    "fusion_dropout",
)
ABOVE_0_OPTIONS = ("positional_embedding_temperature", "layer_norm_eps")
NOT_NEGATIVE_OPTIONS = (
    "encoder_layers",
    "class_cost",
    "bbox_cost",
    "giou_cost",
    "class_loss_coefficient",
    "bbox_loss_coefficient",
    "giou_loss_coefficient",
)
EPSILON_OPTIONS = ("logit_epsilon", "logit_epsilon_heads")
STOCK_EPSILON = 1e-5
MOST_LAYERS = 1000


class _GroundingDinoOptions(FamilyConfig):
    """What both model types share beyond the fields that transformers gives them."""

    keys_to_ignore_at_inference = KEYS_TO_IGNORE_AT_INFERENCE
    biased_class_heads = False
    """Whether class logits are scaled by the width and have a bias, as in MM-Grounding-DINO."""

    def validate_architecture(self: Any) -> None:
        """Refuse what the network cannot be built from. Runs at construction and before saving."""
        reasons = [
            *self._numbers_without_end(),
            *self._impossible_numbers(),
            *self._impossible_widths(),
            *self._unsupported_options(),
        ]
        for refused, reason in reasons:
            if refused:
                raise ValueError(reason)

    def _numbers_without_end(self: Any) -> list[tuple[bool, str]]:
        """What no machine holds, or builds within hours; a file that others wrote may say so."""
        backbone, text = self.backbone_config, self.get_text_config()
        depths = {
            **{name: getattr(self, name) for name in ("encoder_layers", "decoder_layers", "num_feature_levels")},
            "text_config.num_hidden_layers": getattr(text, "num_hidden_layers", 0),
            "backbone_config.num_hidden_layers": getattr(backbone, "num_hidden_layers", 0),
            **{f"backbone_config.depths.{i}": depth for i, depth in enumerate(getattr(backbone, "depths", None) or ())},
        }
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        return [
            *(
                (not abs(value) < 2**63, f"`{name}` must be a number of at most 64 bits.")
                for name, value in numbers.items()
            ),
            *((depth > MOST_LAYERS, f"`{name}` must be at most {MOST_LAYERS}.") for name, depth in depths.items()),
        ]

    def _impossible_numbers(self: Any) -> list[tuple[bool, str]]:
        positive = [(getattr(self, name) < 1, f"`{name}` must be at least 1.") for name in POSITIVE_OPTIONS]
        rates = [(not 0 <= getattr(self, name) < 1, f"`{name}` must be in [0, 1).") for name in RATE_OPTIONS]
        above_0 = [(not getattr(self, name) > 0, f"`{name}` must be above 0.") for name in ABOVE_0_OPTIONS]
        from_0 = [(not getattr(self, name) >= 0, f"`{name}` must not be negative.") for name in NOT_NEGATIVE_OPTIONS]
        epsilons = [(not 0 < getattr(self, name) < 0.5, f"`{name}` must be in (0, 0.5).") for name in EPSILON_OPTIONS]
        alpha = (not 0 <= self.focal_alpha <= 1, "`focal_alpha` must be in [0, 1].")
        known = self.activation_function in ACT2FN
        return [
            *positive,
            *rates,
            *above_0,
            *from_0,
            *epsilons,
            alpha,
            (not known, f"`activation_function` {self.activation_function!r} is unknown."),
        ]

    def _impossible_widths(self: Any) -> list[tuple[bool, str]]:
        encoder, decoder = self.encoder_attention_heads, self.decoder_attention_heads
        stages = len(self.backbone_config.out_indices or ())
        return [
            (encoder % 2 != 0, f"`encoder_attention_heads` ({encoder}) must be even."),
            (
                self.d_model % encoder != 0,
                f"`d_model` ({self.d_model}) must be a multiple of `encoder_attention_heads` ({encoder}).",
            ),
            (
                self.d_model % decoder != 0,
                f"`d_model` ({self.d_model}) must be a multiple of `decoder_attention_heads` ({decoder}).",
            ),
            (
                self.fusion_dim % max(self.text_attention_heads, 1) != 0,
                f"Half of `encoder_ffn_dim` ({self.encoder_ffn_dim}) must be a multiple of half of"
                f" `encoder_attention_heads` ({encoder}).",
            ),
            (
                self.d_model % GROUP_NORM_GROUPS != 0,
                f"`d_model` ({self.d_model}) must be a multiple of {GROUP_NORM_GROUPS}.",
            ),
            (
                self.num_feature_levels < stages,
                f"`num_feature_levels` ({self.num_feature_levels}) is less than the {stages} stages that"
                " `backbone_config.out_indices` asks for; drop stages there.",
            ),
        ]

    def _unsupported_options(self: Any) -> list[tuple[bool, str]]:
        return [
            (
                not self.two_stage,
                "`two_stage=False` is not supported: the queries are selected from the image.",
            ),
            (
                getattr(self, "two_stage_bbox_embed_share", False),
                "`two_stage_bbox_embed_share=True` is not supported: the encoder's proposals have their own head.",
            ),
            (
                not self.tie_word_embeddings,
                "`tie_word_embeddings=False` is not supported: the decoder refines with its own heads.",
            ),
            (self.query_dim != 4, f"`query_dim` must be 4 (a box), not {self.query_dim}."),
            (
                self.position_embedding_type not in POSITION_EMBEDDINGS,
                f"`position_embedding_type` is {self.position_embedding_type!r}, not one of {POSITION_EMBEDDINGS}.",
            ),
            (
                not all(type(i) is int and 0 <= i < 2**63 for i in self.phrase_boundary_token_ids),
                f"`phrase_boundary_token_ids` are {self.phrase_boundary_token_ids}, which are no ids of tokens.",
            ),
            (
                len(self.phrase_boundary_token_ids) < 2,
                "`phrase_boundary_token_ids` must hold at least the two ids that enclose a prompt.",
            ),
        ]

    def validate_loss(self: Any) -> None:
        """Refuse loss weights that the preset would silently override."""
        if self.loss_preset == "custom":
            return
        if self.loss_preset not in LOSS_PRESETS:
            raise ValueError(f"`loss_preset` must be one of {[*LOSS_PRESETS, 'custom']}, not {self.loss_preset!r}.")
        if self._custom_loss_weights() not in (LOSS_PRESETS["paper"], LOSS_PRESETS[self.loss_preset]):
            raise ValueError(
                "`class_cost`, `bbox_cost`, `giou_cost` and the loss coefficients count with `loss_preset='custom'`"
                f" only; the preset {self.loss_preset!r} sets them itself."
            )

    def _custom_loss_weights(self: Any) -> LossWeights:
        return LossWeights(
            match_class=self.class_cost,
            match_l1=self.bbox_cost,
            match_giou=self.giou_cost,
            loss_class=self.class_loss_coefficient,
            loss_l1=self.bbox_loss_coefficient,
            loss_giou=self.giou_loss_coefficient,
        )

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of matching and loss that `loss_preset` stands for."""
        preset: str = self.loss_preset  # type: ignore[attr-defined]
        return LOSS_PRESETS.get(preset, self._custom_loss_weights())

    @property
    def clamps_apart(self: Any) -> bool:
        """Whether `heads.logit` clamps as the original; with the epsilons of transformers it gives their very bits."""
        return any(getattr(self, name) != STOCK_EPSILON for name in EPSILON_OPTIONS)

    @property
    def fusion_dim(self: Any) -> int:
        """Width of the fusion's attention and of the text enhancer's feed-forward layer."""
        return int(self.encoder_ffn_dim) // 2

    @property
    def text_attention_heads(self: Any) -> int:
        """Heads of the fusion's and the text enhancer's attention."""
        return int(self.encoder_attention_heads) // 2


@strict
class GroundingDinoConfig(_GroundingDinoOptions, transformers.GroundingDinoConfig):
    """Configuration of Grounding DINO (arXiv 2303.05499), `model_type` "grounding-dino".

    Every field of `transformers.GroundingDinoConfig` is here under its own name. Three meanings differ, in training
    alone: `auxiliary_loss` says whether `auxiliary_outputs` are returned (the loss always supervises every layer),
    `two_stage=False` is refused, and the loss weights count only with `loss_preset="custom"`.

    Additional fields:
        loss_preset: "paper" (match 1/5/2, loss 2/5/2), "mmdet" (match 2/5/2, loss 1/5/2) or "custom".
        class_loss_coefficient: weight of the classification loss under "custom".
        phrase_boundary_token_ids: token ids that end a block of text attention; [CLS], [SEP], "." and "?" of BERT.
        logit_epsilon: how near to 0 and 1 a box counts where the next decoder layer refines it, in (0, 0.5).
        logit_epsilon_heads: the same where the heads predict from it. transformers has 1e-5 for both, the original
            1e-3 for both, mmdetection 1e-3 and 1e-5; conversion sets what the weights were trained with. Unless both
            are 1e-5, they clamp as the original and mmdetection do: `x` and `1 - x` each from below.

    Raises:
        StrictDataclassError: (of huggingface_hub) an option that cannot be built, named.
    """

    model_type = "grounding-dino"

    loss_preset: str = "paper"
    class_loss_coefficient: float = 2.0
    phrase_boundary_token_ids: list[int] | tuple[int, ...] = BERT_SPECIAL_TOKEN_IDS
    logit_epsilon: float = STOCK_EPSILON
    logit_epsilon_heads: float = STOCK_EPSILON


@strict
class MMGroundingDinoConfig(_GroundingDinoOptions, transformers.MMGroundingDinoConfig):
    """Configuration of MM-Grounding-DINO (arXiv 2401.02361) and LLMDet, `model_type` "mm-grounding-dino".

    As `GroundingDinoConfig`, with scaled and biased class logits, heads that need not be shared
    (`decoder_bbox_embed_share`, `decoder_cls_embed_share`), and the "mmdet" loss preset by default.
    """

    model_type = "mm-grounding-dino"
    biased_class_heads = True

    # transformers before 5.23 has no such fields, though its repos do.
    decoder_bbox_embed_share: bool = True
    decoder_cls_embed_share: bool = True
    loss_preset: str = "mmdet"
    class_loss_coefficient: float = 2.0
    phrase_boundary_token_ids: list[int] | tuple[int, ...] = BERT_SPECIAL_TOKEN_IDS
    logit_epsilon: float = STOCK_EPSILON
    logit_epsilon_heads: float = STOCK_EPSILON


AnyGroundingDinoConfig = GroundingDinoConfig | MMGroundingDinoConfig
