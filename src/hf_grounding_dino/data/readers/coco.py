"""COCO JSON (also LVIS, Objects365, Roboflow): one object with images, annotations (xywh boxes) and categories."""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..findings import FindingLog
from ..index import IndexBuilder, RecordIndex
from ..records import DataError, Record, SourceEntry, set_name
from .boxes import RawBoxes, with_boxes
from .files import ImageFolder, as_integer, category_number, image_size, read_document, read_json
from .names import clean_names

Json = dict[str, Any]


def read(entry: SourceEntry) -> RecordIndex:
    """Read a COCO file; categories, their ids and their order are those of the file alone.

    Names are cleaned for prompts where they stay different (`clean_names`), or replaced by those of `label_map`, a JSON
    object {"name in the file": "words"}. Crowd boxes are kept and marked. `neg_category_ids` and
    `not_exhaustive_category_ids` (LVIS) become `absent` and `incomplete`; LVIS images without `file_name` are found
    by their `coco_url`.

    Raises:
        DataError: no COCO JSON, no categories, a label map that does not match, no image, or no valid box.
    """
    path = Path(entry.annotations)
    log = FindingLog(path)
    document = read_document(path, ("images", "annotations", "categories"))
    categories = _categories(document["categories"], path, log)
    words = _prompt_names(categories, entry.label_map, path)
    folder = ImageFolder(entry.images or path.parent, path)
    builder = IndexBuilder(log, folder.root)
    positions = {number: i for i, number in enumerate(categories)}
    for image, targets, where in images_with_annotations(document, path, log):
        if listed := listed_image(image, where, folder, log):
            listed = replace(listed, **_federated(image, positions, where, log))
            written = [target.get("category_id") for target in targets]
            labels = [positions.get(category_number(category)) for category in written]
            if record := with_boxes(listed, raw_boxes(targets, labels, written), where, log):
                builder.add(record)
    return builder.build(set_name(entry, path), categories, words)


def images_with_annotations(document: Json, path: Path, log: FindingLog) -> Iterator[tuple[Json, list[Json], str]]:
    """Each image entry, in the file's order, with its annotations in theirs, and where it is.

    Entries without a usable id are "malformed entry", later entries of one id "duplicate id", annotations of an image
    that is not listed "missing image"; all of these are left out.
    """
    images: dict[int | str, Json] = {}
    for number, image in enumerate(document["images"], start=1):
        image_id = image.get("id") if isinstance(image, dict) else None
        if not isinstance(image_id, int | str):
            log.add("malformed entry", f"{path}, image entry {number}", "has no id; left out")
        elif image_id in images:
            log.add("duplicate id", f"{path}, image {image_id}", f"image entry {number} has this id too; left out")
        else:
            images[image_id] = image
    annotations: defaultdict[int | str, list[Json]] = defaultdict(list)
    for number, annotation in enumerate(document["annotations"], start=1):
        where = f"{path}, annotation entry {number}"
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(image_id, int | str):
            log.add("malformed entry", where, "has no image_id; left out")
        elif image_id not in images:
            log.add("missing image", where, f"image {image_id!r} is not among the images of the file; left out")
        else:
            annotations[image_id].append(annotation)
    for image_id, image in images.items():
        yield image, annotations.get(image_id, []), f"{path}, image {image_id}"


def listed_image(
    image: Json, where: str, folder: ImageFolder, log: FindingLog, caption: str | None = None
) -> Record | None:
    """An image entry as a record without boxes, or None, with a finding, where it has no file or it is not there."""
    name = _file_name(image, folder, where)
    if name is None:
        log.add("malformed entry", where, "has neither a file_name nor a coco_url; left out")
        return None
    if not folder.check(name, where, log):
        return None
    size = image_size(image.get("width"), image.get("height"), where, log)
    return Record(image_id=image["id"], image=folder.root / name, size=size, caption=caption)


def _file_name(image: Json, folder: ImageFolder, where: str) -> str | None:
    """LVIS has only `coco_url`, whose end is "train2017/000000391895.jpg"."""
    if isinstance(name := image.get("file_name"), str) and name:
        return name
    if not isinstance(url := image.get("coco_url"), str) or not url:
        return None
    parts = url.split("/")[-2:]
    return parts[-1] if folder.has(parts[-1], where) else "/".join(parts)


def raw_boxes(annotations: Sequence[Json], names: Sequence[Any], written: Sequence[object] = ()) -> RawBoxes:
    """The boxes of annotations, called by `names`, which the file has as `written`."""
    return RawBoxes(
        boxes=[annotation.get("bbox") for annotation in annotations],
        names=names,
        written=written,
        crowd=[annotation.get("iscrowd") in (1, True, "1") for annotation in annotations],
        area=[_area(annotation.get("area")) for annotation in annotations],
        layout="xywh",
    )


def _area(area: object) -> float:
    return float(area) if isinstance(area, int | float) and not isinstance(area, bool) else math.nan


def _federated(image: Json, positions: dict[int, int], where: str, log: FindingLog) -> dict[str, Any]:
    """What LVIS says of an image: categories that are not in it, and categories of which boxes are missing."""
    said = {}
    for field, key in (("absent", "neg_category_ids"), ("incomplete", "not_exhaustive_category_ids")):
        if not isinstance(image.get(key), list):
            continue
        numbers = [category_number(value) for value in image[key]]
        if unknown := [value for value, number in zip(image[key], numbers, strict=True) if number not in positions]:
            log.add("unknown category", where, f"{key} has {unknown[0]!r}, which is not in the file; ignored")
        said[field] = tuple(dict.fromkeys(positions[number] for number in numbers if number in positions))
    return said


def _categories(raw: Sequence[object], path: Path, log: FindingLog) -> dict[int, str]:
    """Name of each category id, in the file's order."""
    categories: dict[int, str] = {}
    seen: set[str] = set()
    for number, category in enumerate(raw, start=1):
        category_id = as_integer(category.get("id")) if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        where = f"{path}, category entry {number}"
        if category_id is None or not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: a category needs a whole number as id and a name, not {category!r}")
        if category_id in categories:
            log.add("duplicate id", where, f"id {category_id} is that of {categories[category_id]!r}; left out")
            continue
        if name in seen:
            log.add("malformed entry", where, f"{name!r} is the name of an earlier category too; both are kept")
        categories[category_id] = name
        seen.add(name)
    if not categories:
        raise DataError(f"{path}: has no categories")
    return categories


def _prompt_names(categories: dict[int, str], label_map: str | None, path: Path) -> tuple[str, ...]:
    """The words of each category."""
    written = tuple(categories.values())
    cleaned = clean_names(written)
    if label_map is None:
        return cleaned
    words = read_json(Path(label_map))
    if not isinstance(words, dict) or not all(isinstance(w, str) and w.strip() for w in words.values()):
        raise DataError(f'{label_map}: one JSON object {{"name in {path.name}": "words"}} is needed')
    for name in words:
        if name not in written:
            near = difflib.get_close_matches(name, written, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise DataError(f"{label_map}: {name!r} is no category of {path}{hint}")
    renamed = tuple(words.get(name, clean) for name, clean in zip(written, cleaned, strict=True))
    if len(set(renamed)) < len(set(written)):
        twice = next(name for name in renamed if renamed.count(name) > 1)
        raise DataError(f"{label_map}: two categories of {path} are called {twice!r}")
    return renamed
