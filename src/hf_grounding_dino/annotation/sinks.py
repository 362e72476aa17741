"""The files that other tools read: COCO, ODVG, YOLO, Pascal VOC, LabelMe, Label Studio.

FiftyOne imports COCO (`COCODetectionDataset`), YOLO (`YOLOv5Dataset`) and VOC (`VOCDetectionDataset`) as written here,
Label Studio the tasks with their labelling interface.
Nothing that is written depends on when, where or in how many parts a run was made.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO
from urllib.parse import quote
from xml.etree import ElementTree

import yaml

from ..utils.atomic import atomic_file, write_atomic
from .checkpoint import LabelledImage, Run

_RULE = ("threshold", "thresholds", "scoring", "nms", "top_k", "chunk_size")

Write = Callable[[Path, Run, Iterable[LabelledImage]], None]


class Format(NamedTuple):
    """A format of annotations.

    write: writes the files of a run into a folder; the images may be gone through several times.
    files: those that each run has.
    place: for an image's name, the file of its own, None where it has none.
    """

    write: Write
    files: tuple[str, ...]
    place: Callable[[str], PurePosixPath] | None = None


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A text file to write, which takes its place at the end of the block, or vanishes."""
    with atomic_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_items(file: TextIO, items: Iterable[Any]) -> None:
    """A JSON list, an item a line."""
    file.write("[")
    for i, item in enumerate(items):
        file.write(f"{',' if i else ''}\n{_json(item)}")
    file.write("\n]")


# --- one file ----------------------------------------------------------------------------------------------------


def write_coco(folder: Path, run: Run, images: Iterable[LabelledImage]) -> None:
    """One JSON: ids from 1, an image's being its place among all images; boxes xywh with `score`."""
    categories = [{"id": i, "name": label, "supercategory": ""} for i, label in enumerate(run.labels, start=1)]
    with atomic_text(folder / "annotations.json") as file:
        file.write(f'{{"info": {_json(_coco_info(run))},\n"licenses": [],')
        file.write('\n"categories": ')
        _write_items(file, categories)
        file.write(',\n"images": ')
        _write_items(file, map(_coco_image, images))
        file.write(',\n"annotations": ')
        _write_items(file, _coco_annotations(images))
        file.write("}\n")


def _coco_info(run: Run) -> dict[str, Any]:
    """By which model, at which revision, and by which rule the boxes were found."""
    return {
        "description": f"labelled by model {run.model_name or run.model}",
        "model": run.model_name or None,
        "revision": run.revision or run.model,
        "fingerprint": run.model,
        "dtype": run.dtype,
        **{name: getattr(run.post, name) for name in _RULE},
    }


def _coco_image(image: LabelledImage) -> dict[str, Any]:
    width, height = image.size
    return {"id": image.index + 1, "file_name": image.name, "width": width, "height": height}


