"""The CUDA device, and gsplat's code for it."""

import functools
import math

from lora3d_ns.doctor.findings import GIB, Finding
from lora3d_ns.doctor.machine import Machine, Torch

NETWORK_BYTES = round(2.2 * GIB)
"""Room for the official network: 571 million weights in float32, 2.13 GiB."""
LEARNING_BYTES = round(2.9 * GIB)
"""What one pair of photos of 512x384 takes while the official network learns, recomputing activations (measured)."""
JOB_BYTES = 4 * GIB
"""Of a compiler job of gsplat's build: 3.3 GiB measured (nvcc 13.0, torch 2.15, one architecture)."""
_JOB_MINUTES = 2.0
"""100 and 139 s measured of two of its 24 files, on one core."""
_BUILD_FILES = 24


def device(machine: Machine, torch: Torch) -> Finding:
    """A device torch can use; else why not: no driver, a torch without CUDA, or a driver too old for it."""
    needed_for = "speed: the network and the splats on the GPU; the CPU does the same, slower and smaller"
    finding = functools.partial(Finding, name="CUDA device", needed_for=needed_for)
    if torch.hip is not None:
        return finding(
            status="limited",
            detail=f"torch is built for ROCm {torch.hip}, for which gsplat has no code",
            fix="Train splats with `--machine.device-type cpu`",
        )
    if torch.gpus:
        listed = "; ".join(
            f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB, capability {gpu.capability[0]}.{gpu.capability[1]}"
            for gpu in torch.gpus
        )
        needed = NETWORK_BYTES + LEARNING_BYTES
        if torch.gpus[0].memory_bytes < needed:
            return finding(
                status="limited",
                detail=f"{listed}: the official network learns in {needed / GIB:.1f} GiB or more",
                fix="Use `--device cpu`, or `--network 224_linear`, which looks at smaller photos",
            )
        return finding(status="ok", detail=f"{listed}{'. ' if torch.said else ''}{torch.said}")
    driver = machine.driver()
    if driver is None:
        return finding(
            status="limited",
            detail="no NVIDIA driver: neither nvidia-smi nor /dev/nvidia0",
            fix="Go on with the CPU; or with an NVIDIA GPU, install its driver (in a container: start it with "
            "`--gpus all`)",
        )
    if torch.cuda is None:
        return finding(
            status="limited",
            detail=f"there is a driver ({driver}), but torch {torch.version} is built without CUDA",
            fix="Reinstall torch and torchvision for CUDA with the command that pytorch.org/get-started/locally gives "
            "for your driver",
        )
    hidden = machine.environment("CUDA_VISIBLE_DEVICES")
    return finding(
        status="limited",
        detail=f"there is a driver ({driver}) and torch is built for CUDA {torch.cuda}, yet it finds no device"
        f"{'' if hidden is None else f' (CUDA_VISIBLE_DEVICES={hidden})'}. {torch.said}".rstrip(". "),
        fix="Unset CUDA_VISIBLE_DEVICES"
        if hidden is not None
        else f"Update the driver, or install a torch for a CUDA older than {torch.cuda}; in a container: `--gpus all`",
    )


