"""Read tasks as Label Studio does, and export them again: run in the environment of its SDK.

The first argument is a folder with tasks.json and label_config.xml, the second a file to write: what Label Studio
objects to, and the COCO document it exports once all predictions are accepted as they are. Pictures are opened from
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
"""

import json
import sys
import tempfile
from pathlib import Path

from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

folder = Path(sys.argv[1])
config = (folder / "label_config.xml").read_text(encoding="utf-8")
tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
interface = LabelInterface(config)
interface.validate()
objections = []
for task in tasks:
    if not interface.validate_task({"data": task["data"]}):
        objections.append(f"no such data: {task['data']}")
    for prediction in task["predictions"]:
        objections += interface.validate_prediction(prediction, return_errors=True)
accepted = [
    {"id": number, "data": task["data"], "annotations": [{"result": one["result"]} for one in task["predictions"]]}
    for number, task in enumerate(tasks)
]
with tempfile.TemporaryDirectory() as place:
    Path(place, "accepted.json").write_text(json.dumps(accepted), encoding="utf-8")
    Converter(config, project_dir=None).convert_to_coco(f"{place}/accepted.json", place, is_dir=False)
    exported = json.loads(Path(place, "result.json").read_text(encoding="utf-8"))
Path(sys.argv[2]).write_text(json.dumps({"objections": objections, "coco": exported}), encoding="utf-8")
