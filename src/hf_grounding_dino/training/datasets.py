"""The datasets of a run, opened and described."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count

from ..data.augmentation import Augmentation
from ..data.findings import in_short, refuse_other_labels
from ..data.readers import open_records
from ..data.records import DataError, RecordSet, RecordStream, SourceEntry
from ..data.training_dataset import TrainingDataset
from ..data.training_prompts import PromptSampler
from ..evaluation.datasets import measured_task
from ..evaluation.tasks import Task
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..publishing.facts import DatasetFacts, dataset_facts
from .recipe import Recipe
from .recipes import OptionError

NOT_SAID = ("gapped ids", "crowd", "no boxes")


@dataclass(frozen=True)
class Datasets:
    """The datasets of a run; those that are measured by the names that their scores have.

    tasks: what is measured of each, read as `evaluate` reads it.
    """

    train: list[RecordSet | RecordStream]
    eval: dict[str, RecordSet]
    retain: dict[str, RecordSet]
    tasks: dict[str, Task]

    @classmethod
    def open(cls, recipe: Recipe) -> Datasets:
        """Open all datasets of a recipe.

        Raises:
            DataError: one cannot be read, its labels are not those of its boxes, or it is measured and a stream, or
                not to be read as `evaluate` reads it.
        """
        train = [open_records(entry) for entry in recipe.train]
        for records in train:
            refuse_other_labels(records)
        measured = _open_measured(recipe.eval)
        retained = _open_measured(recipe.retain, taken=measured)
        entries = zip((measured | retained).items(), [*recipe.eval, *recipe.retain], strict=True)
        tasks = {name: measured_task(entry, records) for (name, records), entry in entries}
        if recipe.evaluate_images is not None:
            tasks = {name: task.first(recipe.evaluate_images) for name, task in tasks.items()}
        return cls(train, measured, retained, tasks)

    def images_known(self, images_seen: int, least: int) -> int:
        """How many images there are to train on; of streams those that were seen, at least `least`."""
        sizes = [len(records) for records in self.train if isinstance(records, RecordSet)]
        return sum(sizes) + (max(least, images_seen) if len(sizes) < len(self.train) else 0)

    def findings(self) -> list[str]:
        """What is odd in each dataset, in a line."""
        lines = []
        for records in (*self.train, *self.eval.values(), *self.retain.values()):
            odd = in_short(finding for finding in records.findings if finding.kind not in NOT_SAID)
            if odd:
                lines.append(f"{records.name}: {odd}; `hf-grounding-dino validate` says more")
        return lines

    def facts(self, recipe: Recipe) -> list[DatasetFacts]:
        """What the model card says of them."""
        facts = [dataset_facts(records, "train", e) for records, e in zip(self.train, recipe.train, strict=True)]
        trained_on = {entry.annotations for entry in recipe.train}
        for role, sets, entries in (("eval", self.eval, recipe.eval), ("retain", self.retain, recipe.retain)):
            for (name, records), entry in zip(sets.items(), entries, strict=True):
                limit = recipe.evaluate_images or len(records)
                facts.append(
                    replace(
                        dataset_facts(records, role, entry),
                        name=name,
                        measured=limit if limit < len(records) else None,
                        trained_on=entry.annotations in trained_on,
                    )
                )
        return facts

    def training_set(self, recipe: Recipe, processor: GroundingDinoProcessor) -> TrainingDataset:
        """The images to train on with their prompts, augmented.

        Raises:
            OptionError: images are to be augmented that the processor does not resize by the shortest edge.
        """
        samplers = [PromptSampler(records.label_names, processor.tokenizer, recipe.prompts) for records in self.train]
        if recipe.augmentation is None:
            return TrainingDataset(self.train, samplers)
        size = processor.image_processor.size
        edges = (size.get("shortest_edge"), size.get("longest_edge"))
        if None in edges:
            raise OptionError("the processor of the model does not resize by the shortest edge: set augmentation=null")
        return TrainingDataset(self.train, samplers, Augmentation(recipe.augmentation.scaled(*edges)))


def _open_measured(entries: Sequence[SourceEntry], taken: Collection[str] = ()) -> dict[str, RecordSet]:
    """The datasets by name; one whose name is taken gets a number."""
    opened: dict[str, RecordSet] = {}
    for entry in entries:
        records = open_records(entry)
        if not isinstance(records, RecordSet):
            raise DataError(f"{entry.annotations}: a dataset to be measured must not be streamed")
        name = records.name
        numbers = count(2)
        while name in opened or name in taken:
            name = f"{records.name} {next(numbers)}"
        opened[name] = records
    return opened
