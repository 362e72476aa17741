"""What a run leaves, what it measures, and what stops it before its first step."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoProcessor
from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.training import loop
from hf_grounding_dino.training.conduct import run_recipe
from hf_grounding_dino.training.options import OptionError
from hf_grounding_dino.training.recipe import read_recipe
from hf_grounding_dino.training.states import RunFolder, StateError

from .runs import LABELS, Bomb, logged, weights, write_recipe

VAL = "[{format: shapes, annotations: 'val?count=4&width=96&height=64'}]"
REFERRING = "[{format: shapes, annotations: 'val?count=4&task=referring&width=96&height=64'}]"


def run(folder: Path, *assignments: str, resume: bool = False, **changes: Any) -> Any:
    return run_recipe(read_recipe(str(write_recipe(folder, **changes)), assignments), resume=resume)


def test_a_run_leaves_models_metrics_pictures_and_a_report(tmp_path: Path) -> None:
    """Steps 2 and 4 are measured, and 0 before; `best/` is of the better one; the set to keep before and after."""
    report = run(tmp_path, f"eval={VAL}", f"keep={REFERRING}", "evaluate_every=2", "pictures_every=2")
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    scored = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    assert scored.keys() == {0, 2, 4}
    assert scored[0].keys() == scored[4].keys() == {
        *(f"shapes val detection/{name}" for name in ("AP", "AP50", "AP75")), "shapes val referring/R@1",
    }  # fmt: skip
    assert report.before == scored[0] and report.after == scored[4]
    assert report.best_step in (2, 4)
    for name in ("last", "best"):
        GroundingDinoForObjectDetection.from_pretrained(folder / name)
        GroundingDinoProcessor.from_pretrained(folder / name)
        transformers.MMGroundingDinoForObjectDetection.from_pretrained(folder / name)
    for name in ("curves.png", "examples.png", "pictures/step-000002.png"):
        Image.open(folder / name).verify()
    written = json.loads((folder / "report.json").read_text())
    assert written["after"] == report.after and sum(written["time_shares"].values()) == pytest.approx(1)
    assert read_recipe(str(folder / "recipe.yaml")).max_steps == 4


def test_the_card_knows_which_pictures_were_measured(tmp_path: Path) -> None:
    (trained,) = read_recipe(str(write_recipe(tmp_path))).train
    kept = f"keep=[{{annotations: {trained.annotations}, images: {trained.images}}}]"
    run(tmp_path, f"eval={VAL}", kept, "evaluate_pictures=3", "max_steps=1")
    _, val, kept = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (val["pictures"], val["measured"], val["trained_on"]) == (4, 3, False)
    assert (kept["pictures"], kept["measured"], kept["trained_on"]) == (8, 3, True)


def test_sets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two files called annotations.json, each in a folder called data."""
    recipe = write_recipe(tmp_path)
    other = tmp_path / "other" / "data"
    other.mkdir(parents=True)
    (other / "annotations.json").write_text((tmp_path / "data" / "annotations.json").read_text())
    entries = [f"{{format: coco, annotations: {p}/annotations.json, images: {tmp_path}/data/images}}"
               for p in (tmp_path / "data", other)]  # fmt: skip
    report = run_recipe(read_recipe(str(recipe), ["max_steps=1", f"eval=[{', '.join(entries)}]"]))
    assert {name.split("/")[0] for name in report.after} == {"data", "data 2"}


