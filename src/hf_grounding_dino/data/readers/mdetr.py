"""MDETR-style JSON: COCO JSON whose image entries are captions (GoldG, Flickr30k, RefCOCO/+/g, gRefCOCO)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..records import SourceEntry, set_name
from .captions import Caption, checked_spans, strip_caption
from .coco import area_of, images_with_annotations, is_crowd, listed_image
from .common import FindingLog, ImageFolder, as_integer, checked_boxes, read_document
from .packed import ImageEntry, PackedRecords, RecordPacker, Spans


def read(entry: SourceEntry) -> PackedRecords:
    """Read an MDETR-style file: a record for each caption, so that an image may come up many times.

    Each annotation names its box by `tokens_positive`, spans of the caption. Where no annotation of a caption has them,
    it is a referring expression: the whole of it names each box. A caption whose annotations are placeholders (category
    -1 or a box of four zeros; gRefCOCO) or that has none is kept with no box. `tokens_positive_eval`, the phrases that
    Flickr30k is scored on, is not read.

    Raises:
        DataError: no such JSON, no listed, or no valid box.
    """
    path = Path(entry.annotations)
    log = FindingLog(path)
    document = read_document(path, ("images", "annotations"))
    folder = ImageFolder(entry.images or path.parent, path)
    packer = RecordPacker()
    for image, targets in images_with_annotations(document, path, log):
        where = f"{path}, image {image['id']}"
        written = image.get("caption")
        if not isinstance(written, str) or not written.strip():
            log.add("malformed entry", where, "has no caption; left out")
        elif listed := listed_image(image, where, folder, log):
            caption = strip_caption(written)
            _add(packer, listed._replace(caption=caption.text), caption, targets, where, log)
    return packer.finish(set_name(entry, path), folder.root, log, {})


def _add(
    packer: RecordPacker,
    listed: ImageEntry,
    caption: Caption,
    annotations: list[dict[str, Any]],
    where: str,
    log: FindingLog,
) -> None:
    targets = [] if all(map(_is_placeholder, annotations)) else annotations
    spans = _spans(targets, caption, where, log)
    named = [(target, names) for target, names in zip(targets, spans, strict=True) if names is not None]
    numbers = [i for i, names in enumerate(spans, start=1) if names is not None]
    checked = checked_boxes(
        [target.get("bbox") for target, _ in named],
        [(names, is_crowd(target)) for target, names in named],
        size=listed.size,
        where=where,
        log=log,
        layout="xywh",
        numbers=numbers,
    )
    if targets and not checked.kept:
        log.add("malformed entry", where, "none of its boxes can be used, so the caption would be untrue; left out")
        return
    kept = [named[i] for i in checked.kept]
    crowd, area = [is_crowd(target) for target, _ in kept], [area_of(target) for target, _ in kept]
    packer.add(listed, checked.boxes, [names for _, names in kept], crowd, area)


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
