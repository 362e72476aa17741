"""Making do with the memory there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

Row = TypeVar("Row")
_WORDS = re.compile(r"alloc\w* memory|(out of|not enough) memory|bad.alloc|failed to map segment", re.IGNORECASE)
"""Of PyTorch's allocators, of the CPU and of GPUs, of C++, and where PyTorch itself finds no room."""


def in_batches(rows: Sequence[Row], run: Callable[[Sequence[Row]], None], size: int) -> int:
    """Run all rows, `size` at a time; where memory does not suffice, half as many from there on.

    Args:
        rows: in order.
        run: takes some of them; called again with the first half where it was out of memory.
        size: how many at a time, 1 or more.

    Returns:
        How many there was memory for at last.

    Raises:
        Exception: whatever `run` raises, out of memory only for a single row.
    """
    done = 0
    while done < len(rows):
        some = rows[done : done + size]
        try:
            run(some)
        except Exception as error:
            if len(some) == 1 or not is_out_of_memory(error):
                raise
            size = len(some) // 2
        else:
            done += len(some)
            continue
        import torch

        torch.cuda.empty_cache()  # here, where the error no longer holds what was allocated
    return size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, of a GPU or of the computer."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"}:  # the second is of torch, which the command line does without
        return True
    return isinstance(error, RuntimeError | ImportError) and bool(_WORDS.search(str(error)))
