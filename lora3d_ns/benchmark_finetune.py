"""`lora3d benchmark finetune`: seconds and memory that an adapter costs, against a plain loop of peft and the peer.

Random weights and random labels: neither changes the work. Our default, our `FineTuneSettings.paper()` and the peer
(mini-dust3r's network with peft's own model around it) take steps on the same weights, images, labels and pairs in the
same process; before its first step each must find the same loss.
"""

import contextlib
import io
import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lora3d_ns.adapter.finetune import FineTuneSettings, finetune
from lora3d_ns.adapter.lessons import Edge, Lessons, steps_of_epoch
from lora3d_ns.adapter.lora import LoraSettings, adapted, adapter_of, trainable_parameters
from lora3d_ns.adapter.loss import LabelBatch, label_loss
from lora3d_ns.benchmark_inference import random_views
from lora3d_ns.benchmark_record import PeakMemory, machine_record, write_record
from lora3d_ns.errors import MissingPackageError, SettingsError
from lora3d_ns.network.base import PairOutput
from lora3d_ns.network.checkpoint_architecture import official_arguments
from lora3d_ns.network.checkpoints import load_network, official_state_dict
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import autocast_of
from lora3d_ns.pseudo_labels import label_points, labels_from_depths
from lora3d_ns.types import PseudoLabels, Views

_PAPER_EPOCHS = 10

Step = Callable[[Sequence[Edge]], float]


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """Seconds per unordered pair (both orders) of each step after the first, the first step's loss, and memory."""

    seconds: list[float]
    first_loss: float
    peak_bytes: int


def run_finetune_benchmark(
    *,
    photos: int = 10,
    size: tuple[int, int] = (512, 384),
    steps: int = 5,
    pairs_per_step: int | None = None,
    device: str = "cpu",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    peer: bool = True,
    low_memory: bool = False,
    complete: bool = False,
    seed: int = 0,
    network: Literal["full", "bundled"] = "full",
    config: Dust3rConfig | None = None,
    json_path: Path | None = None,
) -> dict[str, object]:
    """Times steps of fine-tuning, after one that warms up.

    Args:
        photos: Their complete graph is what would be learnt.
        size: (width, height) of the images.
        steps: Steps that are timed, of each contender.
        pairs_per_step: Ordered pairs of a step of our default; None for what the default has.
        device: Where.
        precision: Of all contenders alike.
        peer: Whether to time the peer too.
        low_memory: Whether ours computes activations again instead of keeping them.
        complete: Whether to run a whole training of ten epochs as well.
        seed: Of weights, images and labels.
        network: The official configuration with random weights, or the bundled network.
        config: Another configuration with random weights, instead of `network`.
        json_path: Where to write the record.

    Returns:
        The record that is also written as JSON. Seconds are per unordered pair, both orders, of the fastest step:
        `ours_s`, `paper_recipe_s`, `peer_s`; `ratio` (peer / ours), `paper_ratio` (peer / paper recipe); `peak_mib`,
        `paper_peak_mib` and `peer_peak_mib` beyond the weights; `parameters` and `adapter_bytes` of the adapter;
        `pairs_timed`, unordered pairs of ours; `training_s`, ten epochs of all pairs, extrapolated, and with `complete`
        also `complete_s` and `complete_peak_mib`, measured; `loss_difference`, ours against the peer's before the
        first step, relative.

    Raises:
        SettingsError: Fewer than two photos or no step.
        MissingPackageError: The peer is wanted and not installed.
    """
    if photos < 2 or steps < 1 or (pairs_per_step is not None and pairs_per_step < 2):
        raise SettingsError(
            f"{photos} photos, {steps} steps, {pairs_per_step} pairs per step",
            way_out="Use 2 photos or more, 1 step or more and 2 pairs per step or more",
        )
    if peer and config is None and network == "bundled":
        raise SettingsError("the peer has no network like the bundled one", way_out="Add --no-peer")
    base = _network(network if config is None else config, seed).to(device).eval()
    views = random_views(photos, size[1], size[0], seed=seed)
    labels = random_labels(views, seed=seed)
    common = FineTuneSettings(precision=precision, show_progress=False, held_out_share=0.0, epochs=_PAPER_EPOCHS)
    ours = replace(
        common,
        pairs_per_step=pairs_per_step or common.pairs_per_step,
        recompute_activations="on" if low_memory else "off",
    )
    paper = replace(FineTuneSettings.paper(lora=common.lora), precision=precision)

    lessons = Lessons(views, labels, base.device, confidence_alpha=common.confidence_alpha)
    edges = labels.graph.edges
    student = adapted(base, ours.lora, seed=seed)
    adapter = adapter_of(student, base_name="random", base_fingerprint="", provenance={})
    student.recompute_activations = low_memory
    ours_timed = _timed(_our_step(student, lessons, ours), edges, ours, steps, base.device)
    del student
    paper_timed = _timed(
        _our_step(adapted(base, paper.lora, seed=seed), lessons, paper), edges, paper, steps, base.device
    )
    ours_s = min(ours_timed.seconds)
    pair_steps = _PAPER_EPOCHS * photos * (photos - 1) // 2
    record = machine_record(command="benchmark finetune", device=base.device, seed=seed)
    record |= {
        "photos": photos,
        "size": list(size),
        "network": network if config is None else "given",
        "precision": precision,
        "low_memory": low_memory,
        "pairs_per_step": ours.pairs_per_step,
        "ours_s": ours_s,
        "ours_all_s": ours_timed.seconds,
        "paper_recipe_s": min(paper_timed.seconds),
        "paper_recipe_all_s": paper_timed.seconds,
        "weights_mib": sum(parameter.nbytes for parameter in base.parameters()) / 2**20,
        "peak_mib": ours_timed.peak_bytes / 2**20,
        "paper_peak_mib": paper_timed.peak_bytes / 2**20,
        "parameters": adapter.parameter_count,
        "adapter_bytes": adapter.nbytes,
        "pairs_timed": len(ours_timed.seconds) * ours.pairs_per_step // 2,
        "pair_steps_of_training": pair_steps,
        "training_s": ours_s * pair_steps,
    }
    if peer:
        peer_timed = _timed(_peer_step(base, views, labels, paper), edges, paper, steps, base.device, both_orders=True)
        peer_s = min(peer_timed.seconds)
        difference = _first_loss_difference(base, lessons, labels, paper, peer_timed.first_loss)
        record |= {
            "peer": "mini-dust3r 0.1.2 in peft",
            "peer_s": peer_s,
            "peer_all_s": peer_timed.seconds,
            "peer_peak_mib": peer_timed.peak_bytes / 2**20,
            "ratio": peer_s / ours_s,
            "paper_ratio": peer_s / min(paper_timed.seconds),
            "loss_difference": difference,
        }
    if complete:
        with PeakMemory(base.device) as memory:
            tuned = finetune(views, labels, base, ours, base_name="random", base_fingerprint="random")
        record |= {
            "complete_s": memory.seconds,
            "complete_peak_mib": memory.peak_bytes / 2**20,
            "complete_steps": len(tuned.losses),
        }
    write_record(record, json_path)
    return record


