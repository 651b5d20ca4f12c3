"""Which program rasterizes Gaussians: gsplat's where there is CUDA, ours elsewhere."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from lora3d_ns.errors import RasterizerError

logger = logging.getLogger(__name__)


def choose_rasterizer(device: torch.device) -> Callable[..., Any]:
    """A function with the arguments and results of gsplat 1.4.0's `rasterization`, for tensors on this device.

    The choice of the CPU is logged, once in a process. On CUDA gsplat may have to build its kernels first, which takes
    minutes the first time.

    Raises:
        RasterizerError: On CUDA gsplat's kernels are not built and cannot be, or the device is of a third kind.
    """
    if device.type == "cpu":
        _say_that_the_cpu_is_used()
        from lora3d_ns.splat.rasterize_cpu import rasterization

        return rasterization
    if device.type != "cuda":
        raise RasterizerError(
            f"there is no rasterizer of Gaussians for {device}", way_out="Use a CUDA device or the CPU"
        )
    return _gsplat_on_cuda()


@functools.cache
def _say_that_the_cpu_is_used() -> None:
    why = "the CPU was asked for" if torch.cuda.is_available() else "no CUDA device"
    logger.warning(
        "%s: Gaussians are rasterized on the CPU, which is much slower "
        "(the first picture takes some seconds more, until its code is compiled)",
        why,
    )


def _gsplat_on_cuda() -> Callable[..., Any]:
    """gsplat's function, if its kernels are there: it imports without them and fails at the first picture only."""
    try:
        from gsplat.cuda import _backend
        from gsplat.rendering import rasterization
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RasterizerError(
            f"gsplat's CUDA kernels could not be built ({reason[:300]})",
            way_out="Run `lora3d doctor`: it says which compiler and CUDA toolkit they need. Or use the CPU",
        ) from error
    if _backend._C is None:
        raise RasterizerError(
            "gsplat has no CUDA kernels: they are not built, and there is no nvcc to build them",
            way_out="Run `lora3d doctor`: it says which CUDA toolkit to install. Or use the CPU",
        )
    return rasterization
