"""Which loss teaches a small model more: that of transformers, or ours, without and with denoising queries.

The variants of a seed begin with the weights of one folder, see the same images of Shapes with the same prompts, and
are trained by the same loop. What differs is the class that the folder is loaded into, and with it the loss. All are
measured by the inference of this package, with the weights that each variant has at that moment: names and meaning of
the weights are the same, and of an image by itself both classes make the same.

Four things are chosen in favour of transformers. All images have one size, so that nothing is padded and its
targets, relative to the padded canvas, are right. Its `auxiliary_loss` is on, which it is not by default, so that every
decoder layer is supervised. There are 100 queries for the 189 cells of an image of 96 pixels, so that it matters
little which cells the first stage chooses, which its loss does not train; with 30 it hardly learns at all. And the
learning rate falls to 0 at the end, so that its final AP, to which ours is compared, is that of settled weights, where
ours is read off on the way. With `closed`, its class targets are right, too.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers import BertConfig, SwinConfig

from hf_grounding_dino.data.collate import GroundingCollator
from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import RecordSet, SourceEntry
from hf_grounding_dino.data.sampling import BatchSampler
from hf_grounding_dino.data.shapes import VOCABULARY
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.data.training_dataset import TrainingDataset, training_batches
from hf_grounding_dino.data.training_prompts import PromptSampler, PromptSettings
from hf_grounding_dino.evaluation.datasets import records_task
from hf_grounding_dino.evaluation.runner import evaluate
from hf_grounding_dino.inference.predictor import Predictor
from hf_grounding_dino.models.grounding_dino.configuration_grounding_dino import MMGroundingDinoConfig
from hf_grounding_dino.models.grounding_dino.label_embedding import KEY_IN_MODEL
from hf_grounding_dino.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.training.logging import Stopwatch
from hf_grounding_dino.training.optim import learning_rate_schedule, parameter_groups
from hf_grounding_dino.utils.atomic import write_atomic

STOCK, OURS, DENOISED = "transformers", "ours", "ours with denoising"
VARIANTS = (STOCK, OURS, DENOISED)
RESULTS_FILE = "comparison.json"
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.05
HELD_OUT_SEED = 1
SHORTEST_SIDE = 72


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """What is compared.

    steps: of the optimiser, in each of the three variants of each seed.
    seeds: how many; a seed is that of the start, of the images and of the prompts.
    every: steps between evaluations; there is one after the last step, too.
    images: held-out ones to measure AP on, the same ones every time.
    batch_size: images of a step. With few and without `closed`, the lookup named there can leave the batch, and
        transformers raises an IndexError.
    side: of the square images, in pixels; at least 72, below which they have fewer cells than there are queries.
    negatives: most labels of a prompt that are not in its image.
    closed: every prompt is all labels in one order instead. In transformers' loss the class targets of an image are
        looked up in another one's prompt, from the third of a batch on or the second; here all prompts are alike.
    learning_rate: peak, of all weights alike, after a warm-up over a twentieth of the steps.
    denoising_queries: about how many an image gets in the third variant.

    Raises:
        ValueError: a number is not positive, or the side too short.
    """

    steps: int = 900
    seeds: int = 3
    every: int = 90
    images: int = 150
    batch_size: int = 8
    side: int = 96
    negatives: int = 20
    closed: bool = False
    learning_rate: float = 1e-3
    denoising_queries: int = 30

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{name} is {value}: it must be more than 0")
        if self.side < SHORTEST_SIDE:
            raise ValueError(f"side is {self.side}: it must be at least {SHORTEST_SIDE}")


class Score(NamedTuple):
    """AP and AP50 in [0, 1] after a number of steps."""

    step: int
    ap: float
    ap50: float


@dataclass
class Trial:
    """A variant trained from a seed.

    scores: of the evaluations so far, in order.
    seconds: the training so far took, evaluations aside.
    """

    variant: str
    seed: int
    scores: list[Score]
    seconds: float = 0.0

    def is_finished(self, settings: ComparisonSettings) -> bool:
        """Whether the last step was measured."""
        return bool(self.scores) and self.scores[-1].step == settings.steps


def compare(settings: ComparisonSettings, output: Path) -> list[Trial]:
    """Train and measure every variant from every seed; those that `output` holds finished are not repeated.

    `comparison.json` is written there after each evaluation.

    Raises:
        ValueError: what is there was made with other settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    trials = [trial for trial in read_trials(output, settings) if trial.is_finished(settings)]
    for seed in range(settings.seeds):
        finished = [trial.variant for trial in trials if trial.seed == seed]
        with TemporaryDirectory() as folder:
            start = write_start(Path(folder), settings, seed)
            for variant in [name for name in VARIANTS if name not in finished]:
                trials.append(Trial(variant, seed, []))
                for score in run_trial(trials[-1], settings, start):
                    write_trials(output, settings, trials)
                    tqdm.write(f"{variant}, seed {seed}, step {score.step}: AP {score.ap:.4f}, AP50 {score.ap50:.4f}")
    return trials


def run_trial(trial: Trial, settings: ComparisonSettings, start: Path) -> Iterator[Score]:
    """Train one variant; each score is added to the trial, then handed out."""
    processor = GroundingDinoProcessor.from_pretrained(start)
    records = held_out(settings)
    model = load_variant(trial.variant, start, settings, trial.seed)
    batches = tqdm(
        training_data(settings, processor, trial.seed),
        total=settings.steps,
        desc=f"{trial.variant}, seed {trial.seed}",
        leave=False,
    )
    watch, started = Stopwatch(), time.perf_counter()
    for step in train(model, batches, settings):
        with watch.measure("evaluation"):
            score = Score(step, *measure(model, start, processor, records))
        trial.seconds = time.perf_counter() - started - watch.seconds["evaluation"]
        trial.scores.append(score)
        yield score


