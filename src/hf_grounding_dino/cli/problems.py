"""What the disk and the Hub refuse, in one line that says what to do: the one door for all commands."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_grounding_dino.utils.memory import is_out_of_memory

from . import UserError

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
_TORCH_WRITER = re.compile(r"(?:\[enforce fail at inline_container|basic_ios::clear).*", re.DOTALL)
"""All that torch says where its file takes no more bytes; the reason of the system is lost in it."""
_ERRNO = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
"""How Python and Rust, which `tokenizers` and `safetensors` are written in, call the error of the system."""
_PAGE = re.compile(r"/(?:api/)?(?:models/)?((?:datasets/|spaces/)?.+?)/(?:resolve|revision|tree|paths-info)/")
_GATED_SET = re.compile(r"Dataset '([^']+)' is a gated dataset")
_LOG_IN = "log in with `hf auth login`"


@contextmanager
def user_errors(*kinds: type[Exception], place: str | Path | None = None) -> Iterator[None]:
    """Word what the user can mend: errors of these kinds, and whatever the disk and the Hub refuse.

    Args:
        kinds: what else the block raises for the user, in one line.
        place: what is being written, for errors that do not name their file.

    Raises:
        UserError: in place of each.
    """
    try:
        yield
    except (UserError, BrokenPipeError):  # of stdout, whose reader has gone
        raise
    except Exception as error:
        if not isinstance(error, (*kinds, OSError)) and not _TORCH_WRITER.search(str(error)) and not _number(error):
            raise
        raise UserError(in_words(error, place)) from error


def in_words(error: BaseException, place: str | Path | None = None) -> str:
    """An error as what it is about, why that cannot be had or written, and what to do.

    Args:
        error: of the client of the Hub, of the system, or raised from one of these; any other is taken at its word.
        place: what was being written, for errors that do not name their file.
    """
    text = str(error).strip() or type(error).__name__
    if problem := hub_problem(error):
        return problem
    if " be written" not in text and _number(error):
        return _of_the_system(error, place)
    if _TORCH_WRITER.search(text):
        start = "" if isinstance(error, ValueError) else f"{place} cannot be written: "
        return start + _TORCH_WRITER.sub("not all of it could be written, as on a full disk", text)
    cause = error.__cause__
    if " be written" not in text and cause is not None and _number(cause) in _FULL:
        return _of_the_system(cause, place)
    return text


def hub_problem(error: BaseException) -> str | None:
    """What keeps a repo of the Hub from being had, and what to do; None for errors that come from elsewhere."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    hub = constants.ENDPOINT
    for cause in _causes(error):
        if isinstance(cause, LocalEntryNotFoundError):
            return _without_network(error, offline=constants.HF_HUB_OFFLINE)
        page = _PAGE.match(cause.response.request.url.path) if isinstance(cause, HfHubHTTPError) else None
        if gated := _GATED_SET.search(str(cause)):
            return _gated(f"datasets/{gated[1]}", hub)
        if page is None or not isinstance(cause, HfHubHTTPError):
            continue
        if isinstance(cause, GatedRepoError):
            return _gated(page[1], hub)
        if isinstance(cause, RepositoryNotFoundError):
            return f"{page[1]}: there is no such folder, and no such repo on {hub}; if it is a private one, {_LOG_IN}"
        if cause.response.status_code in (401, 403):
            return f"{page[1]}: {hub} does not let this token read it ({cause.server_message}); {_LOG_IN}"
    return None


def _gated(page: str, hub: str) -> str:
    return f"{page} is gated: accept its terms at {hub}/{page}, and {_LOG_IN}"


def _without_network(error: BaseException, *, offline: bool) -> str:
    """The first sentence of what transformers says, which names the address."""
    text = " ".join(str(error).split()).partition(" Check your internet")[0]
    return f"{text} (HF_HUB_OFFLINE is {'set' if offline else 'not set: set to 1, it goes without the network'})"


def limit_problem(error: BaseException) -> str | None:
    """Which limit of the machine or of Python an input or an option goes past, on one line; None for other errors."""
    for cause in _causes(error):
        text = " ".join(str(cause).split())
        if is_out_of_memory(cause):
            return "there is not enough memory for this"
        if isinstance(cause, RuntimeError) and "start new thread" in text:
            return "the system gives no more threads"
        if isinstance(cause, RecursionError):
            return "something in the input is nested too deeply"
        if isinstance(cause, OverflowError):
            return f"a number in the input or the options is too large: {text}"
        if isinstance(cause, UnicodeEncodeError) and "surrogates" in cause.reason:
            return f"a text in the input or the options holds half a character: {cause.object!r:.80}"
    return None


def system_reason(error: BaseException) -> str:
    """Why the system refused, without the file: "No space left on device"."""
    number = _number(error)
    return os.strerror(number) if number else str(error)


def _number(error: BaseException) -> int | None:
    """Of an error of the system, also where it is told in text alone: by Rust, or of each file that was copied."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = _ERRNO.search(str(error)) if not isinstance(error, ValueError) else None
    return int(found[1] or found[2]) if found else None


def _of_the_system(error: BaseException, place: str | Path | None) -> str:
    reason = system_reason(error)
    named = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    file = None if named is None else Path(os.fsdecode(named))
    if file is None or any(part.strip(".") and part.startswith(".") for part in file.parts):
        file = None if place is None else Path(place)  # what is hidden is unfinished
    if file is None:
        return reason
    return f"{file} cannot be written: {reason}" if _number(error) in _FULL else f"{file}: {reason}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