def compilers(machine: Machine, torch: Torch) -> Finding:
    """nvcc, a C++ compiler and ninja: what gsplat's build needs, in the way torch and gsplat look for them."""
    found, problems, fixes = [], [], []
    nvcc, home = machine.program("nvcc"), machine.cuda_home()
    if nvcc is None:
        problems.append("no nvcc on PATH")
        wanted = "" if torch.cuda is None else f" {torch.cuda.split('.')[0]}.x"
        beside = None if home is None else home / "bin" / "nvcc"
        if beside is not None and machine.exists(beside):
            fixes.append(f"export PATH={beside.parent}:$PATH")
        else:
            fixes.append(f"Install the CUDA toolkit{wanted} (nvcc with headers) and put its bin folder on PATH")
    else:
        release = _nvcc_release(machine.program_says(nvcc, "--version") or "")
        found.append(f"nvcc {release or 'of unknown version'} ({nvcc})")
        if release and torch.cuda is not None and release.split(".")[0] != torch.cuda.split(".")[0]:
            problems.append(f"nvcc is of CUDA {release} and torch of CUDA {torch.cuda}: torch refuses to build")
            fixes.append(f"Install the CUDA toolkit {torch.cuda}, or a torch built for CUDA {release}")
        header = None if home is None else home / "include" / "cuda_runtime.h"
        if header is None or not machine.exists(header):
            problems.append(f"CUDA_HOME is {home}, where include/cuda_runtime.h is not")
            fixes.append("export CUDA_HOME=the toolkit's own folder, the one with bin/, include/ and lib64/")
    for name, package in ((machine.environment("CXX") or "c++", "g++"), ("ninja", "ninja-build")):
        program = machine.program(name)
        if program is None:
            problems.append(f"no {name} on PATH")
            fixes.append(
                "Activate the virtual environment (it has a ninja), or `apt-get install ninja-build`"
                if name == "ninja"
                else f"`apt-get install {package}`"
            )
        else:
            version = (machine.program_says(program, "--version") or "").splitlines()
            found.append(f"{name} {version[0] if version else 'of unknown version'}")
    details = "; ".join([*problems, *found])
    wanted_here = bool(torch.gpus) and torch.hip is None and machine.gsplat_binary() is None
    if problems and not wanted_here:
        why = "gsplat is built already" if torch.gpus and torch.hip is None else "there is no CUDA device"
        return Finding(
            name="compilers", status="ok", detail=f"not needed, {why} ({details})", needed_for="building gsplat"
        )
    return Finding(
        name="compilers",
        status="missing" if problems else "ok",
        detail=details,
        fix=". ".join(fixes),
        needed_for="building gsplat, once, on its first use",
    )


def _nvcc_release(text: str) -> str:
    _, _, rest = text.partition("release ")
    return rest.split(",")[0].strip() if rest else ""


def gsplat(machine: Machine, torch: Torch) -> Finding:
    """gsplat's compiled code, or what compiling it takes here."""
    finding = functools.partial(Finding, name="gsplat", needed_for="splats on the GPU")
    binary = machine.gsplat_binary()
    if not torch.gpus or torch.hip is not None:
        return finding(
            status="limited",
            detail="without a CUDA device Gaussians are trained by our own rasterizer on the CPU, fewer and smaller",
            fix="Nothing to mend on the CPU; for the GPU see `CUDA device`",
        )
    if binary is not None:
        return finding(status="ok", detail=f"compiled: {binary}")
    tools = compilers(machine, torch)
    if tools.status == "missing":
        return finding(
            status="missing",
            detail="not compiled, and it cannot be compiled here; its first use would fail with `NoneType has no "
            "attribute CameraModelType`",
            fix=f"{tools.fix}. Until then train with `--machine.device-type cpu`",
        )
    jobs = build_jobs(machine.cores(), machine.memory().available)
    minutes = math.ceil(_BUILD_FILES / jobs) * _JOB_MINUTES
    chosen = machine.environment("MAX_JOBS")
    return finding(
        status="limited",
        detail=f"not compiled yet: its first use compiles {_BUILD_FILES} files into {machine.gsplat_folder()}, about "
        f"{minutes:.0f} minutes with {jobs} jobs of 4 GiB; with MAX_JOBS unset gsplat starts 10"
        f"{'' if chosen is None else f' (MAX_JOBS={chosen} now)'}",
        fix=f"Compile it beforehand: MAX_JOBS={jobs} python -c 'from gsplat.cuda._backend import _C'",
    )


def build_jobs(cores: int, available_bytes: int) -> int:
    """Compiler jobs that this machine has cores and memory for."""
    return max(1, min(cores, available_bytes // JOB_BYTES))