def small_config(vocab_size: int, side: int) -> MMGroundingDinoConfig:
    """An architecture like nano's, half as wide and with two layers each, without anything random in training."""
    stages: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"]}
    return MMGroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=side,
            embed_dim=24,
            depths=[1, 1, 2, 1],
            num_heads=[2, 4, 4, 8],
            window_size=6,
            drop_path_rate=0.0,
            **stages,
        ),
        text_config=BertConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        d_model=64,
        num_queries=100,
        num_feature_levels=3,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_n_points=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        dropout=0.0,
        fusion_droppath=0.0,
        decoder_bbox_embed_share=False,
        decoder_cls_embed_share=False,
    )


def write_start(folder: Path, settings: ComparisonSettings, seed: int) -> Path:
    """Save random weights and the processor, as either class loads them."""
    size = {"shortest_edge": settings.side, "longest_edge": settings.side}
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), build_tokenizer(VOCABULARY))
    torch.manual_seed(seed)
    config = small_config(len(processor.tokenizer), settings.side)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load_variant(variant: str, start: Path, settings: ComparisonSettings, seed: int) -> nn.Module:
    """The weights of `start` in the class that a variant trains."""
    if variant == STOCK:
        stock = transformers.MMGroundingDinoForObjectDetection.from_pretrained(start, dtype=torch.float32)
        stock.config.auxiliary_loss = True
        return stock
    model = GroundingDinoForObjectDetection.from_pretrained(start, dtype=torch.float32)
    if variant == DENOISED:
        torch.manual_seed(seed)
        model.enable_denoising(settings.denoising_queries)
    return model


def training_data(
    settings: ComparisonSettings, processor: GroundingDinoProcessor, seed: int
) -> Iterator[dict[str, Any]]:
    """The batches of a seed, with labels as both classes read them; no image comes twice."""
    scenes = settings.steps * settings.batch_size
    entry = _shapes("train", scenes, seed, settings.side)
    records = open_records(entry)
    prompts = PromptSettings(negatives=settings.negatives, all_labels=settings.closed)
    steps = training_batches(
        BatchSampler([records], [entry], batch_size=settings.batch_size, seed=seed),
        TrainingDataset([records], [PromptSampler(records.label_names, processor.tokenizer, prompts)]),
        GroundingCollator(processor),
        first_step=0,
        max_steps=settings.steps,
        rank=0,
        world=1,
        micro_batch_size=settings.batch_size,
        num_workers=0,
    )
    return (step.micro_batches[0] for step in steps)


def held_out(settings: ComparisonSettings) -> RecordSet:
    """The images to measure on, of no training set."""
    records = open_records(_shapes("val", settings.images, HELD_OUT_SEED, settings.side))
    assert isinstance(records, RecordSet)
    return records


def _shapes(split: str, count: int, seed: int, side: int) -> SourceEntry:
    annotations = f"{split}?count={count}&seed={seed}&width={side}&height={side}"
    return SourceEntry(format="shapes", annotations=annotations)


def train(model: nn.Module, batches: Iterable[dict[str, Any]], settings: ComparisonSettings) -> Iterator[int]:
    """Train on all batches, and hand out the number of steps done whenever it is time to measure."""
    groups = parameter_groups(model, settings.learning_rate, backbone_lr_mult=1.0, text_lr_mult=1.0)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    schedule = learning_rate_schedule(
        optimizer, "cosine", settings.steps, warmup_steps=int(WARMUP_SHARE * settings.steps)
    )
    model.train()
    for step, batch in enumerate(batches, start=1):
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % settings.every == 0 or step == settings.steps:
            yield step


def measure(
    trained: nn.Module, start: Path, processor: GroundingDinoProcessor, records: RecordSet
) -> tuple[float, float]:
    """AP and AP50 of a variant's weights in this package's class, which is loaded anew and leaves `trained` alone."""
    model = GroundingDinoForObjectDetection.from_pretrained(start, dtype=torch.float32)
    model.load_state_dict({name: value for name, value in trained.state_dict().items() if name != KEY_IN_MODEL})
    scores = evaluate_records(model, processor, records)
    return scores["AP"], scores["AP50"]


def evaluate_records(
    model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor, records: RecordSet
) -> dict[str, float]:
    """What `evaluate` measures of records."""
    return evaluate(records_task(records), Predictor(model, processor, batch_size=8))


def write_trials(output: Path, settings: ComparisonSettings, trials: Iterable[Trial]) -> None:
    """Write `comparison.json`, whole or not at all."""
    content = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": dataclasses.asdict(settings),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    write_atomic(output / RESULTS_FILE, json.dumps(content, indent=1) + "\n")


def read_trials(output: Path, settings: ComparisonSettings) -> list[Trial]:
    """The trials that `comparison.json` holds, none where there is no such file.

    Raises:
        ValueError: they were made with other settings.
    """
    file = output / RESULTS_FILE
    if not file.exists():
        return []
    content = json.loads(file.read_text())
    for name, value in dataclasses.asdict(settings).items():
        if content["settings"].get(name) != value:
            raise ValueError(
                f"{file} was made with {name}={content['settings'].get(name)}, not {value}: name another output"
            )
    return [Trial(**{**trial, "scores": [Score(*score) for score in trial["scores"]]}) for trial in content["trials"]]
