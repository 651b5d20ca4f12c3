"""`lora3d benchmark inference` and `lora3d benchmark memory`: pair prediction against the peer, and at its largest.

Random full-size weights: speed and memory do not depend on what a network has learned. The peer, mini-dust3r, gets
the same weights, the same images and the same pairs in the same process, so the run also shows that both compute the
same.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lora3d_ns.benchmark_record import PeakMemory, machine_record, write_record
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import MissingPackageError, SettingsError
from lora3d_ns.network.base import Encoding, PairNetwork, PairOutput
from lora3d_ns.network.checkpoint_architecture import meta_network, official_arguments
from lora3d_ns.network.checkpoints import official_state_dict
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import Precision, PredictionSettings, predict_pairs
from lora3d_ns.types import PairPredictions, Views

logger = logging.getLogger(__name__)


def random_views(count: int, height: int, width: int, *, seed: int) -> Views:
    """Views of smooth random images, for measuring only."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, height // 16, width // 16), generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    affine = PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0)
    return Views(
        names=tuple(f"{view:03d}" for view in range(count)),
        images=tuple(images),
        masks=(None,) * count,
        source_from_network=(affine,) * count,
        source_sizes=((width, height),) * count,
        source_paths=(None,) * count,
        focal_exif_px=(None,) * count,
        lens_groups=("random",) * count,
        known_K=(None,) * count,
        known_T_world_camera=(None,) * count,
    )


def run_inference_benchmark(
    *,
    photos: int,
    size: tuple[int, int],
    head: Literal["dpt", "linear"],
    precision: Precision,
    device: str,
    repeats: int,
    peer: bool,
    peer_batch_size: int,
    seed: int,
    json_path: Path | None,
    config: Dust3rConfig | None = None,
) -> dict[str, object]:
    """Times all ordered pairs of some photos with our network and with the peer's; the best of `repeats` counts.

    Args:
        size: (width, height) of the images.
        config: Another configuration instead of the official one with this head.

    Returns:
        The record that is also written as JSON: `ours_s`, `peer_s`, `ratio` (peer / ours), `peak_mib` (ours, beyond
        the weights), `peer_peak_mib`, `ours_tflop`, `ours_tflop_per_s`, `max_relative_difference`,
        `weights_mib`.

    Raises:
        SettingsError: Fewer than two photos or no run at all.
        MissingPackageError: The peer is wanted and not installed.
    """
    if photos < 2 or repeats < 1:
        raise SettingsError(
            f"{photos} photos and {repeats} repeats", way_out="Use 2 photos or more and 1 repeat or more"
        )
    torch.manual_seed(seed)
    width, height = size
    network = Dust3r(config or Dust3rConfig(head=head)).to(device).eval()
    views = random_views(photos, height, width, seed=seed)
    graph = build_pair_graph(CompleteGraph(), photos)
    settings = PredictionSettings(precision=precision, show_progress=False)
    peer_model = _build_peer(network) if peer else None
    record = machine_record(command="benchmark inference", device=network.device, seed=seed)
    record |= {"photos": photos, "pairs": len(graph), "size": list(size), "precision": precision}
    record |= {
        "head": network.config.head,
        "weights_mib": sum(parameter.nbytes for parameter in network.parameters()) / 2**20,
    }

    warm_up = build_pair_graph(CompleteGraph(), 2)
    ours_runs, peer_runs = [], []
    peer_results = None
    predictions = predict_pairs(views.select([0, 1]), warm_up, network, settings)
    for repeat in range(repeats):
        logger.info("repeat %d of %d", repeat + 1, repeats)
        with PeakMemory(network.device) as ours_run:
            predictions = predict_pairs(views, graph, network, settings)
        ours_runs.append(ours_run)
        if peer_model is not None:
            with PeakMemory(network.device) as peer_run, _as_the_peer_computes():
                peer_results = _run_peer(peer_model, views, device, peer_batch_size)
            peer_runs.append(peer_run)

    tflop = _ours_flop(network.config, photos, len(graph), height, width) / 1e12
    best = min(ours_runs, key=lambda run: run.seconds)
    record |= {
        "ours_s": best.seconds,
        "ours_all_s": [run.seconds for run in ours_runs],
        "peak_mib": max(run.peak_bytes for run in ours_runs) / 2**20,
        "ours_tflop": tflop,
        "ours_tflop_per_s": tflop / best.seconds,
    }
    if peer_results is not None:
        record |= {
            "peer": "mini-dust3r 0.1.2",
            "peer_batch_size": peer_batch_size,
            "peer_s": min(run.seconds for run in peer_runs),
            "peer_all_s": [run.seconds for run in peer_runs],
            "peer_peak_mib": max(run.peak_bytes for run in peer_runs) / 2**20,
            "ratio": min(run.seconds for run in peer_runs) / best.seconds,
            "max_relative_difference": _largest_difference(predictions, peer_results),
        }
    write_record(record, json_path)
    return record