def random_labels(views: Views, *, seed: int) -> PseudoLabels:
    """Labels for every pixel of every pair of the views: smooth random depths from a few places, for measuring only."""
    generator = torch.Generator().manual_seed(seed)
    count = len(views)
    T = torch.eye(4).repeat(count, 1, 1)
    T[:, :3, 3] = 0.3 * torch.randn((count, 3), generator=generator)
    K = torch.eye(3).repeat(count, 1, 1)
    depths = []
    for view, (height, width) in enumerate(views.shapes):
        K[view, 0, 0] = K[view, 1, 1] = float(max(height, width))
        K[view, 0, 2], K[view, 1, 2] = width / 2, height / 2
        coarse = 1.0 + torch.rand((1, 1, 4, 4), generator=generator)
        depths.append(nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0, 0])
    return labels_from_depths(views, build_pair_graph(CompleteGraph(), count), T_world_camera=T, K=K, depths=depths)


def _network(which: str | Dust3rConfig, seed: int) -> Dust3r:
    if which == "bundled":
        return load_network("rooms")
    torch.manual_seed(seed)
    return Dust3r(which if isinstance(which, Dust3rConfig) else Dust3rConfig())


def _timed(
    step: Step,
    edges: Sequence[Edge],
    settings: FineTuneSettings,
    count: int,
    device: torch.device,
    *,
    both_orders: bool | None = None,
) -> _Timed:
    """One step that warms up and `count` that are timed."""
    together = settings.share_encodings if both_orders is None else both_orders
    epoch = steps_of_epoch(edges, settings.pairs_per_step, both_orders=together, seed=0)
    # The last one may be shorter than the others.
    whole = [each for each in epoch if len(each) == len(epoch[0])]
    chosen = itertools.islice(itertools.cycle(whole), count + 1)
    seconds: list[float] = []
    with PeakMemory(device) as memory:
        first_loss = step(next(chosen))
        for each in chosen:
            _synchronize(device)
            begun = time.perf_counter()
            step(each)
            _synchronize(device)
            seconds.append((time.perf_counter() - begun) / (len(each) / 2))
    return _Timed(seconds=seconds, first_loss=first_loss, peak_bytes=memory.peak_bytes)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _our_step(student: Dust3r, lessons: Lessons, settings: FineTuneSettings) -> Step:
    def objective(edges: Sequence[Edge]) -> Tensor:
        with autocast_of(student, settings.precision):
            return lessons.objective(student, edges, share_encodings=settings.share_encodings)

    return _step_of(objective, trainable_parameters(student), settings)


