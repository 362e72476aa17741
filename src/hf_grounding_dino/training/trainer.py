"""Training with Accelerate: the loop, evaluation, checkpoints, and the report at the end."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from ..data.collate import GroundingCollator
from ..data.records import DataError, RecordSet
from ..data.sampling import BatchSampler
from ..data.training_dataset import Skipped, training_batches
from ..evaluation.runner import evaluate
from ..inference.predictor import Predictor
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..publishing.facts import CURVES_FILE, EXAMPLES_FILE, EXAMPLES_FOLDER, RECIPE_FILE, STEP_FILE, write_datasets
from ..publishing.history import write_curves
from ..publishing.publish import PublishError, check_access, publish
from ..utils.atomic import write_atomic, write_image
from .checkpoint import RunFolder, StopSignal, step_name
from .datasets import Datasets
from .examples import draw_examples
from .logging import MetricLogger, Stopwatch
from .recipe import Recipe, as_yaml, check_unchanged, flat_options, read_recipe
from .recipes import OptionError
from .train_state import build_accelerator, build_train_state, load_model

REPORT_FILE = "report.json"
LARGEST_SKIPPED_SHARE, LEAST_OF_A_STREAM = 0.01, 1000
MAIN_METRICS = ("AP", "P@1", "R@1")
"""The first of these that a dataset has chooses `best/`."""
_REPORTED = ("AP", "AP50", "AP75", "P@1", "R@1")
_EVALUATION_BATCH = 8

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What a run came to.

    steps: done, of `max_steps`; fewer where a signal stopped it.
    seconds: of this process's part of it, after the preparation.
    time_shares: of those seconds: waiting for data, forward, backward, the optimizer's step, saving, measuring, other.
    before, after: scores of the model at the start and of the one in `last/`, as "dataset/metric".
    lost: by how much the scores of the datasets in `retain` fell, where they did.
    best_step: the step whose model is in `best/`.
    skipped: images that could not be read.
    """

    steps: int
    max_steps: int
    seconds: float
    time_shares: dict[str, float]
    before: Scores
    after: Scores
    lost: Scores
    best_step: int
    skipped: list[dict[str, str]] = field(default_factory=list)


def train(recipe: Recipe, *, resume: bool = False) -> TrainingReport:
    """Train as a recipe says; all results are in its `output_dir`.

    Raises:
        OptionError, DataError, ValueError: something is wrong with the recipe, the model or the data; whatever can be
            known before the first step is raised before it.
        StateError: the disk is full; the last state is intact.
    """
    with RunFolder(Path(recipe.output_dir)) as folder:
        return Trainer(recipe, folder, resume=resume).run()


