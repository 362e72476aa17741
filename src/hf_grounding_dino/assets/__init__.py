"""What ships with the package beside its code: a small model, and an image to try it on."""

from pathlib import Path

_FOLDER = Path(__file__).parent

NANO: Path = _FOLDER / "grounding-dino-nano"
"""The folder of the small model that was trained on Shapes; loads with `from_pretrained`."""

DEMO_IMAGE: Path = _FOLDER / "shapes.png"
"""An image of plain shapes, 320 x 256, that the small model has not seen: scene 48 of seed 12, split "val"."""

DEMO_LABELS: tuple[str, ...] = (
    "red square",
    "yellow triangle",
    "orange cross",
    "yellow ring",
    "purple cross",
    "cyan diamond",
    "cyan star",
    "cyan ring",
)
"""What is in the demo image, once each."""
