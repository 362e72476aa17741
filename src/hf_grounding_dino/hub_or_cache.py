"""Models of the Hub where there is no network: from the cache of its client, at once."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

from .printable import printable

logger = logging.getLogger(__name__)

_UNREACHED = {"ConnectError", "TimeoutException"}
"""Of httpx or httpx2, whichever the client of the Hub is built on."""


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Where the Hub cannot be reached, load what the block loads from the cache alone, and log that it was so.

    The client by itself tries six times, in 23 seconds, for each file that the cache lacks; a model that is whole lacks
    a dozen of those that it could have. Until the block ends, the whole process is offline.

    Args:
        name: the repo that is loaded; for a folder, and under HF_HUB_OFFLINE, nothing changes.
    """
    problem = None if os.path.isdir(name) or constants.is_offline_mode() else _what_keeps_from(name)
    if problem is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
    _say_once(f"{name}: {constants.ENDPOINT} cannot be reached ({problem}): what is in the cache is used")


def _what_keeps_from(name: str) -> str | None:
    """Why the first file of a repo cannot be asked for; None where anything is answered, for the loader to hear."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        return str(error) or type(error).__name__ if kinds & _UNREACHED else None
    return None


@functools.cache
def _say_once(line: str) -> None:
    logger.warning(printable(line))
