"""The detector as one graph that takes any number of images of any sizes: `torch.export`, ONNX, OpenVINO.

What is open: the number of images, height and width of the canvas, the size of each image on it (`pixel_mask`) and
the number of tokens. What is fixed: the weights and their type, the number of queries, evaluation mode.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..models.detector import TextInputs
from ..models.grounding_dino.heads import head_inputs, predict_layers
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..utils.atomic import write_atomic
from .backbone import check_exportable, coarsest_cell, encode_on_canvas

OPSET = 18
OUTPUTS = ("logits", "pred_boxes")
PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What each format needs to be written and run, beside torch."""
_COMPARED_QUERIES = 10

Arrays = Mapping[str, NDArray[Any]]


class DetectionGraph(nn.Module):
    """The detector with tensors alone going in and out, and no step that a size decides."""

    def __init__(self, model: GroundingDinoForObjectDetection) -> None:
        """Wrap a model.

        Raises:
            ValueError: its image backbone is not Swin, or its positions are learned.
        """
        super().__init__()
        check_exportable(model.model)
        self.detector = model

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The inputs of the model as the processor makes them, none left out.

        Returns:
            `logits (B, Q, T)`, -inf on padding, and `pred_boxes (B, Q, 4)`, (cx, cy, w, h) in [0, 1] of each image;
            both float32.
        """
        detector = self.detector
        words = TextInputs.from_ids(input_ids, attention_mask, token_type_ids)
        image = encode_on_canvas(detector.model, pixel_values, pixel_mask)
        text = detector.model.encode_text(*words)
        output = detector.model.decode(*image, text, output_attentions=False, output_hidden_states=False)
        last_layer, inputs = range(detector.config.decoder_layers)[-1:], head_inputs(output, words.attention_mask)
        (last,) = predict_layers(last_layer, detector.bbox_embed, detector.class_embed, inputs)
        return last["logits"].float(), last["pred_boxes"]


def smallest_side(model: GroundingDinoForObjectDetection) -> int:
    """The least height and width, in pixels, of the canvas of an exported model; smaller images are padded to it."""
    detector = model.model
    further_levels = len(detector.input_proj_vision) - len(detector.backbone.conv_encoder.model.channels)
    return int(coarsest_cell(detector.backbone.conv_encoder.model) * 2 ** max(further_levels, 0) + 1)


def export_program(model: GroundingDinoForObjectDetection) -> ExportedProgram:
    """The model as a program of `torch.export`, in the type its weights have.

    `program.module()(pixel_values=..., pixel_mask=..., input_ids=..., token_type_ids=..., attention_mask=...)` gives
    what `DetectionGraph.forward` gives. `pixel_values` may be float32 whatever the weights are.

    Raises:
        ValueError: the image backbone is not Swin, or positions are learned.
    """
    batch, length = Dim("batch"), Dim("length")
    least = smallest_side(model)
    height, width = Dim("height", min=least), Dim("width", min=least)
    words = {0: batch, 1: length}
    open_sizes = {
        "pixel_values": {0: batch, 2: height, 3: width},
        "pixel_mask": {0: batch, 1: height, 2: width},
        "input_ids": words,
        "token_type_ids": words,
        "attention_mask": words,
    }
    cell = coarsest_cell(model.model.backbone.conv_encoder.model)
    device = model.device
    # Sizes of which none is 1 on any level, since 1 would stay 1.
    pixels = torch.zeros(2, 3, 9 * cell + 2, 11 * cell - 2, device=device)
    special = model.config.phrase_boundary_token_ids
    ids = torch.tensor([special[0], 5, 6, special[-1], 7, special[-1], special[1]], device=device).repeat(2, 1)
    example = {
        "pixel_values": pixels,
        "pixel_mask": torch.ones_like(pixels[:, 0], dtype=torch.int64),
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
    }
    program = torch.export.export(
        DetectionGraph(model).eval(),
        (),
        example,
        dynamic_shapes=open_sizes,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    _drop_idle_nodes(program.graph_module)
    return program


def _drop_idle_nodes(module: torch.fx.GraphModule) -> None:
    """Slices of everything, one for each `:` of an index, and checks of types: a third of what a converter reads.

    Where in the sources a node comes from is left out too: a file should not tell the folders of who made it.
    """
    for node in reversed(module.graph.nodes):
        node.meta.pop("stack_trace", None)
        if node.target is torch.ops.aten.slice.Tensor:
            arguments: tuple[Any, ...] = tuple(node.args)
            source, _, start, end, step = arguments + (0, None, None, 1)[len(arguments) - 1 :]
            if start in (0, None) and (end is None or end == sys.maxsize) and step == 1:
                node.replace_all_uses_with(source)
                module.graph.erase_node(node)
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.recompile()


# --- files -------------------------------------------------------------------------------------------------------


def missing_packages(file_format: str) -> list[str]:
    """The packages that writing and checking a format needs and that are not installed.

    Args:
        file_format: "torch", "onnx" or "openvino".
    """
    return [name for name in PACKAGES[file_format] if importlib.util.find_spec(name) is None]


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a file for `torch.export.load`, whole or not at all."""
    content = io.BytesIO()  # torch ends the process where a file of its own takes no more bytes
    torch.export.save(program, content)
    write_atomic(path, content.getbuffer().tobytes())


