"""The rows as JSON and as Markdown, with what they were measured on."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_grounding_dino
from hf_grounding_dino import kernel_status

from .rows import Agreement, Ratio, Row, Timing
from .settings import Settings

TITLES = {
    "forward": "Forward pass",
    "train": "Training step: forward, loss, backward",
    "kernel": "Deformable attention alone",
    "pipeline": "Zero-shot object detection pipeline",
    "vocabulary": "Long vocabulary",
    "labels": "Over the number of labels",
    "sizes": "Over the size of the picture",
    "onnx": "As an ONNX file",
}
_CPU_INFORMATION = Path("/proc/cpuinfo")


def environment(device: torch.device, command: str) -> dict[str, str]:
    """What the figures depend on, beside the settings."""
    return {
        "hardware": _hardware(device),
        "versions": f"hf-grounding-dino {hf_grounding_dino.__version__}, torch {torch.__version__},"
        f" transformers {transformers.__version__}, Python {platform.python_version()}",
        "kernel": _kernel(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
    }


def _hardware(device: torch.device) -> str:
    name = platform.processor() or platform.machine()
    if _CPU_INFORMATION.exists():
        lines = (line.partition(":") for line in _CPU_INFORMATION.read_text().splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    cpu = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)} ({cpu})" if device.type == "cuda" else cpu


def _kernel() -> str:
    served = (
        f"{device}: {status.implementation}" + (f" ({status.reason})" if status.implementation == "reference" else "")
        for device, status in kernel_status().items()
    )
    return ", ".join(served)


def as_json(rows: Sequence[Row], settings: Settings, about: Mapping[str, str]) -> str:
    """Every figure, readable by programs; what is not a number is null."""
    content = {
        "environment": dict(about),
        "settings": dataclasses.asdict(settings),
        "rows": [_row_values(row) for row in rows],
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def _row_values(row: Row) -> dict[str, Any]:
    ratio = row.ratio
    agreement = None if row.agreement is None else {**dataclasses.asdict(row.agreement), "agrees": row.agreement.agrees}
    values = dataclasses.asdict(row) | {"agreement": agreement, "notes": row.notes}
    return {"ratio": None if ratio is None else dataclasses.asdict(ratio), **values}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(rows: Sequence[Row], about: Mapping[str, str], plot: str | None = None) -> str:
    """One table a case, ratios first.

    Args:
        rows: in the order of the cases.
        about: what `environment` gives.
        plot: the name of the plot, to show it.
    """
    parts = ["# Benchmark", "\n".join(f"- {name}: {_text(name, value)}" for name, value in about.items())]
    parts.append(
        "Ratios are the other side's time over ours, of medians of interleaved runs, with the range over single pairs:"
        " above 1, ours is faster. Both sides have the same weights and inputs. Ours remembers the features of labels"
        " that it has seen, which the rows of labels not seen before leave out."
    )
    for case, group in itertools.groupby(rows, key=lambda row: row.case):
        parts += [f"## {TITLES[case]}", _table(list(group))]
    if plot is not None:
        parts.append(f"![Time over labels and over size]({plot})")
    return "\n\n".join(parts) + "\n"


def _text(name: str, value: str) -> str:
    return f"`{value}`" if name == "command" else value


def _table(rows: Sequence[Row]) -> str:
    lines = ["| times faster | range | of | ours | | against | | what else |", "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in _cells(row))} |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    ratio = row.ratio
    return [
        f"**{_times(ratio.median)}**" if ratio else "–",
        _range(ratio) if ratio else "–",
        row.what,
        row.own,
        duration(row.own_time),
        row.other,
        duration(row.other_time),
        "; ".join([*_measures(row.measures), *_agreement(row.agreement), *row.notes]),
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def _range(ratio: Ratio) -> str:
    return f"{_times(ratio.low)} … {_times(ratio.high)}"


def duration(timing: Timing) -> str:
    """The median in a unit that suits it."""
    seconds = timing.median
    if math.isnan(seconds):
        return "–"
    if seconds >= 1:
        return f"{seconds:,.2f} s" if seconds < 100 else f"{seconds:,.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _measures(measures: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.3g}" for name, value in measures.items()]


def _agreement(agreement: Agreement | None) -> list[str]:
    if agreement is None:
        return []
    found = f"{agreement.within_half_pixel} of {agreement.detections} detections within half a pixel"
    if not agreement.replayed:
        found += " (choice of queries not replayed)"
    verdict = [] if agreement.agrees or not agreement.strict else ["**OUTPUTS DIFFER**"]
    free = f"{agreement.found_freely} where each side chooses its queries"
    return [*verdict, found, free, f"logits ± {agreement.logits:.1g}, edges ± {agreement.pixels:.1g} px"]


def summary(row: Row) -> str:
    """A row on one line, for whoever waits."""
    ratio = "failed" if row.ratio is None else f"{_times(row.ratio.median)} x"
    notes = "".join(f" ({note})" for note in row.notes) if row.ratio is None else ""
    return f"{row.case}: {row.what}: {row.own} against {row.other}: {ratio}{notes}"
