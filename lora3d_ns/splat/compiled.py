"""How our numba kernels are compiled and spread over threads. Imports numba: import this module late.

Threads are our own, not numba's: its default layer aborts the process when two Python threads enter it at once, as
nerfstudio's viewer does while training goes on. Kernels release the interpreter lock and take a range of their work,
so plain Python threads run them side by side, and results do not depend on how many there are.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch

FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be reordered (once, at compile time); NaN and infinity keep their meaning."""

_pool_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def compiled(function: Callable[..., Any]) -> Any:
    """The function, compiled on its first call; machine code is kept on disk where a folder can be written."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FAST_MATH, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither beside the source nor in the user's cache folder may anything be written.
        return numba.njit(**options)(function)


def in_parallel(kernel: Callable[..., Any], count: int, chunk: int, *arguments: Any) -> None:
    """Calls `kernel(first, last, *arguments)` for consecutive ranges that cover 0 to count.

    As many threads as torch uses take the ranges in order, each the next one when it is done with its last. The ranges
    do not depend on the number of threads.
    """
    starts = range(0, count, chunk)
    workers = min(torch.get_num_threads(), len(starts))
    if workers <= 1:
        for first in starts:
            kernel(first, min(first + chunk, count), *arguments)
        return
    turn = itertools.count()

    def work() -> None:
        # `next` of a count is one step of the interpreter: no two threads get the same number.
        while (number := next(turn)) < len(starts):
            first = starts[number]
            kernel(first, min(first + chunk, count), *arguments)

    helpers = [_threads(workers - 1).submit(work) for _ in range(workers - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()


def _threads(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _pool_lock:
        if _pool is None or _pool_size < count:
            # An outgrown pool still ends what it was given; its threads go when nobody holds it any more.
            _pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix="lora3d-rasterizer")
            _pool_size = count
        return _pool


def _forget_threads() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
