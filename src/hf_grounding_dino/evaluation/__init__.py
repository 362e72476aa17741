"""Measuring detectors by the protocols of the papers.

The metrics are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coco import CocoDetection
    from .described_objects import DescribedObjects
    from .generalized_referring import GeneralizedReferring
    from .lvis import LvisDetection
    from .open_vocabulary import OpenVocabularyCoco
    from .phrase_grounding import PhraseGrounding
    from .referring import ReferringExpressions

__all__ = [
    "CocoDetection",
    "DescribedObjects",
    "GeneralizedReferring",
    "LvisDetection",
    "OpenVocabularyCoco",
    "PhraseGrounding",
    "ReferringExpressions",
]

_HOMES = {
    "CocoDetection": "coco",
    "DescribedObjects": "described_objects",
    "GeneralizedReferring": "generalized_referring",
    "LvisDetection": "lvis",
    "OpenVocabularyCoco": "open_vocabulary",
    "PhraseGrounding": "phrase_grounding",
    "ReferringExpressions": "referring",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
