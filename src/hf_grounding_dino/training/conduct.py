"""Conducting a run: training, measuring, saving, and the report at the end."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image

from ..data.findings import in_short
from ..data.images import load_image
from ..data.records import DataError, Record, RecordSet
from ..data.training_dataset import Skipped, training_batches
from ..evaluation.records import evaluate_records
from ..inference.large_vocabulary import detect
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..publishing.card import CURVES_FILE, EXAMPLES_FILE
from ..publishing.facts import RECIPE_FILE, set_facts, write_data_facts
from ..publishing.publish import PublishError, check_access, publish
from ..utils.atomic import write_atomic, write_image
from .curves import plot_losses
from .loop import Actions, train
from .progress import Progress, Stopwatch
from .recipe import Recipe, as_yaml, flat_options
from .run import Run
from .sharding import own_part
from .snapshots import as_detections, beside_truth, snapshot_sheet
from .states import PICTURES, STEP_FILE, RunFolder, step_name

REPORT_FILE = "report.json"
LARGEST_SKIPPED_SHARE, FEWEST_OF_A_STREAM = 0.01, 1000
MAIN_METRICS = ("AP", "R@1")
NOT_SAID = ("gapped ids", "crowd", "no boxes")
PICTURES_SHOWN, SCORE_SHOWN = 4, 0.3

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run came to.

    steps: done, of `max_steps`; fewer where a signal stopped it.
    seconds: of this process's part of it, after the preparation.
    time_shares: of those seconds: waiting for data, forward, backward, the optimiser's step, saving, measuring, other.
    before, after: scores of the model at the start and of the one in `last/`, as "set/metric".
    lost: by how much the scores of the sets in `keep` fell, where they did.
    best_step: the step whose model is in `best/`.
    skipped: pictures that could not be read.
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


def run_recipe(recipe: Recipe, *, resume: bool = False) -> Report:
    """Train as a recipe says; everything that it leaves is in its `output_dir`.

    Raises:
        OptionError, DataError, ValueError: something is wrong with the recipe, the model or the data; whatever can be
            known before the first step is raised before it.
        StateError: the disk is full; the last state is intact.
    """
    with RunFolder(Path(recipe.output_dir)) as folder:
        return Conductor(Run(recipe, folder, resume=resume)).conduct()


class Conductor:
    """The actions of a run between its steps."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recipe = run.recipe
        self.folder = run.folder
        self.is_main = run.accelerator.is_main_process
        self._pictures_seen = run.first_step * self.recipe.batch_size
        if self.is_main:
            if run.recipe.push_to_hub is not None:
                check_access(run.recipe.push_to_hub)
            run.claim()
            if not run.resumed:
                self.folder.trim_metrics(-1)  # of a run that was killed before it had a state
            write_atomic(self.folder.path / RECIPE_FILE, as_yaml(run.recipe))
            self._write_data_facts()
        run.accelerator.init_trackers(self.folder.path.name, config=flat_options(run.recipe))
        self.progress = Progress(run.accelerator, self.folder.metrics, run.max_steps, run.first_step)
        if run.note:
            self.progress.say(run.note)
        for records in (*run.data.train, *run.data.eval.values(), *run.data.keep.values()):
            odd = in_short(finding for finding in records.findings if finding.kind not in NOT_SAID)
            if odd:
                self.progress.say(f"{records.name}: {odd}; `hf-grounding-dino validate` says more")

    def _write_data_facts(self) -> None:
        data, recipe = self.run.data, self.recipe
        facts = [set_facts(records, "train", entry) for records, entry in zip(data.train, recipe.train, strict=True)]
        for role, sets, entries in (("eval", data.eval, recipe.eval), ("keep", data.keep, recipe.keep)):
            for (name, records), entry in zip(sets.items(), entries, strict=True):
                one = set_facts(records, role, entry)
                limit = recipe.evaluate_pictures or len(records)
                measured = limit if limit < len(records) else None
                trained_on = entry.annotations in [trained.annotations for trained in recipe.train]
                facts.append(dataclasses.replace(one, name=name, measured=measured, trained_on=trained_on))
        write_data_facts(self.folder.path, facts)

    def conduct(self) -> Report:
        """Train, measure and save."""
        run, recipe, accelerator = self.run, self.recipe, self.run.accelerator
        if not run.resumed:
            run.before = self._measure(self._model(), run.data.eval | run.data.keep)
            self._log(0, run.before)
        batches = training_batches(
            run.plan,
            run.training_set,
            run.collator,
            first_step=run.first_step,
            max_steps=run.max_steps,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            micro_batch_size=recipe.pictures_at_once or recipe.batch_size,
            num_workers=recipe.num_workers,
        )
        actions = Actions(self.save_state, self.evaluate, self.show_pictures, self.leave_out)
        self.progress.watch, started = Stopwatch(), time.perf_counter()
        steps = train(run.trainee, batches, recipe, self.progress, actions, run.first_step, run.max_steps)
        seconds = time.perf_counter() - started
        shares = self.progress.watch.shares(seconds)
        after = self.finish(steps)
        self.progress.close()
        accelerator.end_training()
        report = self._report(steps, seconds, shares, after)
        if self.is_main and recipe.push_to_hub is not None and steps == run.max_steps:
            self._publish(recipe.push_to_hub)
        return report

    def _model(self) -> GroundingDinoForObjectDetection:
        return self.run.saved.build(self.run.trainee)

    def _measure(self, model: GroundingDinoForObjectDetection, sets: Mapping[str, RecordSet]) -> Scores:
        scores: Scores = {}
        with self.progress.watch.measure("evaluation"), self.run.accelerator.autocast():
            for name, records in sets.items():
                found = evaluate_records(model, self.run.processor, records, limit=self.recipe.evaluate_pictures)
                scores |= {f"{name}/{metric}": value for metric, value in found.items()}
        return scores

    def _log(self, step: int, scores: Scores) -> None:
        if not scores:
            return
        self.progress.write({"step": step, "evaluation": scores})
        shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.progress.say(f"step {step}: {shown}")

    def save_state(self, step: int) -> None:
        """Write what is needed to go on."""
        run = self.run
        self._refuse_broken_weights(step)
        extra: dict[str, Any] = {"best_step": run.best_step, "before": run.before, "step_scores": run.step_scores}
        extra |= {"skipped": list(run.skipped.values()), "schedule": run.trainee.schedule.state_dict()}
        average = run.trainee.average
        if average is not None:
            extra["average_updates"] = average.updates
        self.folder.save_state(run.accelerator, step, extra, {} if average is None else average.whole_weights())

    def _refuse_broken_weights(self, step: int) -> None:
        """Keep the state from before what went wrong.

        Raises:
            FloatingPointError: a weight is not finite, in every process.
        """
        accelerator, parameters = self.run.accelerator, self.run.trainee.model.parameters()
        finite = torch.stack([own_part(parameter.detach()).isfinite().all() for parameter in parameters]).all()
        if accelerator.reduce(finite.float(), "sum").item() < accelerator.num_processes:
            raise FloatingPointError(
                f"weights of step {step} are not finite: begin anew with a lower learning_rate or max_grad_norm; the"
                " state before is kept"
            )

    def evaluate(self, step: int) -> None:
        """Measure the model of this moment, and keep it where it is the best so far."""
        self._evaluate(self._model(), step, self.run.data.eval)

    def _evaluate(self, model: GroundingDinoForObjectDetection, step: int, sets: Mapping[str, RecordSet]) -> Scores:
        run = self.run
        scores = self._measure(model, sets)
        self._log(step, scores)
        score = main_score(scores, run.data.eval)
        if score is None:
            return scores
        run.step_scores[step] = score
        if score >= max(run.step_scores.values()):
            run.best_step = step
            self._save_model(model, "best", step)
        if self.recipe.keep_checkpoints and step < run.max_steps:
            self._save_model(model, step_name(step), step)
            if self.is_main:
                self.folder.keep(self.recipe.keep_checkpoints, run.step_scores)
        return scores

    def _save_model(self, model: GroundingDinoForObjectDetection, name: str, step: int) -> None:
        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            self.run.processor.save_pretrained(folder)
            (folder / STEP_FILE).write_text(json.dumps({"step": step}))

        if self.is_main:
            self.folder.save_model(save, name)
        self.run.accelerator.wait_for_everyone()

    def show_pictures(self, step: int) -> None:
        """Draw what the model finds beside what is there, in `pictures/`."""
        self._draw(self._model(), self.folder.path / PICTURES / f"{step_name(step)}.png")

    def _draw(self, model: GroundingDinoForObjectDetection, path: Path) -> None:
        data = self.run.data
        shown = [records for records in [*data.eval.values(), *data.train] if isinstance(records, RecordSet)]
        if self.is_main and shown:
            records = shown[0]
            drawings = list(islice(self._drawings(model, records), PICTURES_SHOWN))
            write_image(path, snapshot_sheet(drawings))
        self.run.accelerator.wait_for_everyone()

    def _drawings(self, model: GroundingDinoForObjectDetection, records: RecordSet) -> Iterator[Image.Image]:
        """What is found beside what is there, for every picture that can be read."""
        for i in range(len(records)):
            record = records[i]
            try:
                image = load_image(record.image)
            except ValueError:
                continue
            names = list(phrases(record)) if record.caption is not None else list(records.label_names)
            with torch.inference_mode():
                found = detect(
                    model, self.run.processor, [image], names, threshold=SCORE_SHOWN, one_label_per_box=True
                )[0]
            truth = [names[i] for i in record.labels.tolist()] if record.labels is not None else phrase_of_boxes(record)
            yield beside_truth(
                image,
                as_detections(found["boxes"].cpu(), found["text_labels"], found["scores"].cpu()),
                as_detections(record.boxes, truth),
                title=f"{records.name}, {record.image_id}",
            )

    def leave_out(self, skipped: Sequence[Skipped]) -> None:
        """Note pictures that could not be read in a step; all processes know them all.

        Raises:
            DataError: they are more than one in a hundred of those that there are, or that were seen of a stream.
        """
        run, accelerator = self.run, self.run.accelerator
        self._pictures_seen += self.recipe.batch_size
        if accelerator.num_processes > 1:
            count = torch.tensor(len(skipped), device=accelerator.device)
            skipped = gather_object(list(skipped)) if accelerator.reduce(count, "sum").item() else []
        for picture in skipped:
            if picture.where not in run.skipped:
                run.skipped[picture.where] = picture
                self.progress.say(f"left out {picture.where}: {picture.why}")
        known = sum(len(records) for records in run.data.train if isinstance(records, RecordSet))
        if len(run.data.train) > sum(isinstance(records, RecordSet) for records in run.data.train):
            known += max(FEWEST_OF_A_STREAM, self._pictures_seen)
        if len(run.skipped) > LARGEST_SKIPPED_SHARE * known:
            listed = "; ".join(f"{picture.where}: {picture.why}" for picture in run.skipped.values())
            raise DataError(f"{len(run.skipped)} of {known} pictures cannot be read, more than 1 %: {listed}")

    def finish(self, steps: int) -> Scores:
        """Save the last model, and unless a signal hurries, measure it and draw what there is to see."""
        run, model = self.run, self._model()
        stopped = steps < run.max_steps
        after = {} if stopped else self._evaluate(model, steps, run.data.eval | run.data.keep)
        self._save_model(model, "last", steps)
        if not run.step_scores:
            run.best_step = steps
            self._save_model(model, "best", steps)
        if stopped:
            return after
        self._draw(model, self.folder.path / EXAMPLES_FILE)
        curves = plot_losses(self.progress.path) if self.is_main else None
        if curves is not None:
            write_image(self.folder.path / CURVES_FILE, curves)
        return after

    def _publish(self, repo_id: str) -> None:
        """Publish the best model; where that fails, all is on the disk, and a command to try again is named."""
        try:
            self.progress.say(f"published best/ to {publish(self.folder.path, repo_id=repo_id)}")
        except (PublishError, OSError) as error:
            again = shlex.join(["hf-grounding-dino", "publish", str(self.folder.path), "--repo-id", repo_id])
            self.progress.say(f"not published: {' '.join(str(error).split())}; try again with: {again}")

    def _report(self, steps: int, seconds: float, shares: Mapping[str, float], after: Scores) -> Report:
        run = self.run
        names = tuple(f"{name}/" for name in run.data.keep)
        kept = [name for name in after if name.startswith(names) and name in run.before]
        falls = {name: run.before[name] - after[name] for name in kept}
        report = Report(
            steps=steps,
            max_steps=run.max_steps,
            seconds=seconds,
            time_shares=dict(shares),
            before=run.before,
            after=after,
            lost={name: fall for name, fall in falls.items() if fall > 0} if names else {},
            best_step=run.best_step,
            skipped=[picture._asdict() for picture in run.skipped.values()],
        )
        if self.is_main:
            write_atomic(self.folder.path / REPORT_FILE, json.dumps(report.__dict__, indent=2) + "\n")
        return report


def main_score(scores: Mapping[str, float], sets: Mapping[str, RecordSet]) -> float | None:
    """What chooses the best model: AP or R@1 of the first set; None where nothing is measured."""
    names = [f"{name}/{metric}" for name in list(sets)[:1] for metric in MAIN_METRICS]
    return next((scores[name] for name in names if name in scores), None)


def phrases(record: Record) -> dict[str, None]:
    """What a grounding record's caption names with boxes, each once."""
    return dict.fromkeys(phrase_of_boxes(record)) or {str(record.caption): None}


def phrase_of_boxes(record: Record) -> list[str]:
    """The words of the caption for each box."""
    caption = str(record.caption)
    return [" ".join(caption[start:end] for start, end in spans) for spans in record.spans or ()]
