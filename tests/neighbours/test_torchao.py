"""int8 weights by `torchao`: the same detections as float32, within what eight bits leave."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoPipeline, GroundingDinoProcessor
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS, NANO


def found(model: Any) -> dict[str, Any]:
    pipe = GroundingDinoPipeline(model, GroundingDinoProcessor.from_pretrained(NANO), device="cpu")
    results = pipe(Image.open(DEMO_IMAGE).convert("RGB"), candidate_labels=list(DEMO_LABELS), threshold=0.3)
    assert len({result["label"] for result in results}) == len(results) == len(DEMO_LABELS)
    return {result["label"]: result for result in results}


def test_int8_weights_find_the_same() -> None:
    """All linear layers but the box heads: each shape of the picture, scores within 0.02, sides within 2 pixels."""
    model = GroundingDinoForObjectDetection.from_pretrained(NANO).eval()
    expected = found(model)
    config = Int8WeightOnlyConfig()
    quantize_(model, config, filter_fn=lambda m, name: isinstance(m, nn.Linear) and "embed" not in name)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert sum(type(module.weight) is not nn.Parameter for module in linear) > 100
    for label, result in found(model).items():
        assert abs(result["score"] - expected[label]["score"]) < 0.02
        assert all(abs(side - expected[label]["box"][name]) <= 2 for name, side in result["box"].items())