class Trainer:
    """One run. All that can be wrong is checked before the first step, and nothing is written by then.

    Raises:
        OptionError, DataError, ValueError: whatever can be known to be wrong.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, *, resume: bool = False) -> None:
        self.recipe, self.folder, self.resumed = recipe, folder, resume
        self._check_folder()
        self.datasets = Datasets.open(recipe)
        model, self.processor = load_model(recipe.model)
        self.accelerator = build_accelerator(recipe)
        set_seed(recipe.seed)
        self.plan = BatchSampler(self.datasets.train, recipe.train, batch_size=recipe.batch_size, seed=recipe.seed)
        self.max_steps = recipe.max_steps or math.ceil((recipe.epochs or 0) * self.plan.steps_per_epoch)
        self.training_set = self.datasets.training_set(recipe, self.processor)
        self.state, self.saved = build_train_state(recipe, self.accelerator, model, self.max_steps)
        self.is_main = self.accelerator.is_main_process
        if self.accelerator.process_index:  # all begin with the same weights, and each has its own dropout
            set_seed(recipe.seed, device_specific=True)
        self.best_step = self.first_step = 0
        self.step_scores: dict[int, float] = {}
        self.before: Scores = {}
        self.skipped: dict[str, Skipped] = {}
        note = self._resume() if resume else ""
        self.logger = self._begin()
        for line in ([note] if note else []) + self.datasets.findings():
            self.logger.say(line)

    def _check_folder(self) -> None:
        has_state = self.folder.newest_state() is not None
        if self.resumed and not has_state:
            raise OptionError(f"nothing to resume from in {self.folder.states}")
        if has_state and not self.resumed:
            path = self.folder.path
            raise OptionError(f"{path} holds a run already: go on with --resume, or name another output_dir")
        if self.resumed:
            check_unchanged(read_recipe(str(self.folder.path / RECIPE_FILE)), self.recipe)

    def _claim(self) -> None:
        """Take the folder for this run, in the main process, before anything is changed there."""
        self.folder.hold()
        self._check_folder()  # another run may have been at work since

    def _resume(self) -> str:
        """Load the newest state; a note about what is not as before."""
        if self.is_main:
            self._claim()
        step, content = self.folder.load_state(self.accelerator, self._load_extra)
        self.first_step, self.best_step, self.before = step, content["best_step"], content["before"]
        self.step_scores = {int(at): score for at, score in content["step_scores"].items()}
        self.skipped = {where: Skipped(where, why) for where, why in content.get("skipped", ())}
        if self.is_main:
            # With no step left to do, the last evaluation is made again.
            self.folder.trim_metrics(step, evaluation=step < self.max_steps)
        if content["world_size"] == self.accelerator.num_processes:
            return ""
        return (
            f"this run was on {content['world_size']} processes and goes on with {self.accelerator.num_processes}: each"
            " step has the images it would have had, dropout has other random numbers"
            + "; streams are divided anew"
            * self.training_set.has_streams
        )

    def _load_extra(self, content: Mapping[str, Any], ema: Mapping[str, Tensor]) -> None:
        self.state.schedule.load_state_dict(content["schedule"])
        if self.state.ema is not None:
            self.state.ema.load(ema, content["average_updates"])

    def _begin(self) -> MetricLogger:
        """Write what is known before the first step."""
        recipe, folder = self.recipe, self.folder
        if self.is_main:
            if recipe.push_to_hub is not None:
                check_access(recipe.push_to_hub)
            self._claim()
            if not self.resumed:
                folder.trim_metrics(-1)  # of a run that was killed before it had a state
            write_atomic(folder.path / RECIPE_FILE, as_yaml(recipe))
            write_datasets(folder.path, self.datasets.facts(recipe))
        self.accelerator.init_trackers(folder.path.name, config=flat_options(recipe))
        return MetricLogger(self.accelerator, folder.metrics, self.max_steps, self.first_step)

    def run(self) -> TrainingReport:
        """Train, measure, save, report and publish."""
        recipe, logger = self.recipe, self.logger
        if not self.resumed:
            self.before = self._measure(self._model(), self.datasets.eval | self.datasets.retain)
            self._log(0, self.before)
        logger.watch, started = Stopwatch(), time.perf_counter()
        steps = self._train()
        seconds = time.perf_counter() - started
        shares = logger.watch.shares(seconds)
        after = self._finish(steps)
        logger.bar.close()
        self.accelerator.end_training()
        report = self._report(steps, seconds, shares, after)
        if self.is_main and recipe.push_to_hub is not None and steps == self.max_steps:
            self._publish(recipe.push_to_hub)
        return report

    def _train(self) -> int:
        """Train up to the last step, or until a signal asks to stop, and return how many steps are done."""
        recipe, state, logger, step = self.recipe, self.state, self.logger, self.first_step
        batches = training_batches(
            self.plan,
            self.training_set,
            GroundingCollator(self.processor, resize=recipe.augmentation is None),
            first_step=self.first_step,
            max_steps=self.max_steps,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
            num_workers=recipe.num_workers,
        )
        state.train_mode()
        with StopSignal() as stop:
            for step in range(self.first_step + 1, self.max_steps + 1):
                is_last = step == self.max_steps
                with logger.watch.measure("data"):
                    batch = next(batches)
                terms = state.accumulate(batch, logger.watch)
                with logger.watch.measure("step"):
                    terms["grad_norm"] = state.clip(recipe.max_grad_norm)
                    state.check_finite(terms, step)
                    state.update()
                logger.add(terms)
                self._note_skipped(step, batch.skipped)
                if is_last or step % recipe.log_every == 0:
                    logger.log(step, float(state.schedule.get_last_lr()[-1]))
                stopped = stop.requested(self.accelerator)
                if not stopped and not is_last:
                    self._look(step)
                if stopped or is_last or step % recipe.save_every == 0:
                    with logger.watch.measure("save"):
                        self._save_state(step)
                if stopped:
                    break
        return step

    def _look(self, step: int) -> None:
        """Evaluate and draw where it is time."""
        recipe = self.recipe
        evaluates = recipe.evaluate_every is not None and step % recipe.evaluate_every == 0
        draws = recipe.draw_every is not None and step % recipe.draw_every == 0
        if not evaluates and not draws:
            return
        model = self._model()
        if evaluates:
            self._evaluate(model, step, self.datasets.eval)
        if draws:
            self._draw(model, self.folder.path / EXAMPLES_FOLDER / f"{step_name(step)}.png")
        self.state.train_mode()

    def _model(self) -> GroundingDinoForObjectDetection:
        return self.saved.build(self.state)

    def _measure(self, model: GroundingDinoForObjectDetection, datasets: Mapping[str, RecordSet]) -> Scores:
        scores: Scores = {}
        with self.logger.watch.measure("evaluation"), self.accelerator.autocast():
            predictor = Predictor(model, self.processor, batch_size=_EVALUATION_BATCH)
            for name in datasets:
                found = evaluate(self.datasets.tasks[name], predictor)
                scores |= {f"{name}/{metric}": found[metric] for metric in _REPORTED if metric in found}
        return scores

    def _log(self, step: int, scores: Scores) -> None:
        if scores:
            self.logger.write({"step": step, "evaluation": scores})
            shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            self.logger.say(f"step {step}: {shown}")

    def _evaluate(self, model: GroundingDinoForObjectDetection, step: int, datasets: Mapping[str, RecordSet]) -> Scores:
        """Measure the model of a step, and save it where it is the best so far."""
        scores = self._measure(model, datasets)
        self._log(step, scores)
        first = next(iter(self.datasets.eval), None)
        score = next((scores[key] for metric in MAIN_METRICS if (key := f"{first}/{metric}") in scores), None)
        if score is None:
            return scores
        self.step_scores[step] = score
        if score >= max(self.step_scores.values()):
            self.best_step = step
            self._save_model(model, "best", step)
        if self.recipe.keep_checkpoints and step < self.max_steps:
            self._save_model(model, step_name(step), step)
            if self.is_main:
                self.folder.prune(self.recipe.keep_checkpoints, self.step_scores)
        return scores

    def _draw(self, model: GroundingDinoForObjectDetection, path: Path) -> None:
        """Draw predictions beside the ground truth of the first dataset that can be read at any position."""
        sets = [records for records in [*self.datasets.eval.values(), *self.datasets.train]
                if isinstance(records, RecordSet)]  # fmt: skip
        if self.is_main and sets:
            write_image(path, draw_examples(model, self.processor, sets[0]))
        self.accelerator.wait_for_everyone()

    def _save_state(self, step: int) -> None:
        state = self.state
        state.check_weights(step)
        extra: dict[str, Any] = {"best_step": self.best_step, "before": self.before, "step_scores": self.step_scores}
        extra |= {"skipped": list(self.skipped.values()), "schedule": state.schedule.state_dict()}
        if state.ema is not None:
            extra["average_updates"] = state.ema.updates
        self.folder.save_state(self.accelerator, step, extra, {} if state.ema is None else state.ema.full_weights())

    def _save_model(self, model: GroundingDinoForObjectDetection, name: str, step: int) -> None:
        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
            (folder / STEP_FILE).write_text(json.dumps({"step": step}))

        if self.is_main:
            self.folder.save_model(save, name)
        self.accelerator.wait_for_everyone()

    def _note_skipped(self, step: int, skipped: Sequence[Skipped]) -> None:
        """Note images that could not be read in a step; all processes know them all.

        Raises:
            DataError: they are more than one in a hundred of those that there are, or that were seen of a stream.
        """
        accelerator = self.accelerator
        if accelerator.num_processes > 1:
            count = torch.tensor(len(skipped), device=accelerator.device)
            skipped = gather_object(list(skipped)) if accelerator.reduce(count, "sum").item() else []
        for image in skipped:
            if image.where not in self.skipped:
                self.skipped[image.where] = image
                self.logger.say(f"left out {image.where}: {image.why}")
        known = self.datasets.images_known(step * self.recipe.batch_size, LEAST_OF_A_STREAM)
        if len(self.skipped) > LARGEST_SKIPPED_SHARE * known:
            listed = "; ".join(f"{image.where}: {image.why}" for image in self.skipped.values())
            raise DataError(f"{len(self.skipped)} of {known} images cannot be read, more than 1 %: {listed}")

    def _finish(self, steps: int) -> Scores:
        """Save the last model, and unless a signal hurries, measure it and draw what there is to see."""
        model = self._model()
        stopped = steps < self.max_steps
        after = {} if stopped else self._evaluate(model, steps, self.datasets.eval | self.datasets.retain)
        self._save_model(model, "last", steps)
        if not self.step_scores:
            self.best_step = steps
            self._save_model(model, "best", steps)
        if not stopped:
            self._draw(model, self.folder.path / EXAMPLES_FILE)
            if self.is_main:
                write_curves(self.folder.metrics, self.folder.path / CURVES_FILE)
        return after

    def _report(self, steps: int, seconds: float, shares: dict[str, float], after: Scores) -> TrainingReport:
        retained = [name for name in after if name.rpartition("/")[0] in self.datasets.retain and name in self.before]
        falls = {name: self.before[name] - after[name] for name in retained}
        report = TrainingReport(
            steps=steps,
            max_steps=self.max_steps,
            seconds=seconds,
            time_shares=shares,
            before=self.before,
            after=after,
            lost={name: fall for name, fall in falls.items() if fall > 0},
            best_step=self.best_step,
            skipped=[image._asdict() for image in self.skipped.values()],
        )
        if self.is_main:
            write_atomic(self.folder.path / REPORT_FILE, json.dumps(report.__dict__, indent=2) + "\n")
        return report

    def _publish(self, repo_id: str) -> None:
        """Publish the best model; where that fails, all is on the disk, and a command to try again is named."""
        try:
            self.logger.say(f"published best/ to {publish(self.folder.path, repo_id=repo_id)}")
        except (PublishError, OSError) as error:
            again = shlex.join(["hf-grounding-dino", "publish", str(self.folder.path), "--repo-id", repo_id])
            self.logger.say(f"not published: {' '.join(str(error).split())}; try again with: {again}")
