"""Our CPU rasterizer against gsplat's CUDA code: the same pictures, the same gradients, and how long each takes."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.benchmark_rasterizer import Cloud, make_cloud, run_rasterizer_benchmark
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.gpu_check.common import independent, number
from lora3d_ns.gpu_check.part_build import VALUES_GOAL, gsplat_first
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row

GRADIENTS_GOAL = Goal(limit=1e-3)
"""The issue's goals are 1e-4 for values and 1e-3 for gradients, relative to the largest."""
COUNTED_SHARE = 0.999
"""Of the numbers, those that the goals are held against. Where alpha is 1 / 255 up to rounding one program counts a
Gaussian and the other does not, and that happens at few pixels of every picture."""
WORST_GOAL = Goal(limit=2e-2)
"""For the others: a Gaussian more or less at the threshold is 1 / 255 of the light, and some pixels have several."""
RADII_GOAL = Goal(limit=1e-3)
"""Share of the radii that may differ: where three standard deviations are a whole number one program rounds up."""

VALUES = ("colour", "depth", "alpha")
MODES = ("RGB", "RGB+ED", "D")
RASTERIZE_MODES = ("classic", "antialiased")
DEGREES = (None, 0, 1, 2, 3)
"""None is plain colours."""

_SEEN = 0.3
"""Opacity from which the mean depth of a pixel means something: below, a Gaussian at the threshold is most of it."""
_GAUSSIANS, _SIZE = 20_000, (256, 192)
_TINY_GAUSSIANS, _TINY_SIZE = 600, (64, 48)
_WARM_UP, _REPEATS = 5, 50

