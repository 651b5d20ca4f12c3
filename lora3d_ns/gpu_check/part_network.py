"""The network on the GPU against itself on the CPU: float32 must be the same, and how far the shorter types are off."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lora3d_ns.benchmark_inference import random_views
from lora3d_ns.gpu_check.common import TINY_DPT_NETWORK, independent
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import symmetric_graph
from lora3d_ns.predict import Precision, PredictionSettings, predict_pairs
from lora3d_ns.rooms.generator import demo_room, write_scene
from lora3d_ns.types import PairPredictions, Views

FLOAT32_GOAL = Goal(limit=1e-4)
"""Float32 keeps seven digits; sums in another order may cost two or three of them, and TF32 would cost four."""

_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
_PAIRS = ((0, 1), (0, 2))


def run(settings: PartSettings) -> Iterator[Row]:
    """The official configuration with random weights, then the bundled network; each in three precisions."""
    yield from independent("full-size network", lambda: _full_size(settings))
    yield from independent("bundled network", lambda: _bundled(settings))
    yield from independent("TF32", _tf32_left_off)


def largest_difference(found: PairPredictions, wanted: PairPredictions) -> float:
    """Over all pairs and outputs, the largest absolute difference over the output's largest magnitude."""
    return max(_differences(found, wanted, "largest"))


def mean_difference(found: PairPredictions, wanted: PairPredictions) -> float:
    """Over all pairs and outputs, the largest of their mean absolute differences over the mean magnitude."""
    return max(_differences(found, wanted, "mean"))


def _differences(found: PairPredictions, wanted: PairPredictions, kind: str) -> Iterator[float]:
    for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
        for field in dataclasses.fields(ours):
            magnitude = getattr(theirs, field.name)
            difference = (getattr(ours, field.name) - magnitude).abs()
            if kind == "largest":
                yield float(difference.max() / magnitude.abs().max())
            else:
                yield float(difference.mean() / magnitude.abs().mean())


def _full_size(settings: PartSettings) -> Iterator[Row]:
    torch.manual_seed(settings.seed)
    network = Dust3r(TINY_DPT_NETWORK if settings.tiny else Dust3rConfig()).eval()
    width, height = (64, 48) if settings.tiny else (512, 384)
    landscape = random_views(2, height, width, seed=settings.seed)
    portrait = random_views(3, width, height, seed=settings.seed + 1)
    # Two of one shape and one of the other, each with a name of its own.
    views = _joined(landscape, portrait.select([2]))
    label = "small network" if settings.tiny else "full-size network, random weights"
    yield from _compared(label, network, views, settings)


def _bundled(settings: PartSettings) -> Iterator[Row]:
    """Photos of the demo's room, the second with the camera turned."""
    folder, network = settings.folder / "room", load_network("rooms")
    write_scene(folder, demo_room(photo_count=3, size=(128, 96) if settings.tiny else (512, 384)))
    views = load_views(folder, PhotoSettings(size=network.config.image_size, patch_size=network.patch_size))
    yield from _compared("bundled network", network, views, settings)


def _joined(first: Views, second: Views) -> Views:
    return Views(
        **{
            field.name: (*getattr(first, field.name), *getattr(second, field.name))
            for field in dataclasses.fields(Views)
        }
    )


def _compared(label: str, network: Dust3r, views: Views, settings: PartSettings) -> Iterator[Row]:
    """Both orders of a pair of one shape and of a pair of two shapes; the network is left on the device."""
    graph = symmetric_graph(len(views), _PAIRS)

    def predicted(precision: Precision) -> PairPredictions:
        return predict_pairs(views, graph, network, PredictionSettings(precision=precision, show_progress=False))

    wanted = predicted("float32")
    network.to(settings.device)

    def row(precision: Precision, name: str, goal: Goal | None, note: str = "") -> Iterator[Row]:
        found = predicted(precision)
        yield Row(
            name=name,
            value=largest_difference(found, wanted),
            unit="of the largest",
            goal=goal,
            note=f"on average {mean_difference(found, wanted):.2g} of the mean{note}",
        )

    for precision in _PRECISIONS:
        name, goal = f"{label}, {precision}", FLOAT32_GOAL if precision == "float32" else None
        note = f"; TF32 in convolutions: {_convolutions_may_use_tf32()}" if precision == "float32" else ""
        yield from independent(name, lambda p=precision, n=name, g=goal, t=note: row(p, n, g, t))
    if network.device.type == "cuda" and _convolutions_may_use_tf32():
        # Tells rounding in cuDNN from a defect of ours.
        name = f"{label}, float32, convolutions without TF32"
        with _convolutions_without_tf32():
            yield from independent(name, lambda: row("float32", name, None))


def _convolutions_may_use_tf32() -> bool:
    return bool(torch.backends.cudnn.allow_tf32)


@contextmanager
def _convolutions_without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _tf32_left_off() -> Iterator[Row]:
    """After all of the above has run."""
    yield Row(
        name="float32 matrix products use TF32",
        value=float(torch.backends.cuda.matmul.allow_tf32),
        goal=Goal(limit=0.0),
        note="1 if something has switched it on for the whole process",
    )
