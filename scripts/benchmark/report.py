"""The rows as JSON, as Markdown and as a plot, with what they were measured on."""

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

from .agreement import Agreement
from .measure import Row, Timing
from .settings import Settings

TITLES = {
    "forward": "Forward pass",
    "train": "Training step: forward, loss, backward",
    "kernel": "Deformable attention alone",
    "pipeline": "Zero-shot object detection pipeline",
    "vocabulary": "Long vocabulary",
    "labels": "Over the number of labels",
    "sizes": "Over the size of the image",
    "onnx": "As an ONNX file",
}
_CPU_INFORMATION = Path("/proc/cpuinfo")
# Okabe and Ito's colours, which stay apart for colour-blind eyes; stock in grey, as the ground that others stand on.
_COLORS = {
    "stock float32": "#787878",
    "stock bfloat16": "#a5a5a5",
    "stock float16": "#c3c3c3",
    "ours float32": "#0072b2",
    "ours bfloat16": "#d55e00",
    "ours float16": "#009e73",
}


def environment(device: torch.device, command: str) -> dict[str, str]:
    """What the figures depend on, beside the settings."""
    name = platform.processor() or platform.machine()
    if _CPU_INFORMATION.exists():
        lines = (line.partition(":") for line in _CPU_INFORMATION.read_text().splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    cpu = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    served = (
        f"{device}: {status.implementation}" + (f" ({status.reason})" if status.implementation == "reference" else "")
        for device, status in kernel_status().items()
    )
    return {
        "hardware": f"{torch.cuda.get_device_name(device)} ({cpu})" if device.type == "cuda" else cpu,
        "versions": f"hf-grounding-dino {hf_grounding_dino.__version__}, torch {torch.__version__},"
        f" transformers {transformers.__version__}, Python {platform.python_version()}",
        "kernel": ", ".join(served),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
    }


def as_json(rows: Sequence[Row], settings: Settings, about: Mapping[str, str]) -> str:
    """Every figure, readable by programs; what is not a number is null."""
    content = {
        "environment": dict(about),
        "settings": dataclasses.asdict(settings),
        "rows": [_row_values(row) for row in rows],
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def _row_values(row: Row) -> dict[str, Any]:
    agreement = None if row.agreement is None else {**dataclasses.asdict(row.agreement), "agrees": row.agreement.agrees}
    values = dataclasses.asdict(row) | {"agreement": agreement, "notes": row.notes}
    return {"ratio": None if row.ratio is None else row.ratio._asdict(), **values}


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
    facts = (f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in about.items())
    parts = ["# Benchmark", "\n".join(facts)]
    parts.append(
        "Ratios are the other side's time over ours, of medians of interleaved runs, with the range over single pairs:"
        " above 1, ours is faster. Both sides have the same weights and inputs. Ours caches the text features of labels"
        " that it has seen, which the rows of labels not seen before leave out."
    )
    for case, group in itertools.groupby(rows, key=lambda row: row.case):
        lines = ["| times faster | range | of | ours | | against | | what else |", "|---|---|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in _cells(row))} |" for row in group]
        parts += [f"## {TITLES[case]}", "\n".join(lines)]
    if plot is not None:
        parts.append(f"![Time over labels and over size]({plot})")
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> list[str]:
    ratio = row.ratio
    return [
        f"**{_times(ratio.median)}**" if ratio else "–",
        f"{_times(ratio.low)} … {_times(ratio.high)}" if ratio else "–",
        row.what,
        row.own,
        duration(row.own_time),
        row.other,
        duration(row.other_time),
        "; ".join(
            [*(f"{name} {value:.3g}" for name, value in row.measures.items()), *_agreement(row.agreement), *row.notes]
        ),
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def duration(timing: Timing) -> str:
    """The median in a unit that suits it."""
    seconds = timing.median
    if math.isnan(seconds):
        return "–"
    if seconds >= 1:
        return f"{seconds:,.2f} s" if seconds < 100 else f"{seconds:,.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


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


def write_plot(rows: Sequence[Row], path: Path) -> bool:
    """Draw time over labels and over size, as far as measured; False where there are no two points of any."""
    from matplotlib.figure import Figure

    curves = {case: _curves([row for row in rows if row.case == case]) for case in ("labels", "sizes")}
    drawn = [case for case, lines in curves.items() if lines]
    if not drawn:
        return False
    figure = Figure(figsize=(6 * len(drawn), 4.7), layout="constrained")
    for axes, case in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        some = next(row for row in rows if row.case == case)
        for name, points in curves[case].items():
            axes.plot(*zip(*sorted(points.items()), strict=True), "o-", color=_COLORS[name], label=name)
        if case == "labels":
            axes.set(title="One image, {} × {}".format(*some.size or ()), xlabel="labels in the prompt")
        else:
            sizes = {height * width: f"{height} × {width}" for height, width in (row.size or (0, 0) for row in rows)}
            ticks = [pixels for pixels in sorted(sizes) if any(pixels in points for points in curves[case].values())]
            axes.set_xticks(ticks, [sizes[pixels] for pixels in ticks], fontsize="small")
            axes.set(title=f"One image, {some.labels} labels", xlabel="size of the image (axis: pixels)")
        axes.set(ylabel="seconds")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e2e2e2")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=200)
    return True


def _curves(rows: Sequence[Row]) -> dict[str, dict[float, float]]:
    """Of each side by name, seconds over labels or pixels; those with one point are left out."""
    points: dict[str, dict[float, float]] = {}
    for row in rows:
        x = row.labels if row.case == "labels" else math.prod(row.size or ())
        for name, timing in ((row.other, row.other_time), (row.own, row.own_time)):
            if timing.seconds and name in _COLORS:
                points.setdefault(name, {})[float(x or 0)] = timing.median
    return {name: points[name] for name in _COLORS if len(points.get(name, {})) > 1}
