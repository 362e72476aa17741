"""Ground truth as the official evaluators read it from COCO and LVIS files: nothing is clipped, nothing dropped.

The readers of `data` prepare boxes for training and leave out what cannot be learned from. Numbers to compare with
published ones need the file as it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.readers.files import ImageFolder, parse_json, read_bytes
from ..data.readers.names import clean_names
from ..data.records import DataError
from ..processing.prompts import clean_name
from .metrics.base import GroundTruth, ItemId

Json = dict[str, Any]
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


class Category(NamedTuple):
    """A class of an annotation file.

    id: its number there.
    name: as written there.
    frequency: "r", "c" or "f" (LVIS), None where the file does not say it.
    """

    id: int
    name: str
    frequency: str | None = None

    def as_dict(self) -> Json:
        """As the annotation file has it."""
        frequency = {} if self.frequency is None else {"frequency": self.frequency}
        return {"id": self.id, "name": self.name, **frequency}


@dataclass(frozen=True)
class AnnotationFile:
    """A COCO or LVIS file in flat arrays; `read_annotations` makes it.

    path: of the file.
    root: the folder of the images, None where only predictions are to be scored.
    categories: in the file's order.
    image_ids: in the file's order.
    files: of each image below `root`; "" where the file names none.
    missing: positions of the images that do not exist; none where `root` is None.
    boxes: in the order of their images; those of image i are rows `first[i]` to `first[i + 1]`.
    federated: what LVIS says of an image, by its position.
    """

    path: Path
    root: Path | None
    categories: tuple[Category, ...]
    image_ids: tuple[ItemId, ...]
    files: tuple[str, ...]
    missing: frozenset[int]
    boxes: GroundTruth
    first: NDArray[np.int64]
    federated: Mapping[int, Mapping[str, tuple[int, ...]]]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def image(self, index: int) -> Path:
        """Where an image would be."""
        return (self.root or Path()) / self.files[index]

    def reference(self, index: int) -> Json:
        """What is in an image, as the metrics take it.

        Returns:
            `image_id`, `boxes` float64 (n, 4) as xyxy in pixels, `labels` (n,) the category ids, `iscrowd` (n,) bool,
            `area` (n,) in pixels (of the box where the file has none); of LVIS files `neg_category_ids` and
            `not_exhaustive_category_ids`.
        """
        rows, columns = slice(*self.first[index : index + 2].tolist()), self.boxes
        federated = {**dict.fromkeys(_FEDERATED, ()), **self.federated.get(index, {})} if self.federated else {}
        return {
            "image_id": self.image_ids[index],
            "boxes": columns.boxes[rows],
            "labels": columns.labels[rows],
            "iscrowd": columns.crowds[rows],
            "area": columns.areas[rows],
            **federated,
        }


def read_annotations(path: Path, images: Path | None = None, *, only: Collection[str] | None = None) -> AnnotationFile:
    """Read a COCO or LVIS annotation file.

    Args:
        path: the file.
        images: the folder that file names start from; None where only predictions are to be scored. Of an image the
            first of these that exists is taken: `file_name`, the last two parts of `coco_url`, its last part.
        only: names of the categories to keep, with their boxes.

    Raises:
        DataError: no such file or folder, JSON that is cut off, no images or categories, an id given twice, an
            annotation of an image or a category that is not listed, a box that is not [x, y, width, height], or no
            category of a name in `only`.
    """
    document = read_entries(path, ("images", "annotations", "categories"))
    categories = _categories(document["categories"], path)
    if strange := set(only or ()) - {category.name for category in categories.values()}:
        raise DataError(f"{path}: has no category {min(strange)!r}")
    kept = [category for category in categories.values() if only is None or category.name in only]
    entries = image_entries(document, path)
    folder = None if images is None else ImageFolder(images, path)
    files = [image_file(entry, folder) for entry in entries.values()]
    positions = {image_id: i for i, image_id in enumerate(entries)}
    rows = np.array(_rows(document, positions, categories, path)).reshape(-1, 8)
    rows = rows[np.isin(rows[:, 1], [category.id for category in kept])]
    rows = rows[rows[:, 0].argsort(kind="stable")]
    counts = np.bincount(rows[:, 0].astype(np.int64), minlength=len(entries))
    return AnnotationFile(
        path=path,
        root=images,
        categories=tuple(kept),
        image_ids=tuple(entries),
        files=tuple(name for name, _ in files),
        missing=frozenset() if folder is None else frozenset(i for i, (_, there) in enumerate(files) if not there),
        boxes=GroundTruth(rows[:, 4:], rows[:, 1].astype(np.int64), rows[:, 2], rows[:, 3] > 0),
        first=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        federated=_federated(entries, categories, path),
    )


def prompt_names(categories: Sequence[Category], *, distinct: bool = True) -> dict[int, str]:
    """The words of each category for a prompt: no "(...)", blanks for underscores.

    Args:
        distinct: keep a name as written where its clean form is another's as well, as training has it. The papers
            clean every name, so that LVIS has several called "bow".
    """
    names = [category.name for category in categories]
    cleaned = clean_names(names) if distinct else [clean_name(name) or name for name in names]
    return {category.id: name for category, name in zip(categories, cleaned, strict=True)}


# --- entries of files of the COCO family -------------------------------------------------------------------------


def read_entries(path: Path, lists: Sequence[str]) -> Json:
    """A JSON file that is one object with the lists named, without its masks, which take most of the memory.

    Raises:
        DataError: no such file, no JSON, or something else.
    """
    document = parse_json(read_bytes(path), str(path), object_hook=_without_mask)
    if not isinstance(document, dict):
        raise DataError(f"{path}: one JSON object with {', '.join(lists)} is needed, not a {type(document).__name__}")
    for name in lists:
        if not isinstance(document.get(name), list):
            raise DataError(f"{path}: has no list {name!r}")
    return document


def image_entries(document: Json, path: Path) -> dict[ItemId, Json]:
    """The image entries by their id, in the file's order.

    Raises:
        DataError: none, one without an id, or an id given twice.
    """
    entries: dict[ItemId, Json] = {}
    numbers: dict[ItemId, int] = {}
    for number, entry in enumerate(document["images"], start=1):
        where = f"{path}, image entry {number}"
        image_id: Any = entry.get("id") if isinstance(entry, dict) else None
        if not _is_id(image_id):
            raise DataError(f"{where}: an image needs an id, a whole number or text")
        if image_id in entries:
            raise DataError(f"{where}: id {image_id!r} is that of image entry {numbers[image_id]} too")
        entries[image_id], numbers[image_id] = entry, number
    if not entries:
        raise DataError(f"{path}: has no images")
    return entries


def annotation_entries(document: Json, images: Collection[ItemId], path: Path) -> Iterator[tuple[str, Json]]:
    """Each annotation with where it stands; its `image_id` is one of `images`.

    Raises:
        DataError: an id given twice, or an image that is not listed.
    """
    seen: set[Any] = set()
    for number, entry in enumerate(document["annotations"], start=1):
        where = f"{path}, annotation entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: an annotation is an object, not {entry!r}")
        if not _is_id(image_id := entry.get("image_id")) or image_id not in images:
            raise DataError(f"{where}: image {image_id!r} is not among the images of the file")
        if (own := entry.get("id")) is not None:
            if not _is_id(own) or own in seen:
                raise DataError(f"{where}: id {own!r} is {'used twice' if _is_id(own) else 'no id'}")
            seen.add(own)
        yield where, entry


def corners_of(entry: Json, where: str) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of the `bbox` [x, y, width, height] of an annotation.

    Raises:
        DataError: it is something else, or a side is negative.
    """
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise DataError(f"{where}: bbox is [x, y, width, height], four finite numbers, not {box!r}")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise DataError(f"{where}: bbox {box} has a negative width or height")
    return x, y, x + width, y + height


