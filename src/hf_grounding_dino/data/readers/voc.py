"""Folders in the layout of Pascal VOC: an XML file for each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from ..findings import FindingLog
from ..index import IndexBuilder, RecordIndex
from ..records import DataError, Record, SourceEntry
from .boxes import RawBoxes, with_boxes
from .files import IMAGE_SUFFIXES, ImageFolder, image_size, read_bytes, refuse_stray
from .names import clean_names, read_names

_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")
_USUAL: Final = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_SUFFIXES: Final = (*_USUAL, *sorted(IMAGE_SUFFIXES - set(_USUAL)))


class _Layout(NamedTuple):
    """`folder`: of the annotations, `files`: all of them, `chosen`: those of the split; `images`: their folder."""

    folder: Path
    files: list[Path]
    chosen: list[Path]
    images: ImageFolder


def read(entry: SourceEntry) -> RecordIndex:
    """Read a Pascal VOC data set: Annotations/*.xml, JPEGImages/ and, where it is there, ImageSets/Main/SPLIT.txt.

    Its `annotations` are the folder that holds these, or a folder of XML files, whose images are in `images`, in
    JPEGImages or images beside it, or beside the files; a split may also be a folder of its own. Without `split`, that
    is train.txt where there is one, else all files.

    Pixels are counted from 1 and ends are inclusive: x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax. "Difficult"
    objects become crowd: no training on them, and no evaluation counts them. Labels are the names in all the files,
    whatever the split, sorted, with category ids from 0, or those of `label_map`. The image id is
    the file's name below Annotations/, which may have folders in it, without its suffix.

    Raises:
        DataError: no such folder or split, no XML files, XML that declares entities, or no valid box at all.
    """
    log = FindingLog(entry.annotations)
    layout = _layout(entry, log)
    chosen = set(layout.chosen)
    trees = {path: _tree(path, log if path in chosen else None) for path in layout.files}
    if entry.label_map:
        names = read_names(Path(entry.label_map))
    else:
        each = [_name(item) for tree in trees.values() if tree is not None for item in tree.iter("object")]
        names = dict(enumerate(sorted(set(each) - {""})))
    positions = {name: i for i, name in enumerate(names.values())}
    builder = IndexBuilder(log, layout.images.root)
    for path in layout.chosen:
        tree = trees[path]
        if tree is None or (image := _image(path, tree, layout, log)) is None:
            continue
        objects = list(tree.iter("object"))
        written = [_name(item) or None for item in objects]
        labels = [positions.get(name or "") for name in written]
        crowd = [(item.findtext("difficult") or "").strip().lower() in ("1", "true") for item in objects]
        raw = RawBoxes(boxes=list(map(_corners, objects)), names=labels, written=written, crowd=crowd)
        if record := with_boxes(image, raw, str(path), log):
            builder.add(record)
    name = entry.name or Path(entry.annotations).absolute().name
    return builder.build(name, names, clean_names(tuple(names.values())), crowd="difficult")


# --- which files -------------------------------------------------------------------------------------------------


def _layout(entry: SourceEntry, log: FindingLog) -> _Layout:
    root = Path(entry.annotations)
    if not root.is_dir():
        raise DataError(f"{root}: a folder of XML files is needed" if root.exists() else f"{root}: no such folder")
    if root.name == "Annotations" and (root.parent / "ImageSets").is_dir():
        root = root.parent
    lists = root / "ImageSets" / "Main"
    split = entry.split or ("train" if (lists / "train.txt").is_file() else None)
    listed = lists / f"{split}.txt" if split else None
    if listed and not listed.is_file():
        if not (root / str(split)).is_dir():
            raise DataError(f"{root}: has no split {split!r}: neither {listed} nor a folder {split}")
        root, listed = root / str(split), None
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    files = sorted(folder.rglob("*.xml") if folder.name == "Annotations" else folder.glob("*.xml"))
    if not files:
        raise DataError(f"{folder}: no XML files in it")
    beside = (folder.parent / "JPEGImages", folder.parent / "images", folder)
    images = Path(entry.images) if entry.images else next(filter(Path.is_dir, beside))
    chosen = files if listed is None else _listed_files(listed, folder, set(files), log)
    return _Layout(folder, files, chosen, ImageFolder(images, entry.annotations))


def _listed_files(listed: Path, folder: Path, files: set[Path], log: FindingLog) -> list[Path]:
    chosen: dict[Path, None] = {}
    for number, line in enumerate(read_bytes(listed).decode("utf-8-sig", errors="replace").splitlines(), start=1):
        if name := line.strip():
            refuse_stray(f"{name}.xml", folder, f"{listed}, line {number}")
            path = folder / f"{name}.xml"
            if path in chosen:
                log.add("duplicate id", f"{listed}, line {number}", f"{name} is there already; kept once")
            elif path in files:
                chosen[path] = None
            else:
                log.add("malformed entry", f"{listed}, line {number}", f"{path} is not there; left out")
    return list(chosen)


# --- what is in them ---------------------------------------------------------------------------------------------


def _tree(path: Path, log: FindingLog | None) -> ElementTree.Element | None:
    """The XML of a file, None where it is not well formed, which `log` takes note of.

    A document type is refused where it declares entities: they can grow without bound, or name other files.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> NoReturn:
        raise DataError(f"{path}: XML that declares entities is not read")

    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(read_bytes(path), True)
    except (expat.ExpatError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        if log is not None:
            log.add("malformed entry", str(path), f"not XML, or cut off ({error}); left out")
        return None
    return builder.close()


def _name(item: ElementTree.Element) -> str:
    return (item.findtext("name") or "").strip()


def _corners(item: ElementTree.Element) -> Sequence[object]:
    """Xyxy in pixels, counted from 0 and with exclusive ends, or what the file has where that is no box."""
    texts = [item.findtext(f"bndbox/{side}") for side in _SIDES]
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts)
    except ValueError:
        return texts
    return [x1 - 1, y1 - 1, x2, y2]


def _image(path: Path, tree: ElementTree.Element, layout: _Layout, log: FindingLog) -> Record | None:
    """The image of a file, None, with a finding, where it is not there."""
    place = path.relative_to(layout.folder).with_suffix("")
    name = _image_name(place, tree, layout.images, str(path))
    if not layout.images.check(name, str(path), log):
        return None
    width, height = tree.findtext("size/width"), tree.findtext("size/height")
    # Files made by other tools say 0 x 0 where they do not know.
    known = any((text or "0").strip() != "0" for text in (width, height))
    size = image_size(width, height, str(path), log) if known else None
    return Record(image_id=place.as_posix(), image=layout.images.root / name, size=size)


def _image_name(place: Path, tree: ElementTree.Element, images: ImageFolder, where: str) -> str:
    """The file of the image: as the XML has it, or called like the XML, which tools that rename forget to change.

    It is looked for in the folder below that of the images that the XML has below its own, then in the first.
    """
    stated = (tree.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    names = [stated, *(place.name + suffix for suffix in _SUFFIXES)]
    nested = [(place.parent / name).as_posix() for name in names if name]
    candidates = dict.fromkeys([*nested, *filter(None, names)])
    return next((name for name in candidates if images.has(name, where)), nested[0])
