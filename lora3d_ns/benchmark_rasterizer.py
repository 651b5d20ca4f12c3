"""`lora3d benchmark rasterizer`: our CPU rasterizer against one written plainly in torch, same scene, same run.

One pass is everything that a training step asks of it: spherical harmonics, projection, sorting, pixels with expected
depth, and the gradient of all parameters and of the camera. The plain one goes through the same tiles and stops at the
same thresholds, all Gaussians of a tile times all of its pixels at once; it has autograd's gradients.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.errors import SettingsError

_TILE = 16
_SH_DEGREE = 3
_PLAIN_REPEATS = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class Cloud:
    """Gaussians that fill a picture, and the camera that sees them.

    Attributes:
        gaussians: means, quats, scales, opacities and colors (spherical harmonics of degree 3), float32.
        viewmats: The camera.
        Ks: Its intrinsics.
        size: (width, height).
    """

    gaussians: dict[str, Float[Tensor, "..."]]
    viewmats: Float[Tensor, "1 4 4"]
    Ks: Float[Tensor, "1 3 3"]
    size: tuple[int, int]


def make_cloud(gaussians: int, size: tuple[int, int], *, seed: int = 0) -> Cloud:
    """Gaussians at depths 1.5 to 6, evenly over the picture and a little beyond it.

    Their axes are 0.4 to 2 pixels long (one standard deviation, at a picture of 256 pixels), turned at random; with the
    blur most radii are 3 to 6 pixels. Opacities are 0.1 to 0.9, so that light passes through many of them.
    """
    generator = torch.Generator().manual_seed(seed)
    width, height = size
    focal = 0.9 * width
    depth = 1.5 + 4.5 * torch.rand(gaussians, generator=generator)
    pixel = torch.rand(gaussians, 2, generator=generator) * 1.1 - 0.55
    spread = 0.4 + 1.6 * torch.rand(gaussians, 3, generator=generator).square()
    view = torch.eye(4)
    view[:3, 3] = torch.tensor([0.02, -0.01, 0.03])
    K = torch.tensor([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])
    return Cloud(
        gaussians={
            "means": torch.cat([pixel * torch.tensor([width, height]) / focal * depth[:, None], depth[:, None]], dim=1),
            "quats": torch.randn(gaussians, 4, generator=generator),
            "scales": spread * (width / 256) * depth[:, None] / focal,
            "opacities": 0.1 + 0.8 * torch.rand(gaussians, generator=generator),
            "colors": 0.3 * torch.randn(gaussians, (_SH_DEGREE + 1) ** 2, 3, generator=generator),
        },
        viewmats=view[None],
        Ks=K[None],
        size=size,
    )


def run_rasterizer_benchmark(
    *,
    gaussians: int = 20_000,
    size: tuple[int, int] = (256, 192),
    repeats: int = 20,
    plain: bool = True,
    compilation: bool = True,
    seed: int = 0,
    json_path: Path | None = None,
) -> dict[str, object]:
    """Times forward and backward passes on the CPU, in as many threads as torch has.

    Args:
        gaussians: Their number.
        size: (width, height) of the picture.
        repeats: Timed passes of ours after the first; the plain one gets three after one that warms up.
        plain: Whether to run the plain one too.
        compilation: Whether to time a first pass that finds nothing compiled, in a process of its own.
        seed: Of the scene.
        json_path: Where the record goes too.

    Returns:
        The record: `median_ms` of a pass, `forward_ms` and `backward_ms` of it, `first_call_s` (the first pass of this
        process, which compiles the kernels or loads them from disk), `compile_s` (the same where nothing is on disk),
        `naive_median_ms`, `ratio`, and the largest differences between both programs' pictures and gradients, relative
        to the largest value: where alpha is 1 / 255 up to rounding, one program counts it and the other does not.

    Raises:
        SettingsError: There is nothing to draw.
    """
    if gaussians < 1 or min(size) < 1 or repeats < 1:
        raise SettingsError(
            f"{gaussians} Gaussians, {size[0]} x {size[1]} pixels, {repeats} repeats", way_out="Use at least 1 of each"
        )
    from lora3d_ns.splat import rasterize_cpu

    rasterization: Callable[..., Any] = rasterize_cpu.rasterization
    cloud = make_cloud(gaussians, size, seed=seed)
    start = time.perf_counter()
    outcome, _ = _one_pass(rasterization, cloud)
    first_call_s = time.perf_counter() - start
    times = [_one_pass(rasterization, cloud)[1] for _ in range(repeats)]
    _, _, info = rasterization(
        **cloud.gaussians, viewmats=cloud.viewmats, Ks=cloud.Ks, width=size[0], height=size[1], sh_degree=_SH_DEGREE
    )
    radii = info["radii"][info["radii"] > 0]
    median_ms = statistics.median(forward + backward for forward, backward in times)
    record = machine_record(command="benchmark rasterizer", device=torch.device("cpu"), seed=seed) | {
        "gaussians": gaussians,
        "size": list(size),
        "repeats": repeats,
        "visible": len(radii),
        "median_radius_px": float(radii.float().median()) if len(radii) else 0.0,
        "tile_entries": len(info["flatten_ids"]),
        "median_ms": median_ms,
        "forward_ms": statistics.median(forward for forward, _ in times),
        "backward_ms": statistics.median(backward for _, backward in times),
        "fastest_ms": min(forward + backward for forward, backward in times),
        "first_call_s": first_call_s,
    }
    if compilation:
        record["compile_s"] = _seconds_of_the_very_first_pass()
    if plain:
        plain_outcome, _ = _one_pass(plain_rasterization, cloud)
        plain_times = [sum(_one_pass(plain_rasterization, cloud)[1]) for _ in range(_PLAIN_REPEATS)]
        naive_median_ms = statistics.median(plain_times)
        record |= {"naive_median_ms": naive_median_ms, "ratio": naive_median_ms / median_ms}
        for name, expected in plain_outcome.items():
            difference = (outcome[name] - expected).abs().max() / expected.abs().max()
            record[f"difference_{name}"] = float(difference)
    write_record(record, json_path)
    return record


def _one_pass(program: Callable[..., Any], cloud: Cloud) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Picture and gradients of one pass, and its milliseconds forward and backward."""
    leaves = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in (cloud.gaussians | {"viewmats": cloud.viewmats}).items()
    }
    width, height = cloud.size
    start = time.perf_counter()
    image, alpha, _ = program(
        **leaves, Ks=cloud.Ks, width=width, height=height, sh_degree=_SH_DEGREE, packed=False, render_mode="RGB+ED"
    )
    middle = time.perf_counter()
    # Not the same at every pixel; where little is seen, the depth says nothing.
    weight = torch.linspace(-1.0, 1.0, image.numel()).reshape(image.shape) * (alpha.detach() > 0.1)
    between = time.perf_counter()
    torch.autograd.backward(image, weight)
    end = time.perf_counter()
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"picture": (image * (alpha > 0.1)).detach(), **found}, (1e3 * (middle - start), 1e3 * (end - between))