def _coco_annotations(images: Iterable[LabelledImage]) -> Iterator[dict[str, Any]]:
    number = 0
    for image in images:
        for (x0, y0, x1, y1), label, score in zip(image.boxes, image.labels, image.scores, strict=True):
            number += 1
            width, height = round(x1 - x0, 2), round(y1 - y0, 2)
            yield {
                "id": number,
                "image_id": image.index + 1,
                "category_id": label + 1,
                "bbox": [x0, y0, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "score": score,
            }


def write_odvg(folder: Path, run: Run, images: Iterable[LabelledImage]) -> None:
    """A JSON object a line, boxes xyxy, and the label map that such files need."""
    write_atomic(folder / "label_map.json", _json({str(i): label for i, label in enumerate(run.labels)}) + "\n")
    with atomic_text(folder / "annotations.jsonl") as file:
        for image in images:
            instances = [
                {"bbox": box, "label": label, "category": run.labels[label], "score": score}
                for box, label, score in zip(image.boxes, image.labels, image.scores, strict=True)
            ]
            width, height = image.size
            size = {"height": height, "width": width}
            file.write(_json({"filename": image.name, **size, "detection": {"instances": instances}}) + "\n")


def write_label_studio(folder: Path, run: Run, images: Iterable[LabelledImage]) -> None:
    """Tasks with predictions, boxes in percent, and the labelling interface they are for.

    Images are named for "local files" storage: names start from LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT. That is the
    folder above the images' own, as Label Studio serves nothing that lies in the document root itself.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    choices = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for label in run.labels:
        ElementTree.SubElement(choices, "Label", value=label)
    write_atomic(folder / "label_config.xml", _xml(view))
    own = "images" if run.root is None else Path(os.path.realpath(folder / run.root)).name
    with atomic_text(folder / "tasks.json") as file:
        _write_items(file, (_task(run, image, own) for image in images))
        file.write("\n")


def _task(run: Run, image: LabelledImage, own: str) -> dict[str, Any]:
    """The task of an image; `own` is the name of the folder of the images."""
    width, height = image.size
    results = []
    rows = zip(image.boxes, image.labels, image.scores, strict=True)
    for number, ((x0, y0, x1, y1), label, score) in enumerate(rows):
        value = {
            "x": _percent(x0, width),
            "y": _percent(y0, height),
            "width": _percent(x1 - x0, width),
            "height": _percent(y1 - y0, height),
            "rotation": 0,
            "rectanglelabels": [run.labels[label]],
        }
        names = {"id": f"{image.index}-{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
        frame = {"original_width": width, "original_height": height, "image_rotation": 0}
        results.append({**names, **frame, "value": value, "score": score})
    prediction = {"model_version": run.model, "score": max(image.scores, default=0.0), "result": results}
    place = quote(posixpath.join(own, image.name))
    return {"data": {"image": f"/data/local-files/?d={place}"}, "predictions": [prediction]}


def _percent(length: float, whole: int) -> float:
    return round(100 * length / whole, 6)


# --- a file for each image -------------------------------------------------------------------------------------


def yolo_place(name: str) -> PurePosixPath:
    """Where the labels of an image are."""
    return PurePosixPath("labels", PurePosixPath(name).with_suffix(".txt"))


def write_yolo(folder: Path, run: Run, images: Iterable[LabelledImage]) -> None:
    """labels/**.txt with lines "label cx cy w h" from 0 to 1, classes.txt, dataset.yaml, and images.txt.

    The tools of YOLO look for an image in "images", and for its labels in the same place of "labels". images.txt lists
    the images there, and "images" is a link to the folder of the images. A list, because tools that are given the
    folder go where the link leads, and find no labels there. And no `path` in the YAML: what is relative starts
    from the YAML then, wherever the tool is run.
    """
    write_atomic(folder / "classes.txt", "".join(f"{label}\n" for label in run.labels))
    content = {"train": "images.txt", "val": "images.txt", "names": dict(enumerate(run.labels))}
    write_atomic(folder / "dataset.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    for image in images:
        width, height = image.size
        lines = []
        for (x0, y0, x1, y1), label in zip(image.boxes, image.labels, strict=True):
            values = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(f"{label} {' '.join(f'{value:.6f}' for value in values)}\n")
        write_atomic(folder / yolo_place(image.name), "".join(lines))
    with atomic_text(folder / "images.txt") as file:
        file.writelines(f"./images/{image.name}\n" for image in images)
    _link_images(folder, run.root)


def _link_images(folder: Path, root: str | None) -> None:
    """Make "images" a link to the folder of the images, unless it is there or would lead around in a circle.

    Where links cannot be made, as on some drives, there is none.
    """
    if root is not None and set(PurePosixPath(root).parts) - {".."}:
        with suppress(OSError):
            os.symlink(root, folder / "images", target_is_directory=True)


def voc_place(name: str) -> PurePosixPath:
    """Where the labels of an image are."""
    return PurePosixPath("Annotations", PurePosixPath(name).with_suffix(".xml"))


def write_voc(folder: Path, run: Run, images: Iterable[LabelledImage]) -> None:
    """Annotations/**.xml, in whole pixels counted from 1, ends included."""
    for image in images:
        name = PurePosixPath(image.name)
        root = ElementTree.Element("annotation")
        _add(root, {"folder": "" if str(name.parent) == "." else str(name.parent), "filename": name.name})
        width, height = image.size
        _add(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
        _add(root, {"segmented": 0})
        for box, label in zip(image.boxes, image.labels, strict=True):
            item = ElementTree.SubElement(root, "object")
            fixed = {"pose": "Unspecified", "truncated": 0, "difficult": 0}
            _add(item, {"name": run.labels[label], **fixed})
            xmin, xmax = _pixels(box[0], box[2], width)
            ymin, ymax = _pixels(box[1], box[3], height)
            corners = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
            _add(ElementTree.SubElement(item, "bndbox"), corners)
        write_atomic(folder / voc_place(image.name), _xml(root))


def _pixels(start: float, end: float, length: int) -> tuple[int, int]:
    """First and last pixel of a stretch, from 1 to `length`: the nearest ones, and at least one."""
    first = min(round(start) + 1, length)
    return first, max(round(end), first)


def _add(parent: ElementTree.Element, texts: Mapping[str, object]) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def _xml(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def labelme_place(name: str) -> PurePosixPath:
    """Where the labels of an image are: beside it, where the output folder is that of the images."""
    return PurePosixPath(name).with_suffix(".json")


def write_labelme(folder: Path, run: Run, images: Iterable[LabelledImage]) -> None:
    """A JSON for each image, with rectangles; `imagePath` leads from it to the image."""
    for image in images:
        place = labelme_place(image.name)
        path = PurePosixPath(image.name).name
        if run.root is not None:
            # Somewhere deep enough for all the ".." of the root: only the way from one to the other counts.
            output = "/" + "_/" * run.root.count("..")
            target = posixpath.join(output, run.root, image.name)
            path = posixpath.relpath(target, posixpath.join(output, place.parent))
        shapes: list[dict[str, Any]] = [
            {
                "label": run.labels[label],
                "points": [box[:2], box[2:]],
                "group_id": None,
                "description": "",
                "shape_type": "rectangle",
                "flags": {},
                "mask": None,
                "score": score,
            }
            for box, label, score in zip(image.boxes, image.labels, image.scores, strict=True)
        ]
        width, height = image.size
        content: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path}
        content |= {"imageData": None, "imageHeight": height, "imageWidth": width}
        write_atomic(folder / place, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


FORMATS: dict[str, Format] = {
    "coco": Format(write_coco, ("annotations.json",)),
    "odvg": Format(write_odvg, ("annotations.jsonl", "label_map.json")),
    "yolo": Format(write_yolo, ("classes.txt", "dataset.yaml", "images.txt"), yolo_place),
    "voc": Format(write_voc, (), voc_place),
    "labelme": Format(write_labelme, (), labelme_place),
    "label-studio": Format(write_label_studio, ("tasks.json", "label_config.xml")),
}
"""By the names that people call them."""