def run_memory_benchmark(
    *, photos: int, size: tuple[int, int], real_pairs: int, device: str, seed: int, json_path: Path | None
) -> dict[str, object]:
    """Peak memory, beyond the weights, of the full-size network on a complete graph with float16 storage.

    All photos are encoded and the first `real_pairs` pairs decoded by the network itself; every later pair gets a copy
    of what the last real one returned, and is converted, streamed and stored like any other. So the peak is the true
    one and hours become minutes.

    Returns:
        The record that is also written as JSON: `peak_mib`, `stored_mib`, `seconds`.
    """
    torch.manual_seed(seed)
    network = _RepeatingNetwork(Dust3r(Dust3rConfig()).to(device).eval(), real_decodes=real_pairs)
    views = random_views(photos, size[1], size[0], seed=seed)
    graph = build_pair_graph(CompleteGraph(), photos)
    settings = PredictionSettings(storage="float16", batch_size=1)
    with PeakMemory(network.device) as run:
        predictions = predict_pairs(views, graph, network, settings)
    record = machine_record(command="benchmark memory", device=network.device, seed=seed)
    record |= {
        "photos": photos,
        "pairs": len(graph),
        "really_decoded_pairs": real_pairs,
        "size": list(size),
        "storage": "float16",
        "peak_mib": run.peak_bytes / 2**20,
        "stored_mib": predictions.nbytes / 2**20,
        "seconds": run.seconds,
    }
    write_record(record, json_path)
    return record


class _RepeatingNetwork:
    """Decodes some batches with the real network, then returns copies of the last answer."""

    def __init__(self, network: PairNetwork, *, real_decodes: int) -> None:
        self._network = network
        self._left = real_decodes
        self._answer: PairOutput | None = None

    @property
    def patch_size(self) -> int:
        return self._network.patch_size

    @property
    def device(self) -> torch.device:
        return self._network.device

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Encoding:
        return self._network.encode(images)

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        if self._left > 0 or self._answer is None:
            self._left -= 1
            self._answer = self._network.decode(first, second)
        answer = self._answer
        return PairOutput(
            points_first=answer.points_first.clone(),
            points_second=answer.points_second.clone(),
            confidence_first=answer.confidence_first.clone(),
            confidence_second=answer.confidence_second.clone(),
        )


def _ours_flop(config: Dust3rConfig, photos: int, pairs: int, height: int, width: int) -> int:
    """Floating-point operations of matrix products and convolutions, counted on shapes alone."""
    network = meta_network(config)
    image = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False) as encode_count:
            encoding = network.encode(image)
        with FlopCounterMode(display=False) as decode_count:
            network.decode(encoding, encoding)
    return photos * encode_count.get_total_flops() + pairs * decode_count.get_total_flops()


@contextmanager
def _as_the_peer_computes() -> Iterator[None]:
    """With TF32, which it switches on for itself, and without its warnings."""
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with warnings.catch_warnings():
            # Its autocast call is deprecated; once per pair this would bury the result.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32


def _build_peer(network: Dust3r) -> torch.nn.Module:
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        # Importing it prints, warns, and switches TF32 on for the whole process.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mini_dust3r.model import AsymmetricCroCo3DStereo
    except ImportError as error:
        raise MissingPackageError(
            f"the peer mini-dust3r cannot be used ({error})",
            way_out="Run `pip install --no-deps mini-dust3r==0.1.2 beartype einops roma`, install what else it says is "
            "missing, or benchmark with --no-peer",
        ) from error
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    peer = AsymmetricCroCo3DStereo(**official_arguments(network.config))  # pyright: ignore[reportArgumentType]
    peer.load_state_dict(official_state_dict(network), strict=True)
    return peer.to(network.device).eval()


def _run_peer(peer: torch.nn.Module, views: Views, device: str, batch_size: int) -> dict:
    from mini_dust3r.image_pairs import make_pairs
    from mini_dust3r.inference import inference

    images = [
        {
            "img": 2.0 * image[None] - 1.0,
            "true_shape": torch.tensor([image.shape[1:]], dtype=torch.int32),
            "idx": view,
            "instance": str(view),
        }
        for view, image in enumerate(views.images)
    ]
    pairs = make_pairs(images, scene_graph="complete", symmetrize=True)  # pyright: ignore[reportArgumentType]
    return inference(pairs, peer, device, batch_size=batch_size, verbose=False)  # pyright: ignore


def _largest_difference(predictions: PairPredictions, peer_results: dict) -> float:
    """Over all pairs and outputs, the largest absolute difference over the output's largest magnitude."""
    peer_edges = zip(peer_results["view1"]["idx"], peer_results["view2"]["idx"], strict=True)
    rows = {(int(i), int(j)): row for row, (i, j) in enumerate(peer_edges)}
    largest = 0.0
    for edge, pair in predictions:
        row = rows[edge]
        for ours, theirs in (
            (pair.points_first, peer_results["pred1"]["pts3d"][row]),
            (pair.points_second, peer_results["pred2"]["pts3d_in_other_view"][row]),
            (pair.confidence_first.exp(), peer_results["pred1"]["conf"][row]),
            (pair.confidence_second.exp(), peer_results["pred2"]["conf"][row]),
        ):
            largest = max(largest, float((ours - theirs).abs().max() / theirs.abs().max()))
    return largest