def _seconds_of_the_very_first_pass() -> float:
    """Of a small scene, numba's import included, with an empty cache."""
    program = """
import time
from lora3d_ns.benchmark_rasterizer import _one_pass, make_cloud
from lora3d_ns.splat.rasterize_cpu import rasterization
cloud = make_cloud(100, (64, 48))
start = time.perf_counter()
_one_pass(rasterization, cloud)
sys.stdout.write(str(time.perf_counter() - start))
"""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", f"import sys\n{program}"],
            env=os.environ | {"NUMBA_CACHE_DIR": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return float(result.stdout)


# --- the plain one --------------------------------------------------------------------------------


def plain_rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    sh_degree: int = _SH_DEGREE,
    packed: bool = False,
    render_mode: str = "RGB+ED",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The benchmark's case of `rasterization` in plain torch: one camera, colours by direction, expected depth.

    Returns:
        Picture (1, height, width, 4), opacity (1, height, width, 1) and an empty dictionary.
    """
    del packed, render_mode
    rotation, translation, K = viewmats[0, :3, :3], viewmats[0, :3, 3], Ks[0]
    camera = means @ rotation.T + translation
    kept = camera[:, 2].detach() > 0.01
    x, y, z = camera[kept].unbind(dim=1)
    shape = _rotations(quats[kept]) * scales[kept][:, None, :]
    u = (x / z).clamp(-(K[0, 2] + 0.15 * width) / K[0, 0], (1.15 * width - K[0, 2]) / K[0, 0])
    v = (y / z).clamp(-(K[1, 2] + 0.15 * height) / K[1, 1], (1.15 * height - K[1, 2]) / K[1, 1])
    zero = torch.zeros_like(z)
    rows = torch.stack([K[0, 0] / z, zero, -K[0, 0] * u / z, zero, K[1, 1] / z, -K[1, 1] * v / z], dim=1)
    axes = rows.reshape(-1, 2, 3) @ rotation @ shape
    covariance = axes @ axes.mT + 0.3 * torch.eye(2)
    conic = torch.linalg.inv(covariance)
    centre = torch.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], dim=1)
    direction = torch.nn.functional.normalize(means[kept] - torch.inverse(viewmats)[0, :3, 3], dim=1)
    basis = _harmonics(direction)[:, : (sh_degree + 1) ** 2]
    color = torch.einsum("nk,nkd->nd", basis, colors[kept][:, : basis.shape[1]])
    feature = torch.cat([(color + 0.5).clamp(min=0.0), z[:, None]], dim=1)
    opacity = opacities[kept]

    with torch.no_grad():
        middle = 0.5 * (covariance[:, 0, 0] + covariance[:, 1, 1])
        spread = (middle.square() - torch.linalg.det(covariance)).clamp(min=0.01).sqrt()
        radius = (3.0 * (middle + spread).sqrt()).ceil()[:, None]
        first, last = ((centre - radius) / _TILE).floor(), ((centre + radius) / _TILE).ceil()
        near_first = torch.argsort(z, stable=True)
    pictures, opaque = [], []
    for row in range(math.ceil(height / _TILE)):
        strips, opaque_strips = [], []
        for column in range(math.ceil(width / _TILE)):
            tile = torch.tensor([column, row])
            chosen = near_first[((first <= tile) & (tile < last)).all(dim=1)[near_first]]
            vs = torch.arange(row * _TILE, min(height, (row + 1) * _TILE)) + 0.5
            us = torch.arange(column * _TILE, min(width, (column + 1) * _TILE)) + 0.5
            pixels = torch.stack(torch.meshgrid(us, vs, indexing="xy"), dim=-1).reshape(-1, 2)
            picture, alpha = _plain_tile(pixels, centre[chosen], conic[chosen], opacity[chosen], feature[chosen])
            strips.append(picture.reshape(len(vs), len(us), -1))
            opaque_strips.append(alpha.reshape(len(vs), len(us), 1))
        pictures.append(torch.cat(strips, dim=1))
        opaque.append(torch.cat(opaque_strips, dim=1))
    image, alpha = torch.cat(pictures)[None], torch.cat(opaque)[None]
    return torch.cat([image[..., :3], image[..., 3:] / alpha.clamp(min=1e-10)], dim=-1), alpha, {}


def _plain_tile(
    pixels: Tensor, centre: Tensor, conic: Tensor, opacity: Tensor, feature: Tensor
) -> tuple[Tensor, Tensor]:
    dx, dy = (centre[None] - pixels[:, None]).unbind(dim=-1)
    sigma = 0.5 * (conic[:, 0, 0] * dx * dx + conic[:, 1, 1] * dy * dy) + conic[:, 0, 1] * dx * dy
    alpha = (opacity * torch.exp(-sigma)).clamp(max=0.999)
    alpha = torch.where((sigma >= 0) & (alpha >= 1 / 255), alpha, 0.0)
    passed = torch.cumprod(1.0 - alpha, dim=1)
    before = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], dim=1)
    weight = torch.where(passed > 1e-4, alpha * before, 0.0)
    return weight @ feature, weight.sum(dim=1)


def _rotations(quats: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(dim=1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


def _harmonics(direction: Tensor) -> Tensor:
    x, y, z = direction.unbind(dim=1)
    c1, c2, c3, c4, c5 = 0.48860251, 1.09254843, 0.59004359, 1.44530572, 0.45704580
    basis = [torch.full_like(x, 0.28209479), -c1 * y, c1 * z, -c1 * x]
    basis += [c2 * x * y, -c2 * y * z, 0.31539157 * (3 * z * z - 1), -c2 * x * z, 0.5 * c2 * (x * x - y * y)]
    basis += [-c3 * y * (3 * x * x - y * y), 2 * c4 * x * y * z, c5 * y * (1 - 5 * z * z)]
    basis += [0.37317633 * z * (5 * z * z - 3), c5 * x * (1 - 5 * z * z), c4 * z * (x * x - y * y)]
    return torch.stack([*basis, -c3 * x * (x * x - 3 * y * y)], dim=1)