def _step_of(
    objective: Callable[[Sequence[Edge]], Tensor], parameters: Sequence[Tensor], settings: FineTuneSettings
) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def step(edges: Sequence[Edge]) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = objective(edges)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


# --- the peer -------------------------------------------------------------------------------------


def _peer_step(base: Dust3r, views: Views, labels: PseudoLabels, settings: FineTuneSettings) -> Step:
    """What one would write with peft and mini-dust3r: both orders of a pair as the batch of two that it expects.

    It recognises such a batch and encodes each of the two images once, which it cannot do for the pairs of the paper's
    recipe in their random order.
    """
    model = _peer_model(base, settings.lora)
    images = [2.0 * image.to(base.device) - 1.0 for image in views.images]
    valid = dict(zip(labels.graph.edges, zip(labels.valid_first, labels.valid_second, strict=True), strict=True))

    def view_batch(edges: Sequence[Edge], end: int) -> dict[str, object]:
        chosen = [edge[end] for edge in edges]
        return {
            "img": torch.stack([images[view] for view in chosen]),
            "true_shape": torch.tensor([views.shapes[view] for view in chosen], dtype=torch.int32),
            "instance": [str(view) for view in chosen],
        }

    def objective(edges: Sequence[Edge]) -> Tensor:
        with autocast_of(base, settings.precision), warnings.catch_warnings():
            # Its own autocast call is deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            first, second = model(view_batch(edges, 0), view_batch(edges, 1))
        output = PairOutput(
            points_first=first["pts3d"],
            points_second=second["pts3d_in_other_view"],
            confidence_first=first["conf"].log(),
            confidence_second=second["conf"].log(),
        )
        points = [label_points(labels, edge) for edge in edges]
        batch = LabelBatch(
            points_first=torch.stack([of_pair[0] for of_pair in points]).to(base.device),
            points_second=torch.stack([of_pair[1] for of_pair in points]).to(base.device),
            valid_first=torch.stack([valid[edge][0] for edge in edges]).to(base.device),
            valid_second=torch.stack([valid[edge][1] for edge in edges]).to(base.device),
        )
        return label_loss(output, batch, confidence_alpha=settings.confidence_alpha)

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _step_of(objective, trainable, settings)


def _peer_model(base: Dust3r, lora: LoraSettings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        # Importing it prints, warns, and switches TF32 on for the whole process.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mini_dust3r.model import AsymmetricCroCo3DStereo
    except ImportError as error:
        raise MissingPackageError(
            f"the peer mini-dust3r cannot be used ({error})",
            way_out="Run `pip install --no-deps mini-dust3r==0.1.2 beartype einops roma`, or benchmark with --no-peer",
        ) from error
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    peer = AsymmetricCroCo3DStereo(**official_arguments(base.config))  # pyright: ignore[reportArgumentType]
    peer.load_state_dict(official_state_dict(base), strict=True)
    settings = LoraConfig(
        r=lora.rank,
        # Annotated as a whole number, used as a factor.
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(lora.targets),
    )
    return get_peft_model(peer.to(base.device), settings)  # pyright: ignore[reportArgumentType]


def _first_loss_difference(
    base: Dust3r, lessons: Lessons, labels: PseudoLabels, settings: FineTuneSettings, peer_loss: float
) -> float:
    """How far the peer's loss of its first step was from ours of the same pairs, relative to ours."""
    edges = steps_of_epoch(labels.graph.edges, settings.pairs_per_step, both_orders=True, seed=0)[0]
    with torch.no_grad(), autocast_of(base, settings.precision):
        ours = float(lessons.objective(base, edges, share_encodings=False))
    return abs(ours - peer_loss) / abs(ours)
