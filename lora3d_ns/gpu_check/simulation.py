"""Simulated rooms with many pairs, made in all cores; and a network that works in earnest and says what it is told."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.adapter.adapter import carries_adapter
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.base import Encoding, PairOutput
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.noisy_map import NoiseSettings
from lora3d_ns.rooms.simulated import noisy_predictions
from lora3d_ns.types import PairGraph, PairPrediction, PairPredictions, Views

_PRINT_VALUES = 64


def simulated_predictions(photos: RoomPhotos, graph: PairGraph, noise: NoiseSettings, *, seed: int) -> PairPredictions:
    """`noisy_predictions` of each edge by itself, in as many threads as torch has; none of them is wholly wrong.

    Args:
        photos: Photos with their truth.
        graph: Which pairs.
        noise: What is wrong with them; its `wrong_edges` are left out, which depend on the whole graph.
        seed: As in `noisy_predictions`; the number of threads does not matter.
    """
    right = dataclasses.replace(noise, wrong_edges=0)

    def one(edge: tuple[int, int]) -> PairPrediction:
        alone = PairGraph(view_count=graph.view_count, edges=(edge,))
        return noisy_predictions(photos, alone, right, seed=seed)[0].pairs[0]

    with _one_thread_each() as workers, ThreadPoolExecutor(workers) as pool:
        return PairPredictions(graph=graph, pairs=tuple(pool.map(one, graph.edges)))


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Within, new threads compute in themselves alone; yields how many there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class ToldAnswers:
    """What a `TellingDust3r` says instead of its own answers; shared by all copies of the network, never copied.

    Args:
        views: The photos, no two of them alike.
        plain: What the network says of them.
        adapted: What it says with an adapter.
        device: Where the network is.

    Attributes:
        answered: How many pairs were answered so.
    """

    def __init__(self, views: Views, plain: PairPredictions, adapted: PairPredictions, device: torch.device) -> None:
        self._plain, self._adapted = (_on_device(predictions, device) for predictions in (plain, adapted))
        # Photos of two shapes have prints of one length.
        self._prints = torch.stack([print_of(image[None])[0] for image in views.images]).to(device)
        if len(torch.unique(self._prints.cpu(), dim=0)) < len(views):
            raise InvalidDataError("two photos look alike", way_out="Give photos that differ")
        self.answered = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "ToldAnswers":
        return self

    def answer(self, prints_first: Tensor, prints_second: Tensor, *, adapted: bool) -> PairOutput:
        """What there is to say of some pairs of photos, known by their prints."""
        told = self._adapted if adapted else self._plain
        pairs = [told[edge] for edge in zip(self._views(prints_first), self._views(prints_second), strict=True)]
        self.answered += len(pairs)
        return PairOutput(**{name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]})

    def _views(self, prints: Tensor) -> Sequence[int]:
        return (prints[:, None] - self._prints).abs().sum(dim=-1).argmin(dim=1).tolist()


def print_of(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch values"]:
    """A few pixels of each image, by which it is known again."""
    flat = images.flatten(1)
    at = torch.linspace(0, flat.shape[1] - 1, _PRINT_VALUES, dtype=torch.float64).round().long().to(flat.device)
    return flat[:, at].float()


def _on_device(predictions: PairPredictions, device: torch.device) -> Mapping[tuple[int, int], Mapping[str, Tensor]]:
    return {
        edge: {field.name: getattr(pair, field.name).to(device) for field in dataclasses.fields(pair)}
        for edge, pair in predictions
    }


class TellingDust3r(Dust3r):
    """Does all the work of a `Dust3r`; where no gradient is asked for, it then says what it was told.

    With random weights the network's own answers are no scene, so what follows them would not be what it is in earnest.

    Attributes:
        told: The answers; None says its own.
    """

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__(config)
        self.told: ToldAnswers | None = None

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Encoding:
        """As `Dust3r.encode`, with the images' prints."""
        encoding = super().encode(images)
        return dataclasses.replace(encoding, extras=(*encoding.extras, print_of(images)))

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        """As `Dust3r.decode`; what it is told where no gradient is asked for."""
        own = super().decode(first, second)
        if torch.is_grad_enabled() or self.told is None:
            return own
        return self.told.answer(first.extras[-1], second.extras[-1], adapted=carries_adapter(self))
