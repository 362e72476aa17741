"""A run learns, divides a step as it must, leaves what it promises, and stops where it must."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import load
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoProcessor
from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.training import trainer
from hf_grounding_dino.training.checkpoint import RunFolder, StateError
from hf_grounding_dino.training.ema import ExponentialMovingAverage
from hf_grounding_dino.training.recipe import read_recipe
from hf_grounding_dino.training.recipes import OptionError
from hf_grounding_dino.training.train_state import TrainState
from hf_grounding_dino.training.trainer import TrainingReport, train

from .runs import (
    LABELS,
    TORCHRUN,
    Bomb,
    assert_close_runs,
    assert_same_weights,
    logged,
    wait_for_a_line,
    weights,
    write_recipe,
)

VAL = "[{format: shapes, annotations: 'val?count=2&width=96&height=64'}]"
REFERRING = "[{format: shapes, annotations: 'val?count=2&task=referring&width=96&height=64'}]"

Run = Callable[..., TrainingReport]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data and model are that no test changes."""
    home = tmp_path_factory.mktemp("home")
    write_recipe(home)
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Run:
    """Train into `tmp_path / "run"`."""

    def run(*assignments: str, resume: bool = False, home: Path = home) -> TrainingReport:
        options = [f"output_dir={tmp_path / 'run'}", *assignments]
        return train(read_recipe(str(home / "recipe.yaml"), options), resume=resume)

    return run


@pytest.fixture(scope="module")
def plain(home: Path) -> Path:
    """The folder of a run of four steps that nothing disturbed."""
    train(read_recipe(str(home / "recipe.yaml"), [f"output_dir={home / 'plain'}"]))
    return home / "plain"


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate has one precision in each process."""

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


def state_name(run: Path) -> str:
    state = RunFolder(run).newest_state()
    return "" if state is None else state.name[-11:]


def before_update(monkeypatch: pytest.MonkeyPatch, disturb: Callable[[TrainState, int], None]) -> None:
    """Call `disturb` with the number of each step that this process is about to finish, from 1."""
    update, steps = TrainState.update, iter(range(1, 1000))
    monkeypatch.setattr(TrainState, "update", lambda state: (disturb(state, next(steps)), update(state)))


def launch(recipe: Path, *launcher: str, **options: str) -> None:
    command = [*launcher, "-m", "hf_grounding_dino", "train", str(recipe)]
    command += [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr


def test_stopped_and_resumed_equals_uninterrupted(
    run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and the averaged weights are equal to the bit, where a kill after step 3 leaves the state of step 2."""

    def kill(_: TrainState, step: int) -> None:
        if step == 4:
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        before_update(patch, kill)
        run()
    assert len(logged(tmp_path / "run")) == 3
    run(resume=True)
    assert logged(tmp_path / "run") == logged(plain)
    assert_same_weights(weights(tmp_path / "run"), weights(plain))


