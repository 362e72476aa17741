"""Several sets of one benchmark side by side: `index.html` and `metrics.json` above their reports."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2

from ..utils.atomic import write_atomic
from .facts import Published
from .report import METRICS_FILE, PAGE_FILE, finite
from .report_page import STYLE
from .report_tables import percent

TEMPLATE = "summary.html.j2"
_LEFT_TO_THE_REPORTS = re.compile("AP[sml]|AR.*|mean_precision")


def write_summary(
    folder: Path,
    title: str,
    numbers: Mapping[str, Mapping[str, float]],
    means: Mapping[str, float],
    published: Sequence[Published] = (),
    *,
    limit: str = "",
) -> None:
    """Write both files; metrics.json has every number, the page leaves those by size and of recall to the reports.

    Args:
        folder: that holds a folder with the report of each set.
        title: of the benchmark, for people.
        numbers: of each set, what its metric says.
        means: over the sets, of the metrics that have one.
        published: what others measured of the whole.
        limit: which cases of each set were asked, where not all were.

    Raises:
        OSError: the folder cannot be written.
    """
    every = dict.fromkeys(name for scores in numbers.values() for name in scores)
    columns = [name for name in every if not _LEFT_TO_THE_REPORTS.fullmatch(name)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": percent, "address": quote}
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8"))
    page = template.render(
        title=title, style=STYLE, columns=columns, numbers=numbers, means=means, published=published, page=PAGE_FILE,
        limit=limit,
    )  # fmt: skip
    content = finite({"benchmark": title, "sets": numbers, "mean": means, "published": [p.__dict__ for p in published]})
    content |= {"limit": limit} if limit else {}
    write_atomic(folder / PAGE_FILE, page)
    write_atomic(folder / METRICS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
