"""What transformers tests of every model, run on the models of this package: see scripts/upstream_tests.py.

`ModelTesterMixin` and `ConfigTester` come from the source distribution of transformers. Sizes and inputs are those of
its own tests for the two model types, but that prompts are closed and labels lie inside the picture: it has neither,
and this package reads the one and refuses the other.
"""

from __future__ import annotations

import inspect
import unittest
from typing import Any

import torch
from transformers import SwinConfig

import hf_grounding_dino as own
from hf_grounding_dino.models.grounding_dino.modeling_grounding_dino import MMGroundingDinoModel

from ..test_configuration_common import ConfigTester
from ..test_modeling_common import ModelTesterMixin, floats_tensor

PROMPT = [101, 7, 1012, 8, 9, 1012, 102]
SIDE = 98
IMAGE_TOKENS = sum((-(-SIDE // stride)) ** 2 for stride in (8, 16, 32, 64))


class Tester:
    """Makes the configuration and the inputs of one model type."""

    batch_size, image_size, max_text_len = 4, SIDE, len(PROMPT)
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    num_queries, num_feature_levels, encoder_n_points, decoder_n_points = 2, 4, 2, 6
    is_training = True
    encoder_seq_length_vision = IMAGE_TOKENS
    encoder_seq_length_text = len(PROMPT)
    decoder_seq_length = num_queries

    def __init__(self, config_class: Any) -> None:
        self.config_class = config_class

    def get_config(self) -> Any:
        swin = SwinConfig(
            window_size=7, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, image_size=SIDE, out_indices=[2, 3, 4]
        )
        bert = {
            "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
            "max_position_embeddings": 8, "vocab_size": 1100, "model_type": "bert",
        }  # fmt: skip
        return self.config_class(
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            decoder_layers=self.num_hidden_layers,
            encoder_attention_heads=self.num_attention_heads,
            decoder_attention_heads=self.num_attention_heads,
            encoder_ffn_dim=4,
            decoder_ffn_dim=4,
            num_queries=self.num_queries,
            num_feature_levels=self.num_feature_levels,
            encoder_n_points=self.encoder_n_points,
            decoder_n_points=self.decoder_n_points,
            backbone_config=swin,
            max_text_len=self.max_text_len,
            text_config=bert,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        side = self.image_size
        return self.get_config(), {
            "pixel_values": floats_tensor([self.batch_size, 3, side, side]),
            "pixel_mask": torch.ones([self.batch_size, side, side]),
            "input_ids": torch.tensor([PROMPT] * self.batch_size),
        }

    def prepare_config_and_inputs(self) -> tuple[Any, dict[str, Any]]:
        return self.prepare_config_and_inputs_for_common()


class _Cases:
    """The common tests, with what the model types of this family do in their own way."""

    config_class: Any
    detector: Any
    all_model_classes: tuple[Any, ...]
    is_encoder_decoder = False  # its decoder takes no tokens
    test_missing_keys = False
    pipeline_model_mapping: dict[str, Any] = {}

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.model_tester = Tester(self.config_class)
        self.config_tester = ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality=False,
            common_properties=["d_model", "encoder_attention_heads", "decoder_attention_heads"],
        )

    def _prepare_for_class(self: Any, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)  # type: ignore[misc]
        if return_labels and model_class is self.detector:
            box = torch.tensor([[0.5, 0.5, 0.3, 0.4]]).repeat(8, 1)
            one = {"class_labels": torch.ones(8, dtype=torch.long), "boxes": box}
            inputs["labels"] = [one] * self.model_tester.batch_size
        return inputs

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def run_model(self: Any, model_class: Any, config: Any, inputs: Any, **options: Any) -> Any:
        model = model_class(config).eval()
        with torch.no_grad():
            return model(**self._prepare_for_class(inputs, model_class), **options)

    def test_shapes(self: Any) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs()
        for model_class in self.all_model_classes:
            self.assertEqual(self.run_model(model_class, config, inputs).last_hidden_state.shape, (4, 2, 32))
        model = self.detector(config).eval()
        output = model(**self._prepare_for_class(inputs, self.detector, return_labels=True))
        self.assertEqual(output.loss.shape, ())
        self.assertEqual(output.logits.shape, (4, 2, 7))
        self.assertEqual(output.pred_boxes.shape, (4, 2, 4))

    def test_forward_signature(self: Any) -> None:
        for model_class in self.all_model_classes:
            names = list(inspect.signature(model_class.forward).parameters)
            self.assertEqual(names[1:3], ["pixel_values", "input_ids"])

    def test_attention_outputs(self: Any) -> None:
        """Asked for in the call or in the configuration: as many as layers, of (heads, levels, points)."""
        heads, levels = 4, 4
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs()
            plain = self.run_model(model_class, config, inputs)
            called = self.run_model(model_class, config, inputs, output_attentions=True)
            config._attn_implementation = "eager"  # which transformers wants of who asks in the configuration
            config.output_attentions = True
            configured = self.run_model(model_class, config, inputs)
            for outputs in (called, configured):
                self.assertEqual(len(outputs), len(plain) + 2)
                deformable, decoder = outputs.encoder_attentions[-1], outputs.decoder_attentions
                self.assertEqual([len(kind) for kind in (deformable, decoder[0], decoder[-1])], [2, 2, 2])
                self.assertEqual(tuple(deformable[0].shape[-3:]), (heads, levels, 2))
                self.assertEqual(tuple(decoder[0][0].shape[-3:]), (heads, 2, 2))
                self.assertEqual(tuple(decoder[-1][0].shape[-3:]), (heads, levels, 6))

    def test_hidden_states_output(self: Any) -> None:
        """One more than layers, of both modalities and of the decoder."""
        tester = self.model_tester
        for model_class in self.all_model_classes:
            config, inputs = tester.prepare_config_and_inputs()
            called = self.run_model(model_class, config, inputs, output_hidden_states=True)
            config.output_hidden_states = True
            configured = self.run_model(model_class, config, inputs)
            for outputs in (called, configured):
                for states, length in (
                    (outputs.encoder_vision_hidden_states, tester.encoder_seq_length_vision),
                    (outputs.encoder_text_hidden_states, tester.encoder_seq_length_text),
                    (outputs.decoder_hidden_states, tester.decoder_seq_length),
                ):
                    self.assertEqual(len(states), 3)
                    self.assertEqual(tuple(states[0].shape[-2:]), (length, 32))

    def test_retain_grad_hidden_states_attentions(self: Any) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs()
        outputs = self.all_model_classes[0](config)(**inputs, output_hidden_states=True, output_attentions=True)
        kept = [outputs.encoder_vision_hidden_states[0], outputs.encoder_attentions[0][0]]
        kept.append(outputs.decoder_attentions[-1][0])
        for tensor in kept:
            tensor.retain_grad()
        outputs[0].flatten()[0].backward()
        self.assertTrue(all(tensor.grad is not None for tensor in kept))

    def test_two_stage_training(self: Any) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs()
        config.auxiliary_loss = True
        self.detector(config).train()(**self._prepare_for_class(inputs, self.detector, True)).loss.backward()


class GroundingDinoCases(_Cases, ModelTesterMixin, unittest.TestCase):
    """Model type "grounding-dino"."""

    config_class = own.GroundingDinoConfig
    detector = own.GroundingDinoForObjectDetection
    all_model_classes = (own.GroundingDinoModel, own.GroundingDinoForObjectDetection)


class MMGroundingDinoCases(_Cases, ModelTesterMixin, unittest.TestCase):
    """Model type "mm-grounding-dino"."""

    config_class = own.MMGroundingDinoConfig
    detector = own.MMGroundingDinoForObjectDetection
    all_model_classes = (MMGroundingDinoModel, own.MMGroundingDinoForObjectDetection)
