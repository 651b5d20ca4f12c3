"""What every benchmark command does the same way: say on what it ran, watch memory, write its JSON."""

import json
import platform
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import psutil
import torch

from lora3d_ns import __version__
from lora3d_ns.atomic_files import write_text_atomically


def machine_record(*, command: str, device: torch.device, seed: int) -> dict[str, object]:
    """The keys that every benchmark's JSON begins with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": command,
        "version": __version__,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seed": seed,
    }


def write_record(record: Mapping[str, object], path: Path | None) -> None:
    """Writes the record as JSON, if a path was asked for.

    Raises:
        StorageError: It cannot be written.
    """
    if path is not None:
        write_text_atomically(path, json.dumps(record, indent=1) + "\n")


class PeakMemory(AbstractContextManager["PeakMemory"]):
    """Time and highest memory of a block, above what was held when it began.

    On CUDA the allocator counts; on the CPU the process' resident memory is sampled every 10 ms.

    Attributes:
        seconds: Wall-clock time of the block.
        peak_bytes: Highest memory above the beginning's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._done = threading.Event()
        self.seconds = 0.0
        self.peak_bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._held = torch.cuda.memory_allocated(self._device)
        else:
            self._held = self._process.memory_info().rss
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._start
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device) - self._held
        else:
            self._done.set()
            self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss - self._held)
            if self._done.wait(0.01):
                return
