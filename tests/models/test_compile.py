"""Law 9: one graph in eval and in train, few graphs for a stream of pictures, and nothing read back by the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.processing.image_processing_grounding_dino import nearest_multiple
from tiny import FAMILIES, Family, boxes_label, noise_image, one, tiny_model, together

DIVISOR, TEXT_MULTIPLE = 32, 16
SIZE = {"shortest_edge": 40, "longest_edge": 70}
WORDS = ("circle", "square", "red triangle", "big blue star", "ring", "cross")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def least_model(family: Family = "grounding-dino", **changes: Any) -> Any:
    """One layer of everything, because tracing takes seconds for each."""
    options: dict[str, Any] = {
        "backbone_config": transformers.SwinConfig(
            image_size=64, embed_dim=8, depths=[2], num_heads=[2], window_size=4, out_indices=[1], drop_path_rate=0.0
        ),
        "text_config": transformers.BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        "num_feature_levels": 2, "encoder_layers": 1, "decoder_layers": 1,
    }  # fmt: skip
    return tiny_model(family, **(options | changes))


def two_images(height: int = 40, width: int = 56, seed: int = 0) -> dict[str, Tensor]:
    """What the processor gives for two pictures of one size whose prompts differ in length."""
    first, second = (noise_image(height, width, seed + i) for i in range(2))
    inputs = together([one(first), one(second, [7], [5])])
    return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


def objective(output: Any) -> Tensor:
    """A number that depends on every logit and every coordinate."""
    boxes = (output.pred_boxes * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum()
    value: Tensor = output.logits.masked_fill(output.logits.isinf(), 0.0).square().mean() + boxes
    return value


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    # Where nothing depends on a parameter a graph gives zeros, eager gives None.
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert any(g.any() for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-4 * max(1.0, gradient.abs().max().item()))


def assert_same_result(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-4)


class Graphs:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


# --- one graph ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_one_graph_in_eval(family: Family) -> None:
    model, inputs = least_model(family), two_images()
    assert_same_result(torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs), model(**inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_in_train(family: Family) -> None:
    """Forward and backward; the mask is asked in the graph that records gradients too."""
    model, inputs = least_model(family).train(), two_images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output, expected = compiled(**inputs), model(**inputs)
    assert_same_result(output, expected)
    assert_same_gradients(gradients(model, objective(output)), gradients(model, objective(expected)))
    inputs["pixel_mask"][1, -1] = 0
    with pytest.raises(RuntimeError, match="batch them by size"):
        compiled(**inputs)


@pytest.mark.parametrize("change", ["padding", "no pixel", "another size"])
@torch.no_grad()
def test_masks_that_no_graph_can_serve_are_refused(change: str) -> None:
    model, inputs = least_model(), two_images()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    if change == "another size":
        with pytest.raises(Exception, match="`pixel_mask` is"):
            compiled(**inputs | {"pixel_mask": inputs["pixel_mask"][:, :-1]})
        return
    inputs["pixel_mask"][0, -1 if change == "padding" else slice(None)] = 0
    with pytest.raises(RuntimeError, match="batch them by size"):
        compiled(**inputs)


@torch.no_grad()
def test_images_encoded_before_may_be_padded() -> None:
    """The sizes are read outside the graph."""
    model = least_model()
    inputs = together([one(noise_image(40, 56)), one(noise_image(32, 40), [7], [5])])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    encoded = model.encode_image(inputs["pixel_values"], inputs["pixel_mask"])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_same_result(compiled(encoded_image=encoded, **words), model(**inputs))


@torch.no_grad()
def test_a_phrase_that_is_too_long_is_refused_in_the_graph() -> None:
    """The encoder reads 24 tokens: phrases of 11, 11 and 10 fit, one of 32 does not, both in 34 tokens."""
    model = least_model()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    fits = together([one(noise_image(32, 32), [7] * 10, [8] * 10, [9] * 9)])
    assert_same_result(compiled(**fits), model(**fits))
    too_long = together([one(noise_image(32, 32), [7] * 31)])
    assert too_long["input_ids"].shape[1] == fits["input_ids"].shape[1]
    # Where torch says in every graph that it exports, as 2.11 does, the table of positions refuses it.
    by_name = not torch.compile(torch.compiler.is_exporting, fullgraph=True, backend="eager")()
    with pytest.raises(RuntimeError if by_name else IndexError, match="phrase" if by_name else "out of range"):
        compiled(**too_long)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="inductor of torch 2.11 writes C++ for the CPU that does not compile; 2.12 and 2.13 are untested",
)
@torch.no_grad()
def test_inductor() -> None:
    """The default backend, once; maps of 10 x 14 cells leave the windows of 4 x 4 cells padded."""
    model, inputs = least_model(), two_images(40, 56)
    compiled = torch.compile(model, fullgraph=True)
    assert_same_result(compiled(**inputs), model(**inputs))
    inputs["pixel_mask"][0, -1] = 0
    with pytest.raises(RuntimeError, match="batch them by size"):
        compiled(**inputs)


# --- the loss ----------------------------------------------------------------------------------------------------


def test_with_labels_the_graph_ends_before_the_loss() -> None:
    """Equal to eager, with one graph; boxes elsewhere make none anew, though other numbers of boxes do."""
    model, inputs, graphs = least_model().train(), two_images(), Graphs()
    compiled = torch.compile(model, backend=graphs)
    for step in range(2):
        labels = [boxes_label(10 * step, 2, 3), boxes_label(10 * step + 1, 3, 2)]
        output, expected = compiled(**inputs, labels=labels), model(**inputs, labels=labels)
        torch.testing.assert_close(output.loss, expected.loss, rtol=1e-4, atol=1e-4)
        assert output.loss_dict.keys() == expected.loss_dict.keys()
        assert_same_result(output, expected)
        assert_same_gradients(gradients(model, output.loss), gradients(model, expected.loss))
    assert graphs.count == 1


def test_with_labels_a_full_graph_is_refused_and_says_what_to_do() -> None:
    model, inputs = least_model(decoder_layers=1).train(), two_images()
    labels = [boxes_label(i, 1, 2) for i in range(2)]
    with pytest.raises(Exception, match="compile without `fullgraph` to give `labels`"):
        torch.compile(model, fullgraph=True, backend="eager")(**inputs, labels=labels)


# --- few graphs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "divisor", "longest", "expected"),
    [
        (47, 32, None, 32), (48, 32, None, 64), (1, 32, None, 32), (64, 32, 64, 64), (63, 1, None, 63),
        (1333, 32, 1333, 1312),  # 41.7 rounds to 42, 1344 is over the edge
        (20, 32, 24, 32),  # no multiple is below the edge
    ],
)  # fmt: skip
def test_nearest_multiple(length: int, divisor: int, longest: int | None, expected: int) -> None:
    assert nearest_multiple(length, divisor, longest) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"shortest_edge": 40, "longest_edge": 70}, (64, 32)),  # 40 x 70 in transformers; 70 -> 64, 40 -> 32
        ({"height": 50, "width": 40}, (64, 32)),
        ({"max_height": 90, "max_width": 60}, (64, 32)),  # 90 x 45: 90 -> 96, cut to 64; 45 -> 32
    ],
)
@pytest.mark.parametrize("rule", ["transformers", "original"])
def test_sizes_are_rounded(size: dict[str, int], expected: tuple[int, int], rule: str) -> None:
    picture = torch.randint(0, 256, (3, 120, 60), dtype=torch.uint8)
    processor = GroundingDinoImageProcessor(size=size, resize_rule=rule)
    plain = processor(picture, return_tensors="pt")
    rounded = processor(picture, size_divisor=DIVISOR, return_tensors="pt")
    assert rounded["pixel_values"].shape[2:] == rounded["pixel_mask"].shape[1:] == expected
    assert plain["pixel_values"].shape[2:] != expected
    assert processor.size_divisor is None


def test_boxes_follow_the_stretched_picture() -> None:
    boxes = [{"bbox": [15.0, 60.0, 30.0, 30.0], "area": 900.0, "category_id": 0, "iscrowd": 0}]
    picture = torch.zeros(3, 120, 60, dtype=torch.uint8)
    processor = GroundingDinoImageProcessor(size=SIZE, size_divisor=DIVISOR)
    labels = processor(picture, {"image_id": 1, "annotations": boxes}, return_tensors="pt")["labels"][0]
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.5, 0.625, 0.5, 0.25]]))


def test_size_divisor_is_written_only_where_it_is_given(tmp_path: Any) -> None:
    assert "size_divisor" not in GroundingDinoImageProcessor().to_dict()
    GroundingDinoImageProcessor(size_divisor=DIVISOR).save_pretrained(tmp_path)
    assert GroundingDinoImageProcessor.from_pretrained(tmp_path).size_divisor == DIVISOR
    with pytest.raises(ValueError, match="size_divisor"):
        GroundingDinoImageProcessor(size_divisor=0)
    with pytest.raises(ValueError, match="size_divisor"):
        GroundingDinoImageProcessor()(torch.zeros(3, 8, 8), size_divisor=-1)


def stream(processor: Any, length: int) -> list[dict[str, Tensor]]:
    """Pictures of any size, with any number of labels, as the processor gives them."""
    random = np.random.default_rng(0)
    inputs = []
    for _ in range(length):
        height, width = random.integers(30, 90, 2)
        picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels = [str(word) for word in random.permutation(WORDS)[: random.integers(1, len(WORDS) + 1)]]
        inputs.append(dict(processor(picture, labels, size_divisor=DIVISOR, pad_to_multiple_of=TEXT_MULTIPLE)))
    return inputs


@torch.no_grad()
def test_a_stream_of_pictures_makes_few_graphs() -> None:
    """Edges are 32 or 64, and not both 64 (the longest edge is 70, the shortest 40): 3 sizes; 16 or 32 tokens."""
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(size=SIZE), build_tokenizer(WORDS))
    pictures, model, graphs = stream(processor, 30), least_model(), Graphs()
    sizes = {(*p["pixel_values"].shape[2:], p["input_ids"].shape[1]) for p in pictures}
    assert sizes <= {(h, w, t) for h, w in [(32, 32), (32, 64), (64, 32)] for t in (16, 32)}
    assert len(sizes) > 4
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=graphs)
    for inputs in pictures:
        assert_same_result(compiled(**inputs), model(**inputs))
    assert graphs.count == len(sizes)
    with torch.compiler.set_stance("fail_on_recompile"):
        for inputs in pictures:
            compiled(**inputs)


# --- nothing is read back ----------------------------------------------------------------------------------------


class HostReads(TorchFunctionMode):
    """Notes which functions bring numbers of a tensor to the host, or make shapes of them."""

    NAMES = frozenset({
        "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu", "nonzero",
        "masked_select", "unique", "equal", "allclose",
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.NAMES:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class HostReadsInside(TorchDispatchMode):
    """The same below Python: what indexing by a mask, `repeat_interleave` and the like do."""

    NAMES = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        if name in self.NAMES or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def host_reads(run: Callable[[], Any]) -> list[str]:
    with HostReads() as above, HostReadsInside() as below:
        run()
    return above.seen + below.seen


def test_host_reads_are_seen() -> None:
    x = torch.tensor([1.0, 2.0])
    for read in (x.tolist, x[0].item, lambda: bool(x[0]), lambda: x[x > 1], x.nonzero, lambda: int(x[0]), x.numpy):
        assert host_reads(read)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_the_host_reads_the_sizes_alone(train: bool, masked: bool) -> None:
    """One read for the sizes in `pixel_mask`, none for the rest; a backward pass reads nothing either."""
    model = least_model().train(train)
    inputs = together([one(noise_image(40, 56)), one(noise_image(32, 40), [7], [5])])
    if not masked:
        inputs["pixel_mask"] = None  # type: ignore[assignment]
    assert host_reads(lambda: objective(model(**inputs)).backward()) == ["tolist"] * masked


@torch.no_grad()
def test_without_gradients_the_host_reads_the_sizes_and_the_text_alone() -> None:
    """Phrases are kept by their ids: the ids and the state of the weights are read, whatever the network's depth."""
    shallow, deep = least_model(), least_model(encoder_layers=3, decoder_layers=3)
    inputs = two_images()
    reads = [host_reads(lambda model=model: model(**inputs)) for model in (shallow, deep)]
    assert reads[0] == reads[1]
    assert len(reads[0]) <= 5
    assert host_reads(lambda: shallow.train()(**inputs)) == ["tolist"]
