"""The whole self-calibration of 10 photos with the full-size network, stage by stage.

The network has random weights and works in earnest; what it then says of the photos is simulated, so that matching,
alignment, labels and the gate have a scene before them as they would with weights that know something. In training it
speaks for itself.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lora3d_ns.adapter.lora import LoraSettings, adapted
from lora3d_ns.benchmark_record import PeakMemory
from lora3d_ns.gpu_check.common import TINY_NETWORK, independent
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row
from lora3d_ns.gpu_check.simulation import TellingDust3r, ToldAnswers, simulated_predictions
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.reconstruct import Reconstruction, ReconstructSettings, reconstruct
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.noisy_map import NoiseSettings
from lora3d_ns.rooms.simulated import photograph_rooms

TIME_GOAL = Goal(limit=30.0)
"""Seconds for 10 photos on one H200, with the weights loaded."""

PLAIN_NOISE = NoiseSettings(wrong_edges=0)
"""What the network says before it has learnt."""
ADAPTED_NOISE = NoiseSettings(wrong_edges=0, depth_warp=0.03, rotation_deg=0.75, translation=0.015, floater_share=0.1)
"""And afterwards: half of everything."""

_STAGES = ("predict", "match", "align", "stereo", "finetune", "gate")
_TWICE = ("predict", "match", "align", "stereo")
_MOST_REPEATED_S = 120.0
_LEARNING_RATE = 1e-4


@dataclass(frozen=True, eq=False, kw_only=True)
class _Measured:
    """One self-calibration: what came of it, what it took, and how many pairs were told what to say."""

    reconstruction: Reconstruction
    seconds: float
    peak_bytes: int


def run(settings: PartSettings) -> Iterator[Row]:
    """Once as a process finds it, with the goal, and once more where everything has been loaded."""
    yield from independent("self-calibration", lambda: _rows(settings))


def settings_of(settings: PartSettings) -> ReconstructSettings:
    """The defaults, but for a learning rate at which random weights do not diverge: it changes no step's work.

    Fewer epochs where the check is only tried.
    """
    whole = ReconstructSettings().silent()
    tiny = {"epochs": 1, "pairs_per_step": 4} if settings.tiny else {}
    learning = dataclasses.replace(whole.finetune, learning_rate=_LEARNING_RATE, **tiny)
    return dataclasses.replace(whole, finetune=learning)


def prepared(settings: PartSettings) -> tuple[RoomPhotos, TellingDust3r]:
    """Photos of a room, and the network on the device, told what to say of them."""
    photos = photograph_rooms(
        4 if settings.tiny else 10, shapes=[(48, 64) if settings.tiny else (384, 512)], seed=settings.seed
    )
    graph = build_pair_graph(CompleteGraph(), len(photos.views))
    before, after = (
        simulated_predictions(photos, graph, noise, seed=settings.seed) for noise in (PLAIN_NOISE, ADAPTED_NOISE)
    )
    torch.manual_seed(settings.seed)
    network = TellingDust3r(TINY_NETWORK if settings.tiny else Dust3rConfig()).to(settings.device).eval()
    network.told = ToldAnswers(photos.views, before, after, network.device)
    return photos, network


def _rows(settings: PartSettings) -> Iterator[Row]:
    photos, network = prepared(settings)
    # One pair, as loading weights would be followed by: CUDA's libraries are there, nothing else is.
    views = photos.views.select([0, 1])
    predict_pairs(views, build_pair_graph(CompleteGraph(), 2), network, PredictionSettings(show_progress=False))
    with PeakMemory(torch.device("cpu")) as loading:
        adapted(Dust3r(TINY_NETWORK), LoraSettings(), seed=settings.seed)
    yield Row(name="loading what learning needs", value=loading.seconds, unit="s", note="peft; not in the total")
    first = _measured(photos, network, settings)
    yield from _of_run(first, "", TIME_GOAL)
    if first.seconds < _MOST_REPEATED_S:
        yield from _of_run(_measured(photos, network, settings), ", again in the same process", None)


def _measured(photos: RoomPhotos, network: TellingDust3r, settings: PartSettings) -> _Measured:
    with PeakMemory(network.device) as watched:
        reconstruction = reconstruct(photos.views, network, settings_of(settings), base_name="random")
    return _Measured(reconstruction=reconstruction, seconds=watched.seconds, peak_bytes=watched.peak_bytes)


def _of_run(measured: _Measured, which: str, goal: Goal | None) -> Iterator[Row]:
    made = measured.reconstruction
    calibration = made.calibration
    assert calibration is not None
    assert calibration.gate is not None
    tuned, gate = calibration.finetuned, calibration.gate
    yield Row(
        name=f"{len(made.scene.names)} photos, everything{which}",
        value=measured.seconds,
        unit="s",
        goal=goal,
        note="weights loaded, photos decoded; nothing is written to disk",
    )
    for stage in _STAGES:
        twice = ", before and after learning" if stage in _TWICE else ""
        note = ""
        if stage == "finetune":
            note = f"{len(tuned.losses)} steps, {len(tuned.held_out_errors) - 1} epochs"
            note += ", activations computed again" if tuned.recomputed else ""
        yield Row(name=f"{stage}{twice}{which}", value=made.seconds.get(stage), unit="s", note=note)
    rest = measured.seconds - sum(made.seconds.get(stage, 0.0) for stage in _STAGES)
    yield Row(name=f"labels, fingerprints, points and all else{which}", value=rest, unit="s")
    yield Row(
        name=f"peak memory beyond the weights{which}",
        value=measured.peak_bytes / 2**30,
        unit="GiB",
        note="counted by torch's allocator",
    )
    if made.adapter is None:
        note = f"the gate refused the adapter ({gate.reason}): prediction and alignment did not run a second time"
        yield Row(name=f"adapter{which}", note=note, failed=True)
