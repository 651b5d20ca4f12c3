"""Every pair of a graph through a two-view network: each photo encoded once, pairs decoded in batches.

Results are streamed to host memory, so that the N^2 point maps of a complete graph never sit on the accelerator.
"""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import psutil
import torch
from jaxtyping import Float32
from torch import Tensor

from lora3d_ns.errors import InsufficientMemoryError, InvalidDataError, NonFinitePredictionError, SettingsError
from lora3d_ns.network.base import Encoding, PairNetwork, PairOutput
from lora3d_ns.progress import progress_bar
from lora3d_ns.types import PairGraph, PairPrediction, PairPredictions, Views

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLOAT16_MAX = torch.finfo(torch.float16).max
_CPU_BATCH_PIXELS = 512 * 384
"""Pixels of one image over the batch from which on two CPU cores gain nothing more (measured: benchmark inference)."""
_CUDA_BATCH_PIXELS = 32 * 512 * 384
_WORKING_BYTES_PER_PIXEL = 4096
"""Working memory of a decoded pair per pixel of one image: the DPT head's last stages, float32, both roles."""


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """How the network is run.

    Attributes:
        precision: Of matrix products and convolutions. `auto` is bfloat16 on GPUs that have it, else float32. The last
            regression, points and confidences are float32 always.
        batch_size: Pairs decoded at once; None chooses by shape and free memory. Halved when memory runs out.
        storage: Of the results in host memory. float16 halves it; pairs that float16 cannot hold stay float32.
        show_progress: Whether to draw a bar.
    """

    precision: Precision = "auto"
    batch_size: int | None = None
    storage: Literal["float32", "float16"] = "float32"
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingsError(f"batch_size must be at least 1, not {self.batch_size}", way_out="Leave it out")


def predict_pairs(
    views: Views,
    graph: PairGraph,
    network: PairNetwork,
    settings: PredictionSettings | None = None,
    *,
    encodings: Sequence[Encoding] | None = None,
) -> PairPredictions:
    """Point maps and log-confidences of every edge, in the edges' order.

    The same views, graph, network, settings and machine give the same bits.

    Args:
        views: Photos at network resolution.
        graph: Ordered pairs of them.
        network: Any two-view network; its weights decide the device.
        settings: How to run it.
        encodings: What `encode_views` gave for these views, when it was needed before (retrieval graph).

    Raises:
        InvalidDataError: The graph or the encodings belong to other views.
        InsufficientMemoryError: The results would not fit into host memory, or one pair does not fit the device.
        NonFinitePredictionError: The network returned NaN or infinity.
    """
    settings = settings or PredictionSettings()
    if graph.view_count != len(views):
        raise InvalidDataError(
            f"a graph of {graph.view_count} views for {len(views)} photos", way_out="Build the graph from these views"
        )
    _check_host_memory(views, graph, settings)
    if encodings is None:
        encodings = encode_views(views, network, settings)
    if len(encodings) != len(views):
        raise InvalidDataError(
            f"{len(encodings)} encodings for {len(views)} photos", way_out="Encode these views with `encode_views`"
        )

    def decode(edges: Sequence[tuple[int, int]]) -> list[PairPrediction]:
        with autocast_of(network, settings.precision):
            output = network.decode(
                _stack([encodings[i] for i, _ in edges], network.device),
                _stack([encodings[j] for _, j in edges], network.device),
            )
        return list(_to_host(output, edges, views.names, settings.storage))

    groups: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[int, int]]] = defaultdict(list)
    for i, j in graph.edges:
        groups[views.shapes[i], views.shapes[j]].append((i, j))

    results: dict[tuple[int, int], PairPrediction] = {}
    with progress_bar("Predicting pairs", len(graph), shown=settings.show_progress) as advance:
        for shapes, edges in groups.items():
            pixels = max(height * width for height, width in shapes)
            for batch, predictions in _batched(decode, edges, _batch_size(settings, network, pixels), "a pair"):
                results.update(zip(batch, predictions, strict=True))
                advance(len(batch))
    return PairPredictions(graph=graph, pairs=tuple(results[edge] for edge in graph.edges))


def encode_views(
    views: Views, network: PairNetwork, settings: PredictionSettings | None = None
) -> tuple[Encoding, ...]:
    """One encoding (a batch of one) per photo, photos of one shape encoded together.

    They stay on the network's device while they take less than half of its free memory, else in host memory.

    Raises:
        InsufficientMemoryError: One photo does not fit the device.
    """
    settings = settings or PredictionSettings()
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for view, shape in enumerate(views.shapes):
        groups[shape].append(view)

    def encode(indices: Sequence[int]) -> list[Encoding]:
        images = torch.stack([views.images[view] for view in indices]).to(network.device)
        with autocast_of(network, settings.precision):
            encoding = network.encode(images)
        return [encoding.select(slice(row, row + 1)) for row in range(len(indices))]

    encodings: dict[int, Encoding] = {}
    with progress_bar("Encoding photos", len(views), shown=settings.show_progress) as advance:
        for (height, width), indices in groups.items():
            for batch, encoded in _batched(encode, indices, _batch_size(settings, network, height * width), "a photo"):
                if network.device.type == "cuda":
                    needed = encoded[0].nbytes * len(views)
                    if needed > 0.5 * torch.cuda.mem_get_info(network.device)[0]:
                        encoded = [encoding.to(torch.device("cpu")) for encoding in encoded]
                encodings.update(zip(batch, encoded, strict=True))
                advance(len(batch))
    return tuple(encodings[view] for view in range(len(views)))


