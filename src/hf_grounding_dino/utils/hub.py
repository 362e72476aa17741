"""Models of the Hub where there is no network: from the cache of its client, at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from transformers import PreTrainedModel

from .printable import warn_once

logger = logging.getLogger(__name__)

_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
_REACHED_BY: WeakKeyDictionary[PreTrainedModel, dict[str, Any]] = WeakKeyDictionary()

_UNREACHED = {"ConnectError", "TimeoutException"}
"""Of httpx or httpx2, whichever the client of the Hub is built on."""


def remember_hub_options(model: PreTrainedModel, options: Mapping[str, Any]) -> None:
    """Remember how a model was loaded, for the files beside its weights: in no copy, pickle or file of the model."""
    _REACHED_BY[model] = {name: options[name] for name in _OPTIONS if options.get(name)}


def hub_options(model: PreTrainedModel) -> dict[str, Any]:
    """`token`, `revision`, `cache_dir`, ... that a model was loaded with."""
    return dict(_REACHED_BY.get(model, {}))


@contextmanager
def offline_fallback(name: str) -> Iterator[bool]:
    """Whether the block is to load from the cache alone (`local_files_only`), because the Hub cannot be reached.

    Where the block succeeds so, it is logged. The client by itself tries six times, in 23 seconds, for each file that
    the cache lacks; a model that is whole lacks a dozen of those that it could have.

    Args:
        name: the repo that is loaded; for a folder, and under HF_HUB_OFFLINE, the Hub is not asked.
    """
    problem = None if os.path.isdir(name) or constants.is_offline_mode() else _what_keeps_from(name)
    if problem is None:
        yield False
        return
    yield True
    warn_once(logger, f"{name}: {constants.ENDPOINT} cannot be reached ({problem}): what is in the cache is used")


def _what_keeps_from(name: str) -> str | None:
    """Why the first file of a repo cannot be asked for; None where anything is answered, for the loader to hear."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        return str(error) or type(error).__name__ if kinds & _UNREACHED else None
    return None
