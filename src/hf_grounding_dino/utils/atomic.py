"""Files and folders that are there whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".unfinished"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside `path` to write to, which replaces what lies at `path` when the block ends, and goes if it fails.

    Folders on the way are made.

    Raises:
        OSError: it cannot be written, as on a full disk; `path` is named, and what was there before is there still.
    """
    target = Path(path)
    unfinished = _beside(target)
    try:
        yield unfinished
        os.replace(unfinished, target)
    except OSError as error:
        if error.filename not in (None, str(unfinished)):
            raise
        # A full disk is told by an error without a file.
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder beside `path`, which takes that name when the block ends, and goes if it fails.

    At `path` nothing lies, or an empty folder. Folders on the way are made.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path).resolve()
    unfinished = _beside(target)
    unfinished.mkdir()
    try:
        yield unfinished
        if target.exists():
            target.rmdir()
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write a file beside its place and move it there, in place of what lies there; give its path.

    Text is written as UTF-8 with line ends as they are. What a failure leaves is removed.

    Raises:
        OSError: as `atomic_file`.
    """
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def flush_to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, written through to the disk.

    Raises:
        OSError: the disk takes no more.
    """
    if os.name == "nt":  # which opens no folders, and flushes no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_image(path: str | os.PathLike[str], image: Image.Image) -> Path:
    """As `write_atomic`, an image as PNG.

    Raises:
        OSError: as `atomic_file`.
    """
    with atomic_file(path) as unfinished:
        image.save(unfinished, format="PNG")
    return Path(path)


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes left of files in a folder, where nobody else is at work."""
    for unfinished in folder.glob(f".*{_UNFINISHED}"):
        unfinished.unlink()


def lock(file: IO[bytes]) -> bool:
    """Take a file for this process until it is closed; False where another has it.

    A process that is forked off has no part in it. Where there are no locks, as on Windows, nobody is kept out.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # some network file systems have no locks
    os.register_at_fork(after_in_child=file.close)
    return True


def _beside(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target)) from error
    return target.with_name(f".{target.name}.{os.getpid()}{_UNFINISHED}")