def test_what_was_lost_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5 before, 0.25 after: 0.25 lost of the set to keep; the set that gained is not listed."""
    from hf_grounding_dino.training import conduct

    scores = iter([0.1, 0.5, 0.4, 0.25])
    monkeypatch.setattr(conduct, "evaluate_records", lambda *_, **__: {"AP": next(scores)})
    report = run(tmp_path, f"eval={VAL}", f"keep={REFERRING}")
    assert report.lost == {"shapes val referring/AP": 0.25}


def test_lora_is_merged_into_what_is_saved(tmp_path: Path) -> None:
    """Only adapted layers change; stock transformers loads the result; half of it is interpolated."""
    run(tmp_path, "lora={rank: 4}", "text_multiplier=1", "average_decay=null", "interpolation=0.5")
    before, after = weights(tmp_path, "model"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("weight") and "embed" not in name for name in changed)
    transformers.MMGroundingDinoForObjectDetection.from_pretrained(tmp_path / "run" / "last")


def test_unreadable_pictures_are_left_out_or_stop_the_run(tmp_path: Path) -> None:
    """One of 8 is more than 1 %: it stops, with the list. Of 8 drawn 20 times an epoch it is as much."""
    write_recipe(tmp_path)
    broken = tmp_path / "data" / "images" / "000003.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 8 pictures cannot be read, more than 1 %: .*000003\.png: it is not"):
        run(tmp_path, "max_steps=8")


def test_few_unreadable_pictures_are_counted_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_grounding_dino.training import conduct

    monkeypatch.setattr(conduct, "LARGEST_SKIPPED_SHARE", 0.2)
    write_recipe(tmp_path)
    broken = tmp_path / "data" / "images" / "000003.png"
    broken.write_bytes(b"no picture")
    report = run(tmp_path, "max_steps=8")
    assert report.skipped == [{"where": str(broken), "why": "it is not an image"}]
    assert report.steps == 8


@pytest.mark.parametrize("fewest", [100, 99])
def test_of_a_stream_what_was_seen_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewest: int) -> None:
    """One of 8 pictures: 1 % of 100, which are given to a stream from the start, and more than 1 % of 99."""
    from hf_grounding_dino.training import conduct

    monkeypatch.setattr(conduct, "FEWEST_OF_A_STREAM", fewest)
    write_recipe(tmp_path)
    rows = [
        {
            "image": {"bytes": (tmp_path / "data" / "images" / f"{i:06d}.png").read_bytes(), "path": f"{i}.png"},
            "objects": {"bbox": [[4.0, 4.0, 30.0, 30.0]], "category": [LABELS[0]]},
        }
        for i in range(8)
    ]
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:-200]  # its size can still be read
    table = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False)).to_parquet(table)
    names = tmp_path / "names.json"
    names.write_text(json.dumps([LABELS[0]]))
    source = f"{{format: datasets, annotations: {table}, streaming: true, epoch_size: 8, label_map: {names}}}"
    asked = (f"train=[{source}]", "max_steps=4")
    if fewest == 100:
        (left_out,) = run(tmp_path, *asked).skipped
        assert left_out["why"].startswith("it is damaged")
    else:
        with pytest.raises(DataError, match="1 of 99 pictures cannot be read, more than 1 %"):
            run(tmp_path, *asked)


def test_what_was_left_out_is_known_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture that cannot be read comes before the state; the report of the run that went on has it."""
    from hf_grounding_dino.training import conduct

    monkeypatch.setattr(conduct, "LARGEST_SKIPPED_SHARE", 0.2)
    write_recipe(tmp_path)
    broken = tmp_path / "data" / "images" / "000003.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture")
    run(tmp_path, "max_steps=4", "batch_size=8")
    broken.write_bytes(whole)
    report = run(tmp_path, "max_steps=5", "batch_size=8", resume=True)
    assert report.skipped == [{"where": str(broken), "why": "it is not an image"}]


@pytest.mark.parametrize(
    "change", ["learning_rate=0.5", "seed=7", "batch_size=2", "train.0.weight=2", "denoising=null"]
)
def test_a_run_goes_on_as_it_began(tmp_path: Path, change: str) -> None:
    """What the state would override is not taken in silence; what may change is tested where it matters."""
    run(tmp_path, "max_steps=1")
    name = change.split("=")[0].split(".")[0]
    with pytest.raises(OptionError, match=f"a run goes on as it began, and {name} changed"):
        run(tmp_path, "max_steps=2", change, resume=True)