@contextlib.contextmanager
def autocast_of(network: PairNetwork, precision: Precision) -> Iterator[None]:
    """Mixed precision for a network where it is; `auto` is bfloat16 on a GPU that has it, and none elsewhere.

    GPUs before Ampere only emulate bfloat16, slower than float32. Later ones round the convolutions of `float32` to
    TF32 unless they are told not to; who asks for float32 wants the CPU's numbers.
    """
    on_cuda = network.device.type == "cuda"
    if precision == "auto":
        precision = "bfloat16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    rounded = torch.backends.cudnn.allow_tf32
    try:
        if on_cuda and precision == "float32":
            torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(network.device.type, dtype=_DTYPES[precision], enabled=precision != "float32"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = rounded


def image_features(encodings: Sequence[Encoding]) -> Float32[Tensor, "views channels"]:
    """One feature per photo, for the retrieval graph: the mean of its encoder tokens, in host memory."""
    return torch.cat([encoding.tokens.float().mean(dim=1).cpu() for encoding in encodings])


def unless_out_of_memory(run: Callable[[Sequence[_Item]], _Result], batch: Sequence[_Item]) -> _Result | None:
    """What it returns, or None where memory does not suffice."""
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        # PyTorch's CPU allocator has no exception type of its own.
        if "not enough memory" not in str(error):
            raise
        return None


def _stack(encodings: Sequence[Encoding], device: torch.device) -> Encoding:
    return Encoding(
        tokens=torch.cat([encoding.tokens.to(device) for encoding in encodings]),
        height=encodings[0].height,
        width=encodings[0].width,
        extras=tuple(
            torch.cat([extra.to(device) for extra in extras])
            for extras in zip(*(encoding.extras for encoding in encodings), strict=True)
        ),
    )


def _to_host(
    output: PairOutput, edges: Sequence[tuple[int, int]], names: Sequence[str], storage: str
) -> Iterator[PairPrediction]:
    fields = {
        "points_first": output.points_first,
        "points_second": output.points_second,
        "confidence_first": output.confidence_first,
        "confidence_second": output.confidence_second,
    }
    # One reduction per tensor and batch; the largest magnitude is NaN or infinite when any value is.
    largest = (
        torch.stack([values.float().abs().flatten(1).amax(dim=1) for values in fields.values()]).amax(dim=0).tolist()
    )
    for row, ((i, j), magnitude) in enumerate(zip(edges, largest, strict=True)):
        if not magnitude < float("inf"):
            raise NonFinitePredictionError(
                f"the network's answer for the photos {names[i]} and {names[j]} is not finite",
                way_out="Predict with precision float32; if it stays, the weights are damaged",
            )
        fits = storage == "float16" and magnitude <= _FLOAT16_MAX
        dtype = torch.float16 if fits else torch.float32
        yield PairPrediction(**{name: values[row].to("cpu", dtype, copy=True) for name, values in fields.items()})


def _batched(
    run: Callable[[Sequence[_Item]], list[_Result]], items: Sequence[_Item], batch_size: int, what: str
) -> Iterator[tuple[Sequence[_Item], list[_Result]]]:
    """Batches with their results; when memory runs out, the batch is halved and tried again."""
    start = 0
    while start < len(items):
        batch = items[start : start + batch_size]
        with torch.no_grad():
            results = unless_out_of_memory(run, batch)
        if results is None:
            if len(batch) == 1:
                raise InsufficientMemoryError(
                    f"{what} does not fit into memory",
                    way_out="Use a smaller photo size (224 instead of 512), or free memory held by other programs",
                )
            batch_size = (len(batch) + 1) // 2
            logger.warning("out of memory: going on with batches of %d", batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield batch, results
        start += len(batch)


def _batch_size(settings: PredictionSettings, network: PairNetwork, pixels: int) -> int:
    if settings.batch_size is not None:
        return settings.batch_size
    if network.device.type == "cuda":
        free_bytes, most_pixels = torch.cuda.mem_get_info(network.device)[0], _CUDA_BATCH_PIXELS
    else:
        free_bytes, most_pixels = psutil.virtual_memory().available, _CPU_BATCH_PIXELS
    affordable = int(0.5 * free_bytes / (_WORKING_BYTES_PER_PIXEL * pixels))
    return max(1, min(most_pixels // pixels, affordable))


def _check_host_memory(views: Views, graph: PairGraph, settings: PredictionSettings) -> None:
    bytes_per_pixel = 4 * (2 if settings.storage == "float16" else 4)
    pixels = sum(views.images[view][0].numel() for edge in graph.edges for view in edge)
    needed, free = bytes_per_pixel * pixels, psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InsufficientMemoryError(
            f"{len(graph)} pairs of photos need {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free",
            way_out="Use storage float16, a sparser pair graph (window, retrieval), or fewer or smaller photos",
        )
