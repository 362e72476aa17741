"""Write the cards of the public checkpoints from the table of published numbers: python scripts/write_model_cards.py.

What they say is in `hf_grounding_dino/evaluation/published.yaml` and in the template here; edit these, not the cards.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, Benchmark, Split
from hf_grounding_dino.evaluation.published import Checkpoint, Number, checkpoints

FOLDER = Path(__file__).resolve().parents[1] / "model_cards"

BACKBONES = {
    "swin-t": "Swin-T (width 96, depths 2, 2, 6, 2, window 7); 4 feature levels",
    "swin-b": "Swin-B (width 128, depths 2, 2, 18, 2, window 12); 4 feature levels",
    "swin-l": "Swin-L (width 192, depths 2, 2, 18, 2, window 12); 5 feature levels",
}
PAPERS = {
    "grounding-dino": ("https://arxiv.org/abs/2303.05499", "https://github.com/IDEA-Research/GroundingDINO"),
    "mm-grounding-dino": (
        "https://arxiv.org/abs/2401.02361",
        "https://github.com/open-mmlab/mmdetection/tree/main/configs/mm_grounding_dino",
    ),
    "llmdet": ("https://arxiv.org/abs/2501.18954", "https://github.com/iSEE-Laboratory/LLMDet"),
}
WHAT = {
    "grounding-dino": "Grounding DINO as its authors trained it.",
    "mm-grounding-dino": "Grounding DINO as trained by OpenMMLab, with separate heads for each layer and a bias in the "
    "scores.",
    "llmdet": "MM-Grounding-DINO, trained further with a language model that writes captions from its features. The "
    "Hub has the detector alone.",
}
SOURCES = {
    "paper": "the authors' paper",
    "readme": "the authors' repository",
    "mm-eval": "measured by mmdetection",
    "secondary": "cited by others",
}
TEMPLATE = """---
library_name: transformers
pipeline_tag: zero-shot-object-detection
base_model: {id}
{license}tags:
- grounding-dino
- hf_grounding_dino
---

# {name}

{intro}

| | |
|---|---|
| backbone | {backbone} |
| text encoder | BERT base, uncased |
| parameters | {millions} million |
| type on the Hub | `{model_type}` |
| trained on | {data} |
| license of the weights | {weights_license} |
| paper, code | {paper}, {code} |

## Use

```python
from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoProcessor

name = "{id}"
model = GroundingDinoForObjectDetection.from_pretrained(name)
processor = GroundingDinoProcessor.from_pretrained(name)
```

With `transformers` (5.23 or later) alone:

```python
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

name = "{id}"
model = AutoModelForZeroShotObjectDetection.from_pretrained(name)
processor = AutoProcessor.from_pretrained(name)
```

## Published numbers

In percent. **Published by others; none was run by us.** "Saw the data": the benchmark's training split or its images
were in training. "Fine-tuned": a model trained further on the benchmark.

| benchmark | published | source | mark | run by us |
|---|---|---|---|---|
{rows}
{notes}
## Reproduce

