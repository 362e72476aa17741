"""Import data sets as people do who have FiftyOne: run in its environment, with the folder that holds them.

To the file of the second argument it writes JSON: for each data set, by picture, what FiftyOne has of each box: [label,
[left, top, width, height] from 0 to 1, confidence].
"""

import json
import sys
from pathlib import Path
from typing import Any

import fiftyone as fo
from fiftyone import types

folder = Path(sys.argv[1])


def boxes_in(data_set: Any, field: str) -> dict[str, list[list[Any]]]:
    found = {}
    for sample in data_set:
        boxes = sample[field].detections if sample[field] else []
        picture = str(Path(sample.filepath).resolve())
        found[picture] = [[box.label, box.bounding_box, box.confidence] for box in boxes]
    return found


coco = fo.Dataset.from_dir(
    dataset_type=types.COCODetectionDataset,
    data_path=str(folder / "photos"),
    labels_path=str(folder / "coco" / "annotations.json"),
)
voc = fo.Dataset.from_dir(
    dataset_type=types.VOCDetectionDataset,
    data_path=str(folder / "photos"),
    labels_path=str(folder / "voc" / "Annotations"),
)
yolo = fo.Dataset.from_dir(dataset_type=types.YOLOv5Dataset, dataset_dir=str(folder / "yolo"))
read = {
    "coco": boxes_in(coco, "detections"),
    "voc": boxes_in(voc, "ground_truth"),
    "yolo": boxes_in(yolo, "ground_truth"),
}
Path(sys.argv[2]).write_text(json.dumps(read), encoding="utf-8")
