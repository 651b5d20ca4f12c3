"""The machine: what it is, and the ceilings that the other parts' figures are held against."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

from lora3d_ns.benchmark_record import PeakMemory
from lora3d_ns.gpu_check.common import independent
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row

_LEAST_SECONDS, _TINY_LEAST_SECONDS = 0.3, 0.01
_MOST_REPEATS = 1000
_WINDOWS = 3
_SIZE, _TINY_SIZE = 8192, 128
_COPIED_BYTES, _TINY_COPIED_BYTES = 4 << 30, 1 << 20
_SENT_BYTES = 512 << 20


def run(settings: PartSettings) -> Iterator[Row]:
    """Names the machine; rates of matrix products and of copies."""
    device = torch.device(settings.device)
    size = _TINY_SIZE if settings.tiny else _SIZE
    yield from independent("memory", lambda: [_named(device)])
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
        ("float32", torch.float32, False),
        ("float32 with TF32", torch.float32, True),
    ):
        yield from independent(f"{name} products", lambda n=name, d=dtype, t=tf32: [_products(n, device, d, t, size)])
    copied = _TINY_COPIED_BYTES if settings.tiny else _COPIED_BYTES
    yield from independent("copies on the device", lambda: [_copies(device, copied)])
    sent = _TINY_COPIED_BYTES if settings.tiny else _SENT_BYTES
    for name in ("host to device", "device to host"):
        for pinned in (False, True):
            yield from independent(name, lambda n=name, p=pinned: [_sent(n, device, sent, pinned=p)])


def matrix_rate_tflops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Rate of `size`^3 matrix products of random numbers, in 10^12 operations (a product and a sum are two) a second.

    The best of three windows of 0.3 s each, after two products that warm up. Whether float32 uses TF32 is left as it is
    found. Random numbers, since a GPU is faster where bits do not change.
    """
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    window_s = _LEAST_SECONDS if size > _TINY_SIZE else _TINY_LEAST_SECONDS
    seconds = _seconds_per_call(lambda: first @ second, device, window_s=window_s)
    return 2 * size**3 / seconds / 1e12


def _seconds_per_call(call: Callable[[], object], device: torch.device, *, window_s: float = _LEAST_SECONDS) -> float:
    with PeakMemory(device):
        call()
    with PeakMemory(device) as probe:
        call()
    repeats = max(1, min(_MOST_REPEATS, round(window_s / max(probe.seconds, 1e-6))))
    windows = []
    for _ in range(_WINDOWS):
        with PeakMemory(device) as window:
            for _ in range(repeats):
                call()
        windows.append(window.seconds / repeats)
    return min(windows)


def _named(device: torch.device) -> Row:
    cores = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB of host memory"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[1]
    else:
        name, memory = "the CPU", psutil.virtual_memory().total
    return Row(name="memory", value=memory / 2**30, unit="GiB", note=f"{name}; {versions}; {cores}")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _products(name: str, device: torch.device, dtype: torch.dtype, tf32: bool, size: int) -> Row:
    with _tf32(tf32):
        rate = matrix_rate_tflops(device, dtype, size)
    return Row(name=f"{name} products", value=rate, unit="TFLOP/s", note=f"{size} x {size}, random numbers")


def _copies(device: torch.device, count: int) -> Row:
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    window_s = _LEAST_SECONDS if count > _TINY_COPIED_BYTES else _TINY_LEAST_SECONDS
    seconds = _seconds_per_call(lambda: target.copy_(source), device, window_s=window_s)
    note = f"{count / 2**20:.0f} MiB read and written"
    return Row(name="copies on the device", value=2 * count / seconds / 1e9, unit="GB/s", note=note)


def _sent(name: str, device: torch.device, count: int, *, pinned: bool) -> Row:
    label = f"{name}, {'pinned' if pinned else 'ordinary'} memory"
    if device.type != "cuda":
        return Row(name=label, note="needs CUDA")
    here: Tensor = torch.ones(count, dtype=torch.uint8)
    if pinned:
        here = here.pin_memory()
    there = torch.ones(count, dtype=torch.uint8, device=device)
    target, source = (there, here) if name == "host to device" else (here, there)
    window_s = _LEAST_SECONDS if count > _TINY_COPIED_BYTES else _TINY_LEAST_SECONDS
    seconds = _seconds_per_call(lambda: target.copy_(source), device, window_s=window_s)
    return Row(name=label, value=count / seconds / 1e9, unit="GB/s", note=f"{count / 2**20:.0f} MiB at once")
