"""Shapes: images of plain shapes with exact boxes and true sentences, made from a seed."""

from .dataset import ShapesDataset, ShapesItem, Task, write_coco, write_odvg
from .drawing import Box
from .language import caption_prompt, detection_prompt
from .phrases import VOCABULARY, Description, Grounding
from .referring import expressions_prompt, places_prompt, referring_prompt
from .scene import (
    CATEGORIES,
    COLORS,
    FILLS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    UNSEEN_PAIRS,
    Scene,
    ShapeObject,
    Split,
    category_name,
    generate_scene,
    scene_size,
)

__all__ = [
    "CATEGORIES",
    "COLORS",
    "FILLS",
    "MAX_OBJECTS",
    "SHAPES",
    "SIZES",
    "UNSEEN_PAIRS",
    "VOCABULARY",
    "Box",
    "Description",
    "Grounding",
    "Scene",
    "ShapeObject",
    "ShapesDataset",
    "ShapesItem",
    "Split",
    "Task",
    "caption_prompt",
    "category_name",
    "detection_prompt",
    "expressions_prompt",
    "generate_scene",
    "places_prompt",
    "referring_prompt",
    "scene_size",
    "write_coco",
    "write_odvg",
]
