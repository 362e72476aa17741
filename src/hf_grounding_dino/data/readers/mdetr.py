"""MDETR-style JSON: COCO JSON whose image entries are captions (GoldG, Flickr30k, RefCOCO/+/g, gRefCOCO)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..findings import FindingLog
from ..index import IndexBuilder, RecordIndex
from ..records import SourceEntry, Spans, set_name
from .boxes import with_boxes
from .captions import Caption, checked_spans, strip_caption
from .coco import images_with_annotations, listed_image, raw_boxes
from .files import ImageFolder, as_integer, read_document


def read(entry: SourceEntry) -> RecordIndex:
    """Read an MDETR-style file: a record for each caption, so that an image may come up many times.

    Each annotation names its box by `tokens_positive`, spans of the caption. Where no annotation of a caption has them,
    it is a referring expression: the whole of it names each box. A caption whose annotations are placeholders (category
    -1 or a box of four zeros; gRefCOCO) or that has none is kept with no box. `tokens_positive_eval`, the phrases that
    Flickr30k is scored on, is not read.

    Raises:
        DataError: no such JSON, no image, or no valid box.
    """
    path = Path(entry.annotations)
    log = FindingLog(path)
    document = read_document(path, ("images", "annotations"))
    folder = ImageFolder(entry.images or path.parent, path)
    builder = IndexBuilder(log, folder.root)
    for image, entries, where in images_with_annotations(document, path, log):
        written = image.get("caption")
        if not isinstance(written, str) or not written.strip():
            log.add("malformed entry", where, "has no caption; left out")
            continue
        caption = strip_caption(written)
        if listed := listed_image(image, where, folder, log, caption.text):
            targets = [] if all(map(_is_placeholder, entries)) else entries
            raw = raw_boxes(targets, _spans(targets, caption, where, log))
            if record := with_boxes(listed, raw, where, log):
                builder.add(record)
    return builder.build(set_name(entry, path), {}, ())


def _spans(targets: list[dict[str, Any]], caption: Caption, where: str, log: FindingLog) -> list[Spans | None]:
    if not any(target.get("tokens_positive") for target in targets):
        return [((0, len(caption.text)),)] * len(targets)
    return [
        checked_spans(target.get("tokens_positive") or [], caption, f"{where}, box {i}", log)
        for i, target in enumerate(targets, start=1)
    ]


def _is_placeholder(annotation: dict[str, Any]) -> bool:
    """Whether it stands for "nothing in the image is meant"."""
    return as_integer(annotation.get("category_id")) == -1 or annotation.get("bbox") == [0, 0, 0, 0]