{commands}
"""


def cards() -> dict[str, str]:
    """File name to text of all cards."""
    return {f"{one.id.split('/')[-1]}.md": card(one) for one in checkpoints()}


def card(checkpoint: Checkpoint) -> str:
    """The text of a card."""
    footnotes: list[str] = []
    rows = "\n".join(table_row(row, footnotes) for row in rows_of(checkpoint.numbers))
    numbered = [wrapped(f"{position}. {text}") for position, text in enumerate(footnotes, 1)]
    notes = ["\n".join(numbered)] * bool(numbered) + [wrapped(note) for note in checkpoint.notes]
    paper, code = PAPERS[checkpoint.family]
    intro = (
        f"[{checkpoint.id}](https://huggingface.co/{checkpoint.id}): {WHAT[checkpoint.family]} The weights are "
        "the authors'. This card shows how to use them here, and lists the published numbers."
    )
    return TEMPLATE.format(
        id=checkpoint.id,
        license="license: apache-2.0\n" if checkpoint.license.startswith("Apache-2.0") else "",
        name=checkpoint.name,
        intro=wrapped(intro),
        backbone=BACKBONES[checkpoint.backbone],
        millions=round(checkpoint.parameters / 1e6),
        model_type="grounding-dino" if checkpoint.family == "grounding-dino" else "mm-grounding-dino",
        data="; ".join(checkpoint.data),
        weights_license=checkpoint.license,
        paper=paper,
        code=code,
        rows=rows,
        notes="".join(f"\n{note}\n" for note in notes),
        commands=commands(checkpoint),
    )


def wrapped(text: str) -> str:
    """A paragraph in lines of 120 characters, addresses whole."""
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)


def rows_of(numbers: Iterable[Number]) -> list[list[Number]]:
    """Numbers of one measurement together; a metric that comes again begins another measurement."""
    rows: list[list[Number]] = []
    for number in numbers:
        about = replace(number, metric="", value=0.0)
        same = bool(rows) and replace(rows[-1][0], metric="", value=0.0) == about
        if same and number.metric not in [other.metric for other in rows[-1]]:
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows


def table_row(row: Sequence[Number], footnotes: list[str]) -> str:
    """One measurement as a row of the table; notes and doubts go to `footnotes`."""
    one = row[0]
    said = [one.note, f"In doubt: {one.doubt}" if one.doubt else ""]
    texts = [text[0].upper() + text[1:].rstrip(".") + "." for text in said if text]
    mark = f"{one.mark}, in doubt" if one.doubt else one.mark
    footnotes += [text for text in texts if text not in footnotes]
    marks = "".join(f" [{footnotes.index(text) + 1}]" for text in texts)
    benchmark = one.benchmark if one.chunk_size is None else f"{one.benchmark}, {one.chunk_size} labels a prompt"
    return f"| {benchmark} | {values(row)} | {SOURCES[one.source]} | {mark}{marks} | no |"


def values(row: Sequence[Number]) -> str:
    """The values of a measurement; those of parts ("FULL_1-3") in brackets behind that of the whole ("FULL")."""
    wholes = {number.metric: [f"{number.metric} {decimals(number.value)}"] for number in row}
    for number in row:
        whole, _, part = number.metric.partition("_")
        if part and whole in wholes:
            wholes[whole].append(f"{part}: {decimals(number.value)}")
            del wholes[number.metric]
    return ", ".join(f"{first} ({', '.join(parts)})" if parts else first for first, *parts in wholes.values())


def decimals(value: float) -> str:
    """A number as it was printed: one decimal, or two."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def commands(checkpoint: Checkpoint) -> str:
    """The commands that give the numbers of these weights, a block each, and what each needs."""
    own = [number for number in checkpoint.numbers if number.mark != "fine-tuned"]
    blocks = []
    for benchmark in BENCHMARKS:
        chunks = {number.chunk_size: None for number in own if number.benchmark in benchmark.names}
        if chunks:
            blocks.append(block(checkpoint.id, benchmark, list(chunks)))
    if len(own) < len(checkpoint.numbers):
        text = (
            "The weights of the fine-tuned rows are not on the Hub. Recipes for COCO, OV-COCO, LVIS, RefCOCO, "
            "RefCOCO+, RefCOCOg and gRefCOCO come with `hf-grounding-dino train`."
        )
        blocks.append(wrapped(text))
    return "\n\n".join(blocks)


def block(model_id: str, benchmark: Benchmark, chunks: Sequence[int | None]) -> str:
    """A benchmark's command, once for each chunk size, with its files and its protocol in words."""
    lines = []
    for chunk in chunks:
        option, output = (
            ("", benchmark.name) if chunk is None else (f" --chunk-size {chunk}", f"{benchmark.name}-{chunk}")
        )
        lines.append(f"hf-grounding-dino evaluate {benchmark.name} --data data --model {model_id}{option} \\")
        lines.append(f"    --output reports/{output}")
    files = dict.fromkeys(place for split in benchmark.splits for place in places(split))
    needs = ", ".join(f"`{place}`" for place in files) or "the folders of its datasets"
    about = f"**{benchmark.title}** needs {needs} in `data`, from {benchmark.source}. {benchmark.note}"
    return "\n".join([wrapped(about.strip()), "", "```bash", *lines, "```"])


def places(split: Split) -> list[str]:
    """Where the files of a split lie below the data root."""
    images = [] if split.images[0] == "." else [split.images[0]]
    return [split.annotations[0], *images, *split.also.values()]


def main() -> None:
    """Write all cards."""
    for name, text in cards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{FOLDER.name}/{name}\n")


if __name__ == "__main__":
    main()
