"""`transformers.Trainer`, `accelerate` and `peft` with our model, collator and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.collate import GroundingCollator
from hf_grounding_dino.data.shapes import VOCABULARY, ShapesDataset
from hf_grounding_dino.data.tokenizer import build_tokenizer
from tiny import FAMILIES, Family, boxes_label, noise_image, one, tiny_model

families = pytest.mark.parametrize("family", FAMILIES)
PROCESSOR = GroundingDinoProcessor(
    GroundingDinoImageProcessor(size={"shortest_edge": 80, "longest_edge": 133}), build_tokenizer(VOCABULARY)
)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 5e-3,
        "logging_steps": 1, "save_steps": 4, "report_to": [], "remove_unused_columns": False, "disable_tqdm": True,
        "use_cpu": True, "seed": 0, "lr_scheduler_type": "constant", "label_names": ["labels"],
    }  # fmt: skip
    return TrainingArguments(**(options | changes))


def trainer(folder: Path, model: Any, **changes: Any) -> Trainer:
    return Trainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=ShapesDataset(32, seed=0, split="train", task="detection"),
        data_collator=GroundingCollator(PROCESSOR),
        processing_class=PROCESSOR,
    )


def fresh() -> GroundingDinoForObjectDetection:
    # Prompts of all 64 names of Shapes are longer than the text encoder of the other tests.
    return tiny_model("mm-grounding-dino", num_queries=20).train()


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_an_epoch(tmp_path: Path) -> None:
    """8 steps of 4 pictures: the loss falls; what is saved loads; gone on from step 4 it ends as without a stop."""
    whole = trainer(tmp_path / "a", fresh())
    whole.train()
    seen = losses(whole)
    assert len(seen) == 8 and all(loss == loss for loss in seen)
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])
    folder = tmp_path / "a" / "checkpoint-8"
    saved = GroundingDinoForObjectDetection.from_pretrained(folder)
    state = saved.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.model.state_dict().items())
    assert GroundingDinoProcessor.from_pretrained(folder).tokenizer.vocab == PROCESSOR.tokenizer.vocab
    # Trainer reads a checkpoint without the renaming of `from_pretrained`, and passes the Swin weights over.
    begun = GroundingDinoForObjectDetection.from_pretrained(tmp_path / "a" / "checkpoint-4").train()
    again = trainer(tmp_path / "a", begun)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    for name, tensor in again.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=1e-5, rtol=1e-4)


def test_evaluation_gives_a_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, fresh(), per_device_eval_batch_size=2, prediction_loss_only=True)
    found = run.evaluate(ShapesDataset(4, seed=1, split="val", task="detection"))
    assert found["eval_loss"] > 0


def test_an_accumulated_step_is_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    """4 images at once or one by one, with unequal numbers of boxes: normalised by the boxes of the step."""
    counts = {len(ShapesDataset(4, seed=0, split="train", task="detection")[i]["boxes"]) for i in range(4)}
    assert len(counts) > 1
    stepped = []
    for at_once, batches in ((4, 1), (1, 4)):
        model = fresh()
        options = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": batches}
        run = trainer(tmp_path, model, max_steps=1, save_strategy="no", optim="sgd", max_grad_norm=0, **options)
        run.train_dataset = ShapesDataset(4, seed=0, split="train", task="detection")
        run.train()
        stepped.append({name: tensor.detach() for name, tensor in model.named_parameters()})
    begun = dict(fresh().named_parameters())
    moved = {name: (stepped[0][name] - begun[name]).abs().max().item() for name in begun}
    assert max(moved.values()) > 1e-3
    for name, tensor in stepped[0].items():
        torch.testing.assert_close(stepped[1][name], tensor, atol=1e-3 * max(moved[name], 1e-3), rtol=1e-4)


def test_evaluation_keeps_what_predictions_are_read_from(tmp_path: Path) -> None:
    """Logits, boxes and token ids of all images; no feature maps."""
    run = trainer(tmp_path, fresh(), per_device_eval_batch_size=2)
    found = run.predict(ShapesDataset(4, seed=1, split="val", task="detection")).predictions
    assert [array.shape[0] for array in found] == [4, 4, 4]
    assert found[0].shape[1:] == (20, 256) and found[1].shape[1:] == (20, 4)


def test_adapters_with_gradient_checkpointing(tmp_path: Path) -> None:
    """`peft` asks a model that checkpoints for gradients of its inputs; only adapters change in a step."""
    model = fresh()
    model.gradient_checkpointing_enable()
    config = peft.LoraConfig(r=2, target_modules=["out_proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    before = {name: tensor.detach().clone() for name, tensor in adapted.state_dict().items()}
    trainer(tmp_path, adapted, max_steps=1, save_strategy="no", gradient_checkpointing=True).train()
    changed = {name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_every_linear_layer_takes_an_adapter() -> None:
    """Also those of the fusion whose weights are used without a call: each adapter gets a gradient.

    (All but that of the decoder's last box head, whose box nothing refines.)
    """
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_model(), config).train()
    adapted(**one(noise_image(96, 128)), labels=[boxes_label(0, 3, 3)]).loss.backward()
    adapters = {name: p.grad for name, p in adapted.named_parameters() if "lora_" in name}
    silent = [name for name, gradient in adapters.items() if gradient is None or not gradient.any()]
    assert all(".decoder.bbox_embed.2." in name for name in silent)


# --- accelerate --------------------------------------------------------------------------------------------------


@families
def test_offloaded_modules_give_the_same(family: Family, tmp_path: Path) -> None:
    """Backbone, text encoder and feature enhancer on the disk, moved in when a module runs: the same boxes.

    (The decoder and the heads share tensors, which accelerate cannot put on a disk, in transformers as here.)
    """
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    on_disk = ("model.backbone", "model.text_backbone", "model.encoder")
    device_map = {**dict.fromkeys(_parts(model), "cpu"), **dict.fromkeys(on_disk, "disk")}
    loaded = GroundingDinoForObjectDetection.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
    )
    absent = {name for name, tensor in loaded.named_parameters() if tensor.device.type == "meta"}
    assert all(any(name.startswith(f"{part}.") for name in absent) for part in on_disk)
    inputs = one(noise_image(96, 128))
    with torch.no_grad():
        expected, found = model(**inputs), loaded.eval()(**inputs)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)


def _parts(model: Any) -> list[str]:
    own = [name for name, _ in model.named_children() if name != "model"]
    inner = [f"model.{name}" for name, _ in model.model.named_children()]
    direct = [f"model.{name}" for name, _ in model.model.named_parameters(recurse=False)]
    return [*own, *inner, *direct]


def test_what_must_stay_together_does() -> None:
    """No class that adds an input to its output is split, and every class named is one of the model's."""
    model = tiny_model()
    kinds = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= kinds
    from accelerate import infer_auto_device_map

    sizes = {0: "150KB", "cpu": "10GB"}
    placed = infer_auto_device_map(model, max_memory=sizes, no_split_module_classes=sorted(model._no_split_modules))
    for name, module in model.named_modules():
        if type(module).__name__ in model._no_split_modules:
            inside = {place for key, place in placed.items() if key.startswith(f"{name}.")}
            assert not inside, f"{name} is split"


def test_the_loss_of_a_trained_batch_has_labels() -> None:
    """The collator's batch is what `forward` takes, keyword by keyword."""
    batch = GroundingCollator(PROCESSOR)([ShapesDataset(1, seed=0, split="train", task="detection")[0]])
    assert fresh()(**batch).loss > 0
    assert boxes_label(0, 2, 2).keys() <= batch["labels"][0].keys()
