"""Measuring detectors by the protocols of the papers.

The metrics are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metrics.coco import CocoDetection, OpenVocabularyCoco
    from .metrics.described_objects import DescribedObjects
    from .metrics.lvis import LvisDetection
    from .metrics.referring import GeneralizedReferring, PhraseGrounding, ReferringExpressions

__all__ = [
    "CocoDetection",
    "DescribedObjects",
    "GeneralizedReferring",
    "LvisDetection",
    "OpenVocabularyCoco",
    "PhraseGrounding",
    "ReferringExpressions",
]

_MODULES = {
    "CocoDetection": "coco",
    "DescribedObjects": "described_objects",
    "GeneralizedReferring": "referring",
    "LvisDetection": "lvis",
    "OpenVocabularyCoco": "coco",
    "PhraseGrounding": "referring",
    "ReferringExpressions": "referring",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".metrics.{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