Program = Callable[[Cloud, dict[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two programs' arrays are apart, relative to the largest number.

    Attributes:
        name: Of the array.
        counted: What `COUNTED_SHARE` of the numbers stay within.
        worst: Of all of them.
        beyond: Share of them beyond the goal.
    """

    name: str
    counted: float
    worst: float
    beyond: float


def run(settings: PartSettings) -> Iterator[Row]:
    """Values, gradients, radii, speed. Without CUDA ours in float64 takes gsplat's place."""
    gaussians, size = (_TINY_GAUSSIANS, _TINY_SIZE) if settings.tiny else (_GAUSSIANS, _SIZE)
    cloud = with_sloping_colours(make_cloud(gaussians, size, seed=settings.seed))
    on_cuda = settings.device == "cuda"
    if on_cuda and not (yield from gsplat_first(settings, say_where=True)):
        return
    other = _gsplats if on_cuda else _ours_in_float64
    note = "" if on_cuda else "ours in float64 instead of gsplat"
    yield from independent("comparison", lambda: compared(cloud, other, note=note))
    yield from independent("speed", lambda: _speed(settings, cloud, on_cuda=on_cuda))


def with_sloping_colours(cloud: Cloud) -> Cloud:
    """The same Gaussians, whose colours follow their place in the picture beside what they had: a camera's gradient
    then is no sum of noise, which rounding would change by thousandths (measured: 8e-4 of ours, float32 to float64)."""
    means, colors = cloud.gaussians["means"], cloud.gaussians["colors"].clone()
    slopes = means[:, :2] / means[:, 2:]
    colors[:, 1:] *= 0.3
    colors[:, 0] += 2.0 * torch.stack([slopes[:, 0], slopes[:, 1], -slopes[:, 0]], dim=1)
    return dataclasses.replace(cloud, gaussians=cloud.gaussians | {"colors": colors})


def compared(
    cloud: Cloud,
    other: Program,
    *,
    modes: Sequence[str] = MODES,
    rasterize_modes: Sequence[str] = RASTERIZE_MODES,
    degrees: Sequence[int | None] = DEGREES,
    note: str = "",
) -> Iterator[Row]:
    """Rows of every kind of picture: our program on the CPU against another.

    Args:
        cloud: What is drawn.
        other: Draws it and returns arrays in host memory, see `outcome`.
        modes: What is drawn, as gsplat calls it.
        rasterize_modes: How.
        degrees: Of the spherical harmonics; pictures of depth alone have no colours, so the first will do.
        note: For each row.
    """
    radii = 0.0
    worst: dict[str, Difference] = {}
    for rasterize_mode in rasterize_modes:
        for mode in modes:
            differences: list[Difference] = []
            for degree in degrees[:1] if mode == "D" else degrees:
                given = {"render_mode": mode, "rasterize_mode": rasterize_mode, "sh_degree": degree}
                ours, theirs = _ours(cloud, given), other(cloud, given)
                # Both look at the same pixels.
                seen = ours["alpha"] > _SEEN
                for arrays in (ours, theirs):
                    arrays |= {kind: arrays[kind] * seen for kind in ("colour", "depth") if kind in arrays}
                different = (ours.pop("radii") != theirs.pop("radii")).double().mean()
                radii = max(radii, float(different))
                word = "" if degree is None else f" of degree {degree}"
                differences += [_named(found, f"{found.name}{word}") for found in differences_of(ours, theirs)]
            for kind, goal in (("values", VALUES_GOAL), ("gradients", GRADIENTS_GOAL)):
                own = [found for found in differences if (found.name.split()[0] in VALUES) == (kind == "values")]
                yield row_of(f"{mode}, {rasterize_mode}: {kind}", own, goal, note=note)
                worst[kind] = _largest([*own, *([worst[kind]] if kind in worst else [])], "worst")
    for kind, found in worst.items():
        yield Row(name=f"worst of all {kind}", value=found.worst, goal=WORST_GOAL, note=_joined(found.name, note))
    yield Row(name="radii that differ, share", value=radii, goal=RADII_GOAL, note=note)


def differences_of(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[Difference]:
    """Differences of all arrays, each relative to the other program's largest number.

    Raises:
        InvalidDataError: They are not the same arrays, or have other shapes.
    """
    shapes, other_shapes = ({name: tuple(array.shape) for name, array in one.items()} for one in (ours, theirs))
    if shapes != other_shapes:
        raise InvalidDataError(
            f"the programs return other arrays: {shapes} and {other_shapes}", way_out="Compare the same pictures"
        )
    found = []
    for name, array in theirs.items():
        goal = VALUES_GOAL if name in VALUES else GRADIENTS_GOAL
        reference = array.double()
        unit = reference.abs().max().clamp(min=1e-12)
        relative = ((ours[name].double() - reference).abs() / unit).flatten()
        # What is no number is beyond every goal.
        relative = torch.where(relative.isnan(), math.inf, relative)
        place = max(1, math.ceil(COUNTED_SHARE * len(relative)))
        counted = float(relative.kthvalue(place).values)
        beyond = float((relative > goal.limit).double().mean())
        found.append(Difference(name=name, counted=counted, worst=float(relative.max()), beyond=beyond))
    return found


def row_of(name: str, differences: Sequence[Difference], goal: Goal, *, note: str = "") -> Row:
    """The row of several arrays: the one that is farthest apart."""
    first, worst = _largest(differences, "counted"), _largest(differences, "worst")
    words = f"{first.name}, {COUNTED_SHARE:.1%} of the numbers; {max(found.beyond for found in differences):.2g} of "
    words += f"them beyond the goal; worst {worst.worst:.2g} ({worst.name})"
    return Row(name=name, value=first.counted, goal=goal, note=_joined(words, note))


def outcome(
    program: Callable[..., Any], cloud: Cloud, given: Mapping[str, Any], device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Colour, depth, opacity, radii and all gradients of a program, in host memory.

    Args:
        program: With the arguments of gsplat's `rasterization`.
        cloud: What is drawn.
        given: Further arguments; without a degree the harmonics' first coefficients are the colours.
        device, dtype: Of the tensors that it gets.
    """
    start = cloud.gaussians | {"viewmats": cloud.viewmats}
    if given["sh_degree"] is None:
        start = start | {"colors": 0.5 + start["colors"][:, 0]}
    leaves = {name: tensor.detach().to(device, dtype, copy=True).requires_grad_() for name, tensor in start.items()}
    width, height = cloud.size
    image, alpha, info = program(
        **leaves, Ks=cloud.Ks.to(device, dtype), width=width, height=height, packed=False, absgrad=True, **given
    )
    info["means2d"].retain_grad()
    weights = _weights(image.shape).to(device, dtype)
    # Where little is seen the mean depth is nearly 0 / 0.
    (image * weights * (alpha.detach() > _SEEN)).sum().backward()
    centres = info["means2d"]
    gradients = {name: (leaf, leaf.grad) for name, leaf in leaves.items()}
    gradients |= {"means2d": (centres, centres.grad), "absgrad": (centres, getattr(centres, "absgrad", None))}
    # Apart, since depths are larger numbers than colours.
    found = {"alpha": alpha, "radii": info["radii"]}
    found |= {} if given["render_mode"] == "D" else {"colour": image[..., :3]}
    found |= {} if given["render_mode"] == "RGB" else {"depth": image[..., -1:]}
    # Colours do not matter to a picture of depth, and some programs say so by having no gradient.
    found |= {name: torch.zeros_like(leaf) if grad is None else grad for name, (leaf, grad) in gradients.items()}
    return {name: array.detach().cpu() for name, array in found.items()}


def _weights(shape: Sequence[int]) -> Float[Tensor, "cameras height width channels"]:
    """What the loss makes of each number of a picture: slopes, of which a camera's gradient is a sum that does not
    vanish, and noise."""
    _, height, width, channels = shape
    y, x = torch.meshgrid(torch.linspace(-1.0, 1.0, height), torch.linspace(-1.0, 1.0, width), indexing="ij")
    slopes = torch.stack([(x, y, -x, x + y)[channel % 4] for channel in range(channels)], dim=-1)
    return slopes[None] + 0.3 * torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))


def _ours(cloud: Cloud, given: dict[str, Any]) -> dict[str, Tensor]:
    from lora3d_ns.splat.rasterize_cpu import rasterization

    return outcome(rasterization, cloud, given, "cpu", torch.float32)


def _ours_in_float64(cloud: Cloud, given: dict[str, Any]) -> dict[str, Tensor]:
    from lora3d_ns.splat.rasterize_cpu import rasterization

    return outcome(rasterization, cloud, given, "cpu", torch.float64)


def _gsplats(cloud: Cloud, given: dict[str, Any]) -> dict[str, Tensor]:
    from lora3d_ns.splat.rasterizer import choose_rasterizer

    return outcome(choose_rasterizer(torch.device("cuda")), cloud, given, "cuda", torch.float32)


def _speed(settings: PartSettings, cloud: Cloud, *, on_cuda: bool) -> Iterator[Row]:
    """Seconds of a pass, forward and backward, of the very benchmark of our program."""
    count = len(cloud.gaussians["means"])
    repeats = 2 if settings.tiny else 20
    record = run_rasterizer_benchmark(
        gaussians=count, size=cloud.size, repeats=repeats, plain=False, compilation=False, seed=settings.seed
    )
    ours_ms = number(record, "median_ms")
    name = f"{count:,} Gaussians, {cloud.size[0]}x{cloud.size[1]}, forward and backward"
    threads = f"ours on the CPU, {torch.get_num_threads()} threads"
    if not on_cuda:
        yield Row(name=name, value=ours_ms, unit="ms", note=f"{threads}; gsplat needs CUDA")
        return
    from lora3d_ns.splat.rasterizer import choose_rasterizer

    cuda_ms = median_pass_ms(choose_rasterizer(torch.device("cuda")), cloud, "cuda")
    yield Row(name=name, value=ours_ms, unit="ms", peer=cuda_ms, note=f"{threads}; peer: gsplat on CUDA")


def median_pass_ms(
    program: Callable[..., Any], cloud: Cloud, device: str, *, warm_up: int = _WARM_UP, repeats: int = _REPEATS
) -> float:
    """Milliseconds of a pass, forward and backward, as `run_rasterizer_benchmark` has it, when all work is done."""
    leaves = {
        name: tensor.detach().to(device, copy=True).requires_grad_()
        for name, tensor in (cloud.gaussians | {"viewmats": cloud.viewmats}).items()
    }
    K, (width, height) = cloud.Ks.to(device), cloud.size
    times = []
    for _ in range(warm_up + repeats):
        for leaf in leaves.values():
            leaf.grad = None
        _wait(device)
        begun = time.perf_counter()
        image, _, _ = program(
            **leaves, Ks=K, width=width, height=height, sh_degree=3, packed=False, render_mode="RGB+ED"
        )
        image.sum().backward()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times[warm_up:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _largest(differences: Sequence[Difference], by: str) -> Difference:
    return max(differences, key=lambda found: getattr(found, by))


def _named(found: Difference, name: str) -> Difference:
    return Difference(name=name, counted=found.counted, worst=found.worst, beyond=found.beyond)


def _joined(*words: str) -> str:
    return "; ".join(word for word in words if word)