def image_file(entry: Json, folder: ImageFolder | None) -> tuple[str, bool]:
    """The file of an image entry below a folder, and whether it exists; "" where the entry names none."""
    url = str(entry.get("coco_url") or "").split("/")
    names = [name for name in (str(entry.get("file_name") or ""), "/".join(url[-2:]), url[-1]) if name]
    there = [] if folder is None else [name for name in names if folder.has(name)]
    return (there or names or [""])[0], bool(there)


def refuse_missing(missing: Sequence[str], total: int, path: Path) -> None:
    """Refuse a dataset of which images are missing.

    Raises:
        DataError: some are missing; the message has their number and the first five.
    """
    if missing:
        first = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{path}: {len(missing)} of {total} images are missing ({first})")


def _without_mask(entry: Json) -> Json:
    entry.pop("segmentation", None)
    return entry


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _categories(raw: Sequence[Any], path: Path) -> dict[int, Category]:
    categories: dict[int, Category] = {}
    for number, entry in enumerate(raw, start=1):
        where = f"{path}, category entry {number}"
        category_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        # Boxes and labels are kept as float64, in which larger numbers are not exact.
        if type(category_id) is not int or abs(category_id) >= 2**53 or not isinstance(name, str):
            raise DataError(f"{where}: a category needs a whole number as id and a name, not {entry!r}")
        if category_id in categories:
            raise DataError(f"{where}: id {category_id} is that of {categories[category_id].name!r} too")
        categories[category_id] = Category(category_id, name, entry.get("frequency"))
    if not categories:
        raise DataError(f"{path}: has no categories")
    return categories


def _rows(
    document: Json, positions: Mapping[ItemId, int], known: Collection[int], path: Path
) -> list[tuple[float, ...]]:
    """For each annotation the position of its image, category, area, whether it is a crowd, and corners."""
    rows: list[tuple[float, ...]] = []
    for where, entry in annotation_entries(document, positions, path):
        label, area = entry.get("category_id"), entry.get("area")
        if type(label) is not int or label not in known:
            raise DataError(f"{where}: there is no category {label!r}")
        x1, y1, x2, y2 = corners_of(entry, where)
        if area is None:
            area = (x2 - x1) * (y2 - y1)
        elif not is_number(area):
            raise DataError(f"{where}: area is a number of pixels, not {area!r}")
        rows.append((positions[entry["image_id"]], label, area, bool(entry.get("iscrowd")), x1, y1, x2, y2))
    return rows


def _federated(
    entries: Mapping[ItemId, Json], known: Collection[int], path: Path
) -> dict[int, dict[str, tuple[int, ...]]]:
    """What LVIS says of the images that it says something of."""
    said = {}
    for i, (image_id, entry) in enumerate(entries.items()):
        fields = {name: tuple(entry[name]) for name in _FEDERATED if isinstance(entry.get(name), list)}
        for name, numbers in fields.items():
            if strange := [number for number in numbers if number not in known]:
                raise DataError(f"{path}, image {image_id}: {name} has {strange[0]!r}, which is no category")
        if fields:
            said[i] = fields
    return said
