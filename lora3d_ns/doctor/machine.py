"""What `lora3d doctor` asks of the machine: packages, devices, compilers, caches, free room. Nothing is judged here.

No question goes to the network, and none is asked before its method is called; tests answer in the machine's place.
"""

import contextlib
import ctypes.util
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

METHODS = "nerfstudio.method_configs"
DATAPARSERS = "nerfstudio.dataparser_configs"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
"""Weights of torchvision's AlexNet, which LPIPS needs; the name ends in the first digits of the content's SHA-256."""

_PATIENCE_S = 10.0
_PATIENCE_PLUGINS_S = 60.0

_LOAD_PLUGINS = """
import importlib.metadata, json, sys
failed = {}
for group in sys.argv[1:]:
    for point in importlib.metadata.entry_points(group=group):
        try:
            point.load()
        except BaseException as error:
            failed[f"{group} {point.name}"] = f"{type(error).__name__}: {error}"
print()
print(json.dumps(failed))
"""
"""As nerfstudio does it, except that it goes on after the first that fails."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that this one requires.

    Attributes:
        name: Of the package.
        wanted: The range of versions, as in pyproject.toml.
        installed: The version that is there, or None.
        fits: Whether it is there and within the range.
    """

    name: str
    wanted: str
    installed: str | None
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device as torch sees it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Torch:
    """What torch is and sees.

    Attributes:
        version: Of torch.
        cuda: Version of CUDA that it was built with, or None.
        hip: Version of ROCm that it was built with, or None.
        gpus: Devices it can use.
        said: Its own words about why it can use none, or about an unsuitable one.
    """

    version: str
    cuda: str | None
    hip: str | None
    gpus: tuple[Gpu, ...]
    said: str


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """An entry point of nerfstudio.

    Attributes:
        group: `METHODS` or `DATAPARSERS`.
        name: What users type.
        package: The installed package that brings it.
        module: The module it names.
    """

    group: str
    name: str
    package: str
    module: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of the host, in bytes, within the limit of the container if there is one."""

    total: int
    available: int
    swap: int


class Machine:
    """The machine we are on. Every method may raise whatever the system raises."""

    def python(self) -> tuple[int, int, int]:
        """Version of Python."""
        return sys.version_info[:3]

    def requirements(self) -> tuple[Requirement, ...]:
        """What this package requires, and what is installed of it."""
        from packaging.requirements import Requirement as Parsed

        found = []
        for line in importlib.metadata.requires("lora3d-ns") or []:
            parsed = Parsed(line)
            if parsed.marker is not None and not parsed.marker.evaluate({"extra": ""}):
                continue
            installed = _version(parsed.name)
            fits = installed is not None and parsed.specifier.contains(installed, prereleases=True)
            found.append(Requirement(name=parsed.name, wanted=str(parsed.specifier), installed=installed, fits=fits))
        return tuple(found)

    def version(self, package: str) -> str | None:
        """Version of an installed package, or None."""
        return _version(package)

    def torch(self) -> Torch:
        """Imports torch and asks it for CUDA devices."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            import torch

            gpus = []
            if torch.cuda.is_available():
                for index in range(torch.cuda.device_count()):
                    properties = torch.cuda.get_device_properties(index)
                    gpus.append(
                        Gpu(
                            name=properties.name,
                            memory_bytes=properties.total_memory,
                            capability=(properties.major, properties.minor),
                        )
                    )
        words = [" ".join(str(warning.message).split()) for warning in said if "CUDA" in str(warning.message)]
        return Torch(
            version=torch.__version__,
            cuda=torch.version.cuda,
            hip=torch.version.hip,
            gpus=tuple(gpus),
            said=" ".join(dict.fromkeys(words)),
        )

    def driver(self) -> str | None:
        """What is known of the NVIDIA driver; None where there is none."""
        program = shutil.which("nvidia-smi")
        if program is not None:
            answer = _output([program, "--query-gpu=driver_version,name", "--format=csv,noheader"])
            if answer is not None:
                return f"NVIDIA driver {answer.splitlines()[0]}" if answer else "nvidia-smi, which names no device"
        for sign in (Path("/dev/nvidia0"), Path("/proc/driver/nvidia/version")):
            if sign.exists():
                return str(sign)
        return None if program is None else f"{program}, which fails"

    def environment(self, name: str) -> str | None:
        """An environment variable; None if it is unset or empty."""
        return os.environ.get(name) or None

    def program(self, name: str) -> Path | None:
        """Where a program is found on PATH."""
        found = shutil.which(name)
        return None if found is None else Path(found)

    def exists(self, path: Path) -> bool:
        """Whether there is such a file or folder."""
        return path.exists()

    def program_says(self, program: Path, argument: str) -> str | None:
        """What a program prints; None if it fails."""
        return _output([str(program), argument])

    def cuda_home(self) -> Path | None:
        """The CUDA toolkit that torch would build with."""
        with _quiet("torch.utils.cpp_extension"):
            from torch.utils.cpp_extension import CUDA_HOME

        return None if CUDA_HOME is None else Path(CUDA_HOME)

    def gsplat_folder(self) -> Path:
        """Where gsplat's build is or would be; made if it is missing, as gsplat itself does."""
        with _quiet("torch.utils.cpp_extension"):
            from torch.utils.cpp_extension import _get_build_directory

        return Path(_get_build_directory("gsplat_cuda", verbose=False))

    def gsplat_binary(self) -> Path | None:
        """gsplat's compiled code: what came with the package, or what was built on this machine."""
        for file in importlib.metadata.files("gsplat") or []:
            if file.name.startswith("csrc.") and file.suffix in (".so", ".pyd"):
                return Path(str(file.locate()))
        for name in ("gsplat_cuda.so", "gsplat_cuda.lib"):
            if (self.gsplat_folder() / name).exists():
                return self.gsplat_folder() / name
        return None

    def bundled_weights(self) -> Path:
        """Where the bundled network's weights belong."""
        return Path(__file__).parents[1] / "weights" / "rooms.safetensors"

    def hub_cache(self) -> Path:
        """The Hugging Face hub's cache."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def cached_by_hub(self, repository: str, file: str) -> Path | None:
        """A file in the hub's cache, without asking the hub."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(repository, file, cache_dir=self.hub_cache())
        return Path(cached) if isinstance(cached, str) else None

    def alexnet(self) -> Path:
        """Where torchvision looks for AlexNet before it downloads it."""
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE

    def size_bytes(self, file: Path) -> int | None:
        """Size of a file; None if there is none."""
        return file.stat().st_size if file.is_file() else None

    def sha256(self, file: Path) -> str:
        """SHA-256 of a file's content."""
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def free_disk_bytes(self, folder: Path) -> int:
        """Free room at a folder, or where it would be made."""
        return shutil.disk_usage(_nearest(folder)).free

    def writable(self, folder: Path) -> bool:
        """Whether files can be written into a folder, or into where it would be made."""
        place = _nearest(folder)
        return place.is_dir() and os.access(place, os.W_OK | os.X_OK)

    def cores(self) -> int:
        """Processor cores that this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def memory(self) -> Memory:
        """Host memory."""
        host = psutil.virtual_memory()
        total, available = host.total, host.available
        # Containers: psutil sees the whole host's. Versions 2 and 1 of control groups.
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):
                limit = int(Path("/sys/fs/cgroup", limit_file).read_text())
                used = int(Path("/sys/fs/cgroup", used_file).read_text())
                total, available = min(total, limit), max(0, min(available, limit - used))
        return Memory(total=total, available=available, swap=psutil.swap_memory().total)

    def plugins(self) -> tuple[Plugin, ...]:
        """Methods and dataparsers that nerfstudio will load."""
        return tuple(
            Plugin(
                group=group,
                name=point.name,
                package="" if point.dist is None else point.dist.name,
                module=point.module,
            )
            for group in (METHODS, DATAPARSERS)
            for point in importlib.metadata.entry_points(group=group)
        )

    def plugin_failures(self) -> dict[str, str]:
        """Loads all of them in a process of its own, and says which fail and why, by group and name.

        Raises:
            subprocess.TimeoutExpired: It takes longer than a minute.
            RuntimeError: The process died.
        """
        run = subprocess.run(
            [sys.executable, "-c", _LOAD_PLUGINS, METHODS, DATAPARSERS],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_PLUGINS_S,
            check=False,
        )
        if run.returncode != 0:
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"exit code {run.returncode}: {last}")
        return json.loads(run.stdout.splitlines()[-1])

    def system_library(self, name: str) -> str | None:
        """A shared library of the system, such as `usb-1.0`."""
        return ctypes.util.find_library(name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    run = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def _nearest(folder: Path) -> Path:
    folder = folder.absolute()
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