def test_a_signal_stops_after_the_step_with_a_state(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        before_update(patch, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        report = run()
    assert (report.steps, report.max_steps, state_name(tmp_path / "run")) == (1, 4, "step-000001")
    assert run(resume=True).steps == 4
    assert logged(tmp_path / "run", "step") == [1, 2, 3, 4]


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_it_does_not_matter_how_a_step_is_divided(run: Run, plain: Path, tmp_path: Path, micro_batch_size: int) -> None:
    """Law 12: 1 x 4 images = 2 x 2 = 4 x 1, losses and gradients, with unequal numbers of boxes, and denoising."""
    run(f"micro_batch_size={micro_batch_size}")
    assert_close_runs(plain, tmp_path / "run")


def test_two_processes_equal_one(home: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law 12 over DDP, without `find_unused_parameters`, and with launchers of two machines that meet over the network.

    One of the processes alone writes. One process can go on where two stopped. What is measured at the start, on five
    images, is the same (law 19).
    """
    held_out = "[{format: shapes, annotations: 'val?count=5&width=96&height=64'}]"
    run(f"output_dir={tmp_path / 'one'}", f"eval={held_out}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = ("--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port)
    with ThreadPoolExecutor(2) as machines:
        options = {"output_dir": str(tmp_path / "run"), "eval": held_out}
        launched = [
            machines.submit(launch, home / "recipe.yaml", *TORCHRUN, *meeting, "--node_rank", rank, **options)
            for rank in "01"
        ]
        for machine in launched:
            machine.result()
    assert_close_runs(tmp_path / "one", tmp_path / "run")
    assert logged(tmp_path / "one", "evaluation")[0] == logged(tmp_path / "run", "evaluation")[0]
    state = RunFolder(tmp_path / "run").newest_state()
    assert state is not None
    generators = [load(state / f"random_states_{rank}.pkl")["torch_manual_seed"] for rank in range(2)]
    assert not torch.equal(*generators), "dropout is not the same in both"
    assert run("max_steps=5", "eval=[]", resume=True).steps == 5
    assert "was on 2 processes and goes on with 1" in capsys.readouterr().out
    assert logged(tmp_path / "run", "step")[-5:] == [1, 2, 3, 4, 5] or len(logged(tmp_path / "run")) == 5


def test_two_processes_know_together_what_cannot_be_read(tmp_path: Path) -> None:
    """One of 8 images is more than 1 %: both stop with the list, also the one that has not met it."""
    recipe = write_recipe(tmp_path, batch_size=8)
    (tmp_path / "data" / "images" / "000003.png").write_bytes(b"no image")
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "-m", "hf_grounding_dino", "train", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode != 0
    assert done.stderr.count("1 of 8 images cannot be read, more than 1 %") == 2, done.stderr


def test_what_a_launcher_has_in_its_environment_changes_no_step(
    run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerate: None
) -> None:
    """Law 29: a step is what the recipe says, though `accelerate config` was once asked for something else."""
    settings = {"GRADIENT_ACCUMULATION_STEPS": "8", "MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "EAGER"}
    for name, value in settings.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    run()
    assert not compiled
    for name in ("loss", "grad_norm"):
        assert logged(tmp_path / "run", name) == logged(plain, name)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(OptionError, match="parallelism_config is not supported"):
        run(f"output_dir={tmp_path}/other")


def test_a_step_that_is_skipped_moves_nothing() -> None:
    """Law 29: gradients that overflow float16 are no step, whose scaler a CPU has, too."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    model: Any = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema = ExponentialMovingAverage(model, 0.5)
    state = TrainState(accelerator, model, optimizer, schedule, ema)
    seen = []
    for scale in (1.0, torch.inf, 1.0):
        accelerator.backward(model(torch.ones(1, 1)).sum() * scale)
        state.update()
        seen.append((model.weight.item(), ema.weights["weight"].item(), schedule.get_last_lr()[0]))
    assert seen[0] == seen[1] != seen[2]
    assert [rate for *_, rate in seen] == [0.5, 0.5, 0.25]
    assert seen[2][0] == seen[0][0] - 0.5


def test_bfloat16_trains(run: Run, plain: Path, tmp_path: Path, fresh_accelerate: None) -> None:
    """Close to float32 in the first step, and all finite; what is saved is float32."""
    run("precision=bfloat16", "max_steps=2")
    low, full = logged(tmp_path / "run"), logged(plain)
    assert low[0] == pytest.approx(full[0], rel=0.1) and low[0] != full[0]
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "run").values())


def test_gradient_checkpointing_changes_nothing(run: Run, plain: Path, tmp_path: Path) -> None:
    run("gradient_checkpointing=true", "max_steps=1")
    assert logged(tmp_path / "run", "grad_norm") == pytest.approx(logged(plain, "grad_norm")[:1])


def test_a_model_learns_eight_images(run: Run, tmp_path: Path) -> None:
    """Seen again and again, unaugmented, the loss falls below a half."""
    run(
        "max_steps=8", "augmentation=null", "learning_rate=3e-3", "denoising=null", "save_every=1000", "batch_size=8",
        "backbone_lr_mult=1", "text_lr_mult=1", "prompts.all_labels=true",
    )  # fmt: skip
    seen = logged(tmp_path / "run")
    assert sum(seen[-3:]) / 3 < seen[0] / 2


def test_memory_does_not_grow(run: Run, tmp_path: Path) -> None:
    """Of 60 steps at mixed sizes the last ten hold little more than the twentieth to the thirtieth."""
    run("max_steps=60", "batch_size=1", "save_every=1000")
    memory = logged(tmp_path / "run", "memory_gb")
    assert sum(memory[-10:]) < sum(memory[20:30]) + 10 * 0.05


def test_the_average_is_what_is_saved(run: Run, plain: Path, tmp_path: Path) -> None:
    """With a decay of 0 it is the last weights, which is what is saved without an average."""
    run("ema_decay=null", f"output_dir={tmp_path / 'none'}")
    run("ema_decay=0.0")
    assert_same_weights(weights(tmp_path / "run"), weights(tmp_path / "none"))
    name = "model.decoder.layers.0.fc1.weight"
    assert not torch.equal(weights(tmp_path / "run")[name], weights(plain)[name])


def test_frozen_parts_stay_to_the_bit_and_a_share_of_0_saves_the_start(home: Path, run: Run, tmp_path: Path) -> None:
    start = weights(home, "model")
    run("freeze=[backbone, text]", "max_steps=1")
    after = weights(tmp_path / "run")
    changed = {name for name in start if not torch.equal(start[name], after[name])}
    assert changed and not [name for name in changed if "backbone" in name]
    run("interpolation=0.0", "max_steps=1", f"output_dir={tmp_path / 'none'}")
    saved = weights(tmp_path / "none")
    assert_same_weights({name: saved[name] for name in start}, start)


def test_lora_is_merged_into_what_is_saved(home: Path, run: Run, tmp_path: Path) -> None:
    """Only adapted layers change; stock transformers loads the result; half of it is interpolated."""
    run("lora={rank: 4}", "text_lr_mult=1", "ema_decay=null", "interpolation=0.5")
    before, after = weights(home, "model"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("weight") and "embed" not in name for name in changed)
    transformers.MMGroundingDinoForObjectDetection.from_pretrained(tmp_path / "run" / "last")


def test_a_run_leaves_models_metrics_images_and_a_report(run: Run, tmp_path: Path) -> None:
    """Steps 2 and 4 are measured, and 0 before; `best/` is of the better one; what is retained before and after.

    A finished run that goes on says nothing twice, and clears what kills left of its files.
    """
    options = (f"eval={VAL}", f"retain={REFERRING}", "evaluate_every=2", "draw_every=2", "trackers=[tensorboard]")
    report = run(*options)
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    scored = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    assert scored.keys() == {0, 2, 4}
    assert scored[0].keys() == scored[4].keys() == {
        *(f"shapes val detection/{name}" for name in ("AP", "AP50", "AP75")), "shapes val referring/P@1",
    }  # fmt: skip
    assert report.before == scored[0] and report.after == scored[4]
    assert report.best_step in (2, 4)
    for name in ("last", "best"):
        GroundingDinoForObjectDetection.from_pretrained(folder / name)
        GroundingDinoProcessor.from_pretrained(folder / name)
        transformers.MMGroundingDinoForObjectDetection.from_pretrained(folder / name)
    for name in ("curves.png", "examples.png", "examples/step-000002.png"):
        Image.open(folder / name).verify()
    written = json.loads((folder / "report.json").read_text())
    assert written["after"] == report.after and sum(written["time_shares"].values()) == pytest.approx(1)
    assert read_recipe(str(folder / "recipe.yaml")).max_steps == 4
    events = EventAccumulator(str(folder / "trackers" / "run"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged(folder))
    (hyperparameters,) = (folder / "trackers").rglob("hparams.yml")
    assert yaml.safe_load(hyperparameters.read_text())["batch_size"] == 4

    for name in (".curves.png.77.unfinished", "examples/.step-000002.png.77.unfinished"):
        (folder / name).touch()
    run(*options, "max_steps=5", resume=True)
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert not list(folder.rglob(".*.unfinished"))
    assert again[: len(lines)] == lines
    assert [(line["step"], "evaluation" in line) for line in again[len(lines) :]] == [(5, False), (5, True)]
    run(*options, "max_steps=5", resume=True)
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == again


def test_the_card_knows_which_images_were_measured(home: Path, run: Run, tmp_path: Path) -> None:
    """Datasets of one name are told apart: here the one that is trained on is measured twice."""
    (trained,) = read_recipe(str(home / "recipe.yaml")).train
    same = f"{{annotations: {trained.annotations}, images: {trained.images}}}"
    report = run(f"eval=[{same}]", f"retain=[{same}, {VAL[1:-1]}]", "evaluate_images=2", "max_steps=1")
    _, measured, retained, val = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (measured["name"], measured["images"], measured["measured"], measured["trained_on"]) == ("data", 8, 2, True)
    assert (retained["name"], retained["role"]) == ("data 2", "retain")
    assert (val["images"], val["measured"], val["trained_on"]) == (2, None, False)
    assert {name.split("/")[0] for name in report.after} == {"data", "data 2", "shapes val detection"}


def test_what_was_lost_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5 before, 0.25 after: 0.25 lost of what is to be retained; the dataset that gained is not listed."""
    scores = iter([0.1, 0.5, 0.4, 0.25])
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {"AP": next(scores)})
    assert run(f"eval={VAL}", f"retain={REFERRING}", "max_steps=1").lost == {"shapes val referring/AP": 0.25}


def test_unreadable_images_are_left_out_or_stop_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 8 is more than 1 %: it stops, with the list. Where that is allowed, it is known after a stop, too."""
    write_recipe(tmp_path)
    broken = tmp_path / "data" / "images" / "000003.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 8 images cannot be read, more than 1 %: .*000003\.png: it is not"):
        run("max_steps=4", "batch_size=8", home=tmp_path)
    monkeypatch.setattr(trainer, "LARGEST_SKIPPED_SHARE", 0.2)
    skipped = [{"where": str(broken), "why": "it is not an image"}]
    assert run("max_steps=2", "batch_size=8", home=tmp_path).skipped == skipped
    broken.write_bytes(whole)
    assert run("max_steps=3", "batch_size=8", home=tmp_path, resume=True).skipped == skipped


@pytest.mark.parametrize("least", [100, 99])
def test_of_a_stream_what_was_seen_counts(
    home: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """One of 8 images: 1 % of 100, which are given to a stream from the start, and more than 1 % of 99."""
    monkeypatch.setattr(trainer, "LEAST_OF_A_STREAM", least)
    rows = [
        {
            "image": {"bytes": (home / "data" / "images" / f"{i:06d}.png").read_bytes(), "path": f"{i}.png"},
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
    if least == 100:
        (left_out,) = run(f"train=[{source}]", "max_steps=2").skipped
        assert left_out["why"].startswith("it is damaged")
    else:
        with pytest.raises(DataError, match="1 of 99 images cannot be read, more than 1 %"):
            run(f"train=[{source}]", "max_steps=2")


def test_broken_weights_do_not_replace_a_good_state(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of step 4 are not finite, and saved before a loss is made of them."""
    before_update(
        monkeypatch, lambda state, step: next(state.model.parameters()).grad.fill_(torch.nan) if step == 4 else None
    )
    with pytest.raises(FloatingPointError, match="weights of step 4 are not finite: begin anew with a lower"):
        run("log_every=100", "max_steps=6")
    assert state_name(tmp_path / "run") == "step-000002"


@pytest.mark.parametrize("term", ["loss", "grad_norm"])
def test_a_loss_that_is_not_finite_stops_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    """In step 3 of 6, with nothing to log or to save: no weight takes it in, and the state is of step 2.

    A model whose features are NaN is the first; gradients alone that are not finite are the second.
    """
    accumulate, steps, updates = TrainState.accumulate, iter(range(1, 10)), []

    def breaking(state: TrainState, *arguments: Any) -> Any:
        parameter, step = next(p for p in state.model.parameters() if p.requires_grad), next(steps)
        if step == 3 and term != "grad_norm":
            parameter.data.fill_(torch.nan)
        terms = accumulate(state, *arguments)
        if step == 3 and term == "grad_norm":
            parameter.grad.fill_(torch.inf)
        return terms

    monkeypatch.setattr(TrainState, "accumulate", breaking)
    before_update(monkeypatch, lambda _, step: updates.append(step))
    with pytest.raises(FloatingPointError, match=r"^\w+ of step 3 is not finite: begin anew with a lower") as caught:
        run("log_every=100", "max_steps=6")
    name = str(caught.value).split()[0]
    assert name == term if term == "grad_norm" else name.startswith("loss_")
    assert updates == [1, 2]
    assert state_name(tmp_path / "run") == "step-000002"


def test_a_run_goes_on_as_it_began_and_is_not_trained_over(run: Run, tmp_path: Path) -> None:
    """What the state would override is not taken in silence, and no code that lies in the folder is run.

    Metrics of a run that was killed before it had a state are not added to.
    """
    with pytest.raises(OptionError, match="nothing to resume from"):
        run(resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    run("max_steps=1")
    assert len(logged(tmp_path / "run")) == 1
    with pytest.raises(OptionError, match="holds a run already: go on with --resume"):
        run("max_steps=1")
    for change in ("learning_rate=0.5", "seed=7", "batch_size=2", "train.0.weight=2", "denoising=null"):
        name = change.split("=")[0].split(".")[0]
        with pytest.raises(OptionError, match=f"a run goes on as it began, and {name} changed"):
            run("max_steps=2", change, resume=True)
    state, mark = RunFolder(tmp_path / "run").newest_state(), tmp_path / "mark"
    assert state is not None
    torch.save(Bomb(mark), state / "custom_checkpoint_0.pkl")
    with pytest.raises(StateError, match=r"it is of an earlier version, .* train last/ in a new output_dir"):
        run("max_steps=2", resume=True)
    assert not mark.exists()


def test_a_processor_without_a_shortest_edge_needs_no_augmentation(tmp_path: Path, run: Run) -> None:
    write_recipe(tmp_path)
    path = tmp_path / "model" / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["size"] = {"height": 64, "width": 64}
    path.write_text(json.dumps(config))
    with pytest.raises(OptionError, match="set augmentation=null"):
        run(home=tmp_path)
    assert run("max_steps=1", "augmentation=null", home=tmp_path).steps == 1


@pytest.fixture(scope="module")
def places(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of another architecture, and annotations that are empty, without a valid box, or of other labels."""
    folder = tmp_path_factory.mktemp("places")
    transformers.BertModel(transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )).save_pretrained(folder / "other")  # fmt: skip
    (folder / "empty.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}')
    for name in ("invalid", "other_labels"):
        document = json.loads((home / "data" / "annotations.json").read_text())
        for annotation in document["annotations"]:
            annotation["bbox"][2] = -5.0 if name == "invalid" else annotation["bbox"][2]
        for annotation in document["annotations"][::3]:
            annotation["category_id"] += 1000 if name == "other_labels" else 0
        (folder / f"{name}.json").write_text(json.dumps(document))
    shutil.copytree(home / "data", folder / "unreadable")
    (folder / "unreadable" / "images" / "000003.png").write_bytes(b"no image")
    return {"home": home, "folder": folder}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model={folder}/other", "bert"),
        ("model={folder}/nowhere", "nowhere"),
        ("train.0.annotations={folder}/none.json", r"none\.json"),
        ("train.0.annotations={folder}/empty.json", r"empty\.json"),
        ("train.0.annotations={folder}/invalid.json", r"invalid\.json"),
        ("train.0.format=voc2", "voc2"),
        ("train.0.weight=-1", "weight"),
        (
            "train.0.annotations={folder}/other_labels.json",
            r"\d+ of \d+ boxes have a category that is none of the 32 labels, the first",
        ),
        (
            "eval=[{{annotations: {folder}/unreadable/annotations.json, images: {folder}/unreadable/images}}]",
            r"unreadable: image 4 cannot be read: it is not an image",
        ),
        ("freeze=[nose]", "nose"),
        ("milestones=[2]", "milestones"),
        ("precision=float16", "precision"),
        ("trackers=[clearml]", "the tracker clearml is not installed"),
        ("trackers=[pencil]", "pencil"),
        ("prompts.max_tokens=2", "token"),
        ("eval=[{{format: datasets, annotations: {home}/data, streaming: true}}]", "data"),
    ],
)
def test_mistakes_stop_before_the_first_step(
    run: Run, places: dict[str, Path], tmp_path: Path, assignment: str, message: str
) -> None:
    """Nothing is written by then."""
    with pytest.raises(ValueError, match=message) as caught:
        run(assignment.format(**places))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_is_odd_in_the_data_is_said(
    home: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class that never occurs, and a box outside its image; not that ids have gaps."""
    document = json.loads((home / "data" / "annotations.json").read_text())
    document["categories"].append({"id": 900, "name": "unicorn"})
    document["annotations"][0]["bbox"][2] = 10_000
    (tmp_path / "odd.json").write_text(json.dumps(document))
    run("max_steps=1", f"train.0.annotations={tmp_path / 'odd.json'}")
    said = capsys.readouterr().out
    assert "unused category" in said and "outside box" in said and "gapped" not in said


@pytest.mark.skipif(os.name == "nt", reason="there are no process groups")
def test_a_signal_to_all_processes_leaves_the_readers_to_the_run(home: Path, tmp_path: Path) -> None:
    """As a batch system sends it: to the processes that read images, too."""
    options = {"output_dir": tmp_path / "run", "max_steps": 10_000, "num_workers": 1, "save_every": 10_000}
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "-m", "hf_grounding_dino", "train",
               str(home / "recipe.yaml"), *(f"--set={name}={value}" for name, value in options.items())]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    wait_for_a_line(tmp_path / "run" / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert state_name(tmp_path / "run"), said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))", 2, "state of step 4 could not be written to"),
        ("os.kill(multiprocessing.active_children()[0].pid, 9); time.sleep(60)", 2, "a process that reads images was"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
    ids=["full disk", "killed worker", "bug"],
)
def test_no_error_waits_for_the_processes_that_read(
    home: Path, tmp_path: Path, error: str, code: int, said: str
) -> None:
    """It ends with its line and its exit code; that it took less than 30 s says that it did not hang."""
    options = [f"--set={option}" for option in (f"output_dir={tmp_path / 'run'}", "max_steps=1000", "save_every=4",
               "log_every=1000", "num_workers=2")]  # fmt: skip
    script = f"""
import multiprocessing, os, resource, sys, time
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.training.train_state import TrainState
update, steps = TrainState.update, []
def disturbed(state):
    steps.append(None)
    if len(steps) == 3:
        assert len(multiprocessing.active_children()) == 2
        print("now", flush=True)
        {error}
    update(state)
TrainState.update = disturbed
sys.exit(main(["train", {str(home / "recipe.yaml")!r}, *{options}]))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            while process.stdout.readline() not in ("now\n", ""):
                pass
            _, complaint = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    lines = [line.rpartition("\r")[2] for line in complaint.splitlines()]
    assert [line for line in lines if said in line], complaint
    assert ("Traceback" in complaint) == (code == 1)
