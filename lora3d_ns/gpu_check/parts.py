"""The parts of the check by name; each is a generator of rows, in a module of its own that is loaded when it runs."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora3d_ns.errors import SettingsError
from lora3d_ns.gpu_check.rows import Row


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """What every part is told."""

    device: str = "cuda"
    """`cuda`; or `cpu`, to try a part's logic where there is no GPU."""
    tiny: bool = False
    """Networks, photos and steps so small that a CPU is through in seconds: for tests of the check itself. Its goals
    mean nothing then."""
    peer: bool = True
    """Whether to run the peers that are installed."""
    seed: int = 0
    """Of weights, images and rooms."""
    folder: Path
    """An empty folder for what the part writes."""


PartFunction = Callable[[PartSettings], Iterator[Row]]

PARTS: Mapping[str, str] = {
    "machine": "the GPU, and its ceilings: bf16 matrix products and copies",
    "build": "gsplat's CUDA code, compiled or found",
    "tests": "the tests that carry the mark `gpu`",
    "rasterizer": "our CPU rasterizer against gsplat's CUDA code: values and gradients",
    "network": "float32, bfloat16 and float16 on the GPU against float32 on the CPU",
    "adapter": "an adapter learnt on the GPU, loaded on the CPU",
    "inference": "all pairs of 10 and of 40 photos, full-size network, against mini-dust3r",
    "alignment": "10, 40 and 100 views against mini-dust3r's optimiser",
    "finetune": "steps and a whole training of 10 photos, default, low memory and the paper's recipe",
    "calibration": "the whole self-calibration of 10 photos, weights loaded, stage by stage",
    "job": "`ns-train lora3d-splat`, `ns-eval` and `ns-export` on a rooms scene with the bundled network",
    "splats": "training Gaussians against stock splatfacto from the same start",
}
"""Each part and what it does, in the order in which they run."""


def part_function(name: str) -> PartFunction:
    """The function that runs a part: `run` of the module `lora3d_ns.gpu_check.part_<name>`.

    Raises:
        SettingsError: There is no such part.
    """
    if name not in PARTS:
        raise SettingsError(f"there is no part {name!r}", way_out=f"Use some of {', '.join(PARTS)}")
    return importlib.import_module(f"lora3d_ns.gpu_check.part_{name}").run