def test_broken_weights_do_not_replace_a_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of step 4 are not finite, and saved before a loss is made of them."""
    update, steps = loop.update, []

    def breaking(trainee: Any, *arguments: Any) -> torch.Tensor:
        steps.append(None)
        if len(steps) == 4:
            next(trainee.model.parameters()).grad.fill_(torch.nan)
        return update(trainee, *arguments)

    monkeypatch.setattr(loop, "update", breaking)
    with pytest.raises(FloatingPointError, match="weights of step 4 are not finite: begin anew with a lower"):
        run(tmp_path, "log_every=100", "max_steps=6")
    state = RunFolder(tmp_path / "run").newest_state()
    assert state is not None and state.name.endswith("step-000002")


@pytest.mark.parametrize("term", ["loss", "grad_norm"])
def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    """In step 3 of 6, with nothing to log or to save: no weight takes it in, and the state is of step 2.

    A model whose features are NaN is the first; gradients alone that are not finite are the second.
    """
    accumulate, update, steps = loop.accumulate, loop.update, []

    def breaking(trainee: Any, *arguments: Any) -> Any:
        steps.append(None)
        parameter = next(p for p in trainee.model.parameters() if p.requires_grad)
        if len(steps) == 3 and term != "grad_norm":
            parameter.data.fill_(torch.nan)
        terms = accumulate(trainee, *arguments)
        if len(steps) == 3 and term == "grad_norm":
            parameter.grad.fill_(torch.inf)
        return terms

    updates: list[None] = []
    monkeypatch.setattr(loop, "accumulate", breaking)
    monkeypatch.setattr(loop, "update", lambda *arguments: (updates.append(None), update(*arguments)))
    with pytest.raises(FloatingPointError, match=r"^\w+ of step 3 is not finite: begin anew with a lower") as caught:
        run(tmp_path, "log_every=100", "max_steps=6")
    name = str(caught.value).split()[0]
    assert name == term if term == "grad_norm" else name.startswith("loss_")
    assert len(updates) == 2
    state = RunFolder(tmp_path / "run").newest_state()
    assert state is not None and state.name.endswith("step-000002")


def test_a_finished_run_that_goes_on_says_nothing_twice(tmp_path: Path) -> None:
    """It is measured again, as where it was killed before that was done; what kills left of its files is cleared."""
    options = (f"eval={VAL}", "evaluate_every=2")
    run(tmp_path, *options)
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    for name in (".curves.png.77.unfinished", "pictures/.step-000002.png.77.unfinished"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    run(tmp_path, *options, resume=True)
    assert [json.loads(line) for line in metrics.read_text().splitlines()] == before
    assert not list((tmp_path / "run").rglob(".*.unfinished"))
    run(tmp_path, *options, "max_steps=6", resume=True)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert lines[: len(before)] == before
    assert [(line["step"], "evaluation" in line) for line in lines[len(before) :]] == [
        (5, False),
        (6, False),
        (6, True),
    ]


def test_metrics_of_a_run_without_a_state_are_not_added_to(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    run(tmp_path, "max_steps=1")
    assert len(logged(tmp_path / "run")) == 1


def test_trackers_get_options_and_numbers(tmp_path: Path) -> None:
    run(tmp_path, "max_steps=1", "trackers=[tensorboard]")
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "run"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged(tmp_path / "run"))
    (options,) = (tmp_path / "run" / "trackers").rglob("hparams.yml")
    assert yaml.safe_load(options.read_text())["batch_size"] == 4


def test_a_processor_without_a_shortest_edge_needs_no_augmentation(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    path = tmp_path / "model" / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["size"] = {"height": 64, "width": 64}
    path.write_text(json.dumps(config))
    with pytest.raises(OptionError, match="set augmentation=null"):
        run(tmp_path)
    assert run(tmp_path, "max_steps=1", "augmentation=null").steps == 1


def test_a_run_is_not_trained_over(tmp_path: Path) -> None:
    run(tmp_path, "max_steps=1")
    with pytest.raises(OptionError, match="holds a run already: go on with --resume"):
        run(tmp_path, "max_steps=1")


def test_going_on_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to resume from"):
        run(tmp_path, resume=True)


def test_going_on_runs_nothing_that_lies_in_the_folder(tmp_path: Path) -> None:
    """Schedule and average were once in two pickles, and read as such."""
    run(tmp_path, "max_steps=1")
    state, mark = RunFolder(tmp_path / "run").newest_state(), tmp_path / "mark"
    assert state is not None
    for number in range(2):
        torch.save(Bomb(mark), state / f"custom_checkpoint_{number}.pkl")
    with pytest.raises(StateError, match=r"it is of an earlier version, .* train last/ in a new output_dir"):
        run(tmp_path, "max_steps=2", resume=True)
    assert not mark.exists()


def other_architecture(folder: Path) -> Path:
    transformers.BertModel(transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )).save_pretrained(folder)  # fmt: skip
    return folder


def empty_annotations(folder: Path) -> Path:
    path = folder / "empty.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    return path


def no_valid_box(folder: Path) -> Path:
    document = json.loads((folder / "data" / "annotations.json").read_text())
    for annotation in document["annotations"]:
        annotation["bbox"][2] = -5.0
    path = folder / "invalid.json"
    path.write_text(json.dumps(document))
    return path


def other_labels(folder: Path) -> Path:
    """A third of the boxes are of categories that are not in the file."""
    document = json.loads((folder / "data" / "annotations.json").read_text())
    for annotation in document["annotations"][::3]:
        annotation["category_id"] += 1000
    path = folder / "data" / "other.json"
    path.write_text(json.dumps(document))
    return path


def unreadable(folder: Path) -> Path:
    shutil.copytree(folder / "data", folder / "unreadable")
    (folder / "unreadable" / "images" / "000003.png").write_bytes(b"no picture")
    return folder / "unreadable" / "annotations.json"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model={other}", "bert"),
        ("model={folder}/nowhere", "nowhere"),
        ("train.0.annotations={folder}/none.json", r"none\.json"),
        ("train.0.annotations={empty}", r"empty\.json"),
        ("train.0.annotations={invalid}", r"invalid\.json"),
        ("train.0.format=voc2", "voc2"),
        ("train.0.weight=-1", "weight"),
        (
            "train.0.annotations={other_labels}",
            r"\d+ of \d+ boxes have a category that is none of the 32 labels, the first",
        ),
        (
            "eval=[{{annotations: {unreadable}, images: {folder}/unreadable/images}}]",
            r"000003\.png cannot be read: it is not an image",
        ),
        ("freeze=[nose]", "nose"),
        ("max_grad_norm=-1", "max_grad_norm is -1.0: it must not be negative"),
        ("evaluate_pictures=0", "evaluate_pictures is 0"),
        ("milestones=[2]", "milestones"),
        ("precision=float16", "precision"),
        ("trackers=[clearml]", "the tracker clearml is not installed"),
        ("trackers=[pencil]", "pencil"),
        ("prompts.max_tokens=2", "token"),
        ("eval=[{{format: datasets, annotations: {folder}/data, streaming: true}}]", "data"),
    ],
)
def test_mistakes_stop_before_the_first_step(tmp_path: Path, assignment: str, message: str) -> None:
    """Nothing is written by then."""
    write_recipe(tmp_path)
    places = {
        "folder": tmp_path, "other": other_architecture(tmp_path / "other"),
        "empty": empty_annotations(tmp_path), "invalid": no_valid_box(tmp_path),
        "other_labels": other_labels(tmp_path), "unreadable": unreadable(tmp_path),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path, assignment.format(**places))
    assert "\n" not in str(caught.value)
    assert not os.path.exists(tmp_path / "run" / "metrics.jsonl")


def test_what_is_odd_in_the_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class that never occurs, and a box outside its picture; not that ids have gaps."""
    write_recipe(tmp_path)
    path = tmp_path / "data" / "annotations.json"
    document = json.loads(path.read_text())
    document["categories"].append({"id": 900, "name": "unicorn"})
    document["annotations"][0]["bbox"][2] = 10_000
    path.write_text(json.dumps(document))
    run(tmp_path, "max_steps=1")
    said = capsys.readouterr().out
    assert "unused category" in said and "outside box" in said and "gapped" not in said


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Of 200 steps at mixed sizes the last ten hold little more than the thirtieth to the fortieth."""
    run(tmp_path, "max_steps=200", "batch_size=2", "save_every=1000")
    memory = logged(tmp_path / "run", "memory_gb")
    assert sum(memory[-10:]) < sum(memory[30:40]) + 10 * 0.05