def write_onnx(
    program: ExportedProgram, path: Path, opset: int = OPSET, facts: Mapping[str, Any] | None = None
) -> None:
    """Write an ONNX file of standard operators alone, whole or not at all.

    Weights beyond what one file holds, 2 GB, stand in a second file beside it, `path` + ".data".

    Args:
        program: of `export_program`.
        path: where to; what lies there is replaced.
        opset: the version of the operators, at least 18.
        facts: kept as JSON in the metadata of the file, by name.
    """
    from onnxscript import optimizer

    graph = torch.onnx.export(
        program, (), dynamo=True, opset_version=opset, optimize=False, output_names=OUTPUTS, verbose=False
    )
    assert graph is not None
    # Of `optimize=True` only what is not left to the runtime: matching patterns in a graph of this size takes minutes.
    optimizer.fold_constants(graph.model)
    optimizer.remove_unused_nodes(graph.model)
    _name_sizes(graph.model, program)
    graph.model.metadata_props.update({name: json.dumps(fact) for name, fact in (facts or {}).items()})
    _write_whole(path, graph.save)


def _name_sizes(model: Any, program: ExportedProgram) -> None:
    """Call the open sizes by their names, and leave out where in the sources each node comes from."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    pixels, ids = values["pixel_values"].shape, values["input_ids"].shape
    names = dict(zip(map(str, (pixels[0], *pixels[2:], ids[1])), ("batch", "height", "width", "length"), strict=True))
    symbol = re.compile("|".join(rf"\b{name}\b" for name in names))
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        for axis, side in enumerate(value.shape or ()):
            if not isinstance(side, int) and side.value is not None:
                value.shape[axis] = symbol.sub(lambda match: names[match[0]], side.value)
    for node in model.graph:
        node.metadata_props.clear()


def write_openvino(onnx_file: Path, path: Path, half: bool = False) -> None:
    """Convert an ONNX file in float32 to OpenVINO's form: `path`, which ends in .xml, and a .bin beside it.

    Args:
        onnx_file: of `write_onnx`.
        path: where to.
        half: keep the weights in float16; what is computed in which type the device decides.
    """
    import openvino

    converted = openvino.convert_model(onnx_file)
    _write_whole(path, lambda unfinished: openvino.save_model(converted, unfinished, compress_to_fp16=half))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` first; files that belong to it are moved together with it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
        write(Path(folder) / path.name)
        # The named file last: where it is, the others are.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.parent / file.name)


# --- checks ------------------------------------------------------------------------------------------------------

Runner = Callable[[Arrays], tuple[NDArray[Any], NDArray[Any]]]
"""Inputs by name to `logits` and `pred_boxes`."""


def load_runner(path: Path, file_format: str) -> Runner:
    """What runs an exported file on the CPU: torch, ONNX Runtime or OpenVINO.

    Raises:
        ImportError: the package that runs it is not installed.
    """
    if file_format == "torch":
        module = torch.export.load(path).module()
        return lambda inputs: tuple(
            x.detach().numpy() for x in module(**{k: torch.from_numpy(v) for k, v in inputs.items()})
        )
    if file_format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda inputs: tuple(session.run(list(OUTPUTS), dict(inputs)))
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: Arrays) -> tuple[NDArray[Any], NDArray[Any]]:
        outputs = compiled(dict(inputs))
        return outputs[OUTPUTS[0]], outputs[OUTPUTS[1]]

    return run


class Agreement(NamedTuple):
    """The largest differences of an exported model from the model, over the best queries of each image.

    scores: of a token's score, in [0, 1].
    boxes: of a coordinate, in parts of the image.
    """

    scores: float
    boxes: float


def compare(model: GroundingDinoForObjectDetection, run: Runner, batches: Sequence[Mapping[str, Tensor]]) -> Agreement:
    """Compare an exported model with a model in float32, on the ten best queries of each image.

    A query is compared with the one of the other that is nearest to it, since rounding may exchange two.

    Args:
        model: in eval mode, on the CPU.
        run: of `load_runner`.
        batches: inputs of the model, with all five names of `DetectionGraph.forward`.
    """
    worst = np.zeros(2)
    for batch in batches:
        with torch.inference_mode():
            output = model(**batch)
        expected = _best(output.logits[..., : batch["input_ids"].shape[1]].float().numpy(), output.pred_boxes.numpy())
        logits, boxes = run({name: tensor.numpy() for name, tensor in batch.items()})
        scores = _sigmoid(logits)
        for i, (best_scores, best_boxes) in enumerate(expected):
            of_scores = np.abs(scores[i][None] - best_scores[:, None]).max(-1)
            of_boxes = np.abs(boxes[i][None] - best_boxes[:, None]).max(-1)
            nearest = np.maximum(of_scores, of_boxes).argmin(1)[:, None]
            found = [np.take_along_axis(of, nearest, 1).max() for of in (of_scores, of_boxes)]
            worst = np.maximum(worst, np.nan_to_num(found, nan=np.inf))
    return Agreement(*worst.tolist())


def _sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return 0.5 * (1 + np.tanh(logits.astype(np.float32) / 2))


def _best(logits: NDArray[Any], boxes: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    chosen = np.argsort(-logits.max(-1), axis=1, kind="stable")[:, :_COMPARED_QUERIES, None]
    scores = np.take_along_axis(_sigmoid(logits), chosen, 1)
    return list(zip(scores, np.take_along_axis(boxes, chosen, 1), strict=True))
