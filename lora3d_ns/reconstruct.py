"""The whole method: photos -> predictions -> robust alignment -> pseudo labels -> adapter -> gate -> predictions ->
alignment -> Scene.

Every stage is a plain function of the stage before and its settings (`lora3d_ns.stages`). With a cache each result is
kept under a key of all it depends on, so that the same call after an interruption goes on where it was.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lora3d_ns import __version__
from lora3d_ns.adapter.finetune import FineTuned
from lora3d_ns.adapter.gate import GateDecision
from lora3d_ns.adapter.lora import Adapter
from lora3d_ns.errors import SettingsError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.scene_io.scenes import SCENE_FORMAT_VERSION
from lora3d_ns.scene_io.stage_cache import StageCache
from lora3d_ns.stages.settings import LEARNING_ARMS, Arm, Measured, ReconstructSettings
from lora3d_ns.stages.stages import Stages, Understood
from lora3d_ns.types import AlignedScene, PseudoLabels, Scene, Views

__all__ = [
    "Arm",
    "Calibration",
    "Measured",
    "ReconstructSettings",
    "Reconstruction",
    "reconstruct",
    "scene_of",
    "self_calibrate",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """What learning from one scene came to.

    Attributes:
        adapter: To be used from now on, of the last round that the gate accepted; None where it accepted none.
        refused: The adapter that the gate refused in the last round, if it did.
        gate: Its decision in the last round; None for arms that learn from measurements.
        before: What the network made of the photos before.
        labels: What was learnt in the last round.
        finetuned: How it was learnt.
        seconds: Time of each stage.
    """

    adapter: Adapter | None
    refused: Adapter | None
    gate: GateDecision | None
    before: Understood
    labels: PseudoLabels
    finetuned: FineTuned
    seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Reconstruction:
    """A scene and all that led to it.

    Attributes:
        scene: The result.
        understood: Predictions and alignment behind it.
        calibration: What was learnt; None for arms that learn nothing, or where the adapter was given.
        adapter: The one that was used.
        seconds: Time of each stage; next to nothing for one whose result was in the cache.
    """

    scene: Scene
    understood: Understood
    calibration: Calibration | None
    adapter: Adapter | None
    seconds: Mapping[str, float]


def reconstruct(
    views: Views,
    network: Dust3r,
    settings: ReconstructSettings | None = None,
    *,
    base_name: str,
    adapter: Adapter | None = None,
    measured: Measured | None = None,
    cache: StageCache | None = None,
) -> Reconstruction:
    """A scene from photos.

    Args:
        views: The photos.
        network: The pre-trained network; it is left as it is.
        settings: Of all stages.
        base_name: What the network is called, for the adapter's files.
        adapter: One that was made before, for this network: nothing is learnt then.
        measured: For the arms that learn from it.
        cache: Where results of stages are kept; nowhere by default.

    Raises:
        AdapterBaseError: The adapter was made for another network.
        TooFewLabelsError: The alignment believes too little of the scene to learn from it.
        Lora3dError: Any stage's own errors; those of settings and graph come before any long work.
    """
    settings = settings or ReconstructSettings()
    stages = Stages(views, network, settings, base_name=base_name, cache=cache or StageCache.none())
    calibration = None
    if adapter is None and settings.arm in LEARNING_ARMS:
        calibration = _calibrated(stages, measured)
        adapter = calibration.adapter
    # Where nothing was learnt, or nothing accepted, this is what was there before: it comes from the cache.
    if calibration is not None and adapter is None:
        understood = calibration.before
    else:
        understood = stages.understood(adapter)
    provenance = _provenance(stages, understood, calibration, adapter)
    return Reconstruction(
        scene=scene_of(views, understood.aligned, cutoff=settings.point_cutoff, provenance=provenance),
        understood=understood,
        calibration=calibration,
        adapter=adapter,
        seconds=dict(stages.seconds),
    )


def self_calibrate(
    views: Views,
    network: Dust3r,
    settings: ReconstructSettings | None = None,
    *,
    base_name: str,
    measured: Measured | None = None,
    cache: StageCache | None = None,
) -> Calibration:
    """The adapter of a scene: `reconstruct` as far as the gate.

    Raises:
        SettingsError: The arm learns nothing, or nothing was measured for it.
        TooFewLabelsError: The alignment believes too little of the scene to learn from it.
        Lora3dError: Any stage's own errors.
    """
    settings = settings or ReconstructSettings()
    if settings.arm not in LEARNING_ARMS:
        raise SettingsError(f"the arm {settings.arm} learns nothing", way_out=f"Use one of {', '.join(LEARNING_ARMS)}")
    stages = Stages(views, network, settings, base_name=base_name, cache=cache or StageCache.none())
    return _calibrated(stages, measured)


def _calibrated(stages: Stages, measured: Measured | None) -> Calibration:
    """Rounds of labels, learning and the gate; each goes on from the adapter before, with better labels."""
    settings = stages.settings
    before = stages.understood(None)
    if settings.arm != "self_calibrated":
        labels = stages.measured_labels(before, measured)
        tuned = stages.finetuned(labels)
        return Calibration(
            adapter=tuned.adapter,
            refused=None,
            gate=None,
            before=before,
            labels=labels,
            finetuned=tuned,
            seconds=dict(stages.seconds),
        )
    accepted, current, number = None, before, 1
    while True:
        labels = stages.pseudo_labels(current)
        tuned = stages.finetuned(labels, accepted)
        decision = stages.decided(tuned, None if accepted is None else accepted.adapter, current, labels)
        if decision.accepted:
            accepted = tuned
        elif accepted is not None:
            stays = f"round {number} is left out, the adapter of the round before stays: {decision.reason}"
            decision = dataclasses.replace(decision, reason=stays)
        if not decision.accepted or number == settings.rounds:
            break
        current, number = stages.understood(tuned.adapter), number + 1
    return Calibration(
        adapter=None if accepted is None else accepted.adapter,
        refused=None if decision.accepted else tuned.adapter,
        gate=decision,
        before=before,
        labels=labels,
        finetuned=tuned,
        seconds=dict(stages.seconds),
    )


def scene_of(views: Views, aligned: AlignedScene, *, cutoff: float, provenance: Mapping[str, object]) -> Scene:
    """Cameras at source resolution and the cloud of all pixels that are believed, static and unmasked.

    Args:
        views: The photos.
        aligned: The scene of these photos.
        cutoff: Least view weight of a point; a weight of 0 makes none.
        provenance: Plain values that say how the scene was made.
    """
    points, colors, weights, seen_in = [], [], [], []
    for view, depth in enumerate(aligned.depths):
        weight, mask = aligned.view_weights[view], views.masks[view]
        chosen = (weight >= cutoff) & (weight > 0) & ~aligned.moving[view]
        if mask is not None:
            chosen &= mask
        K = views.source_from_network[view].K_network_from_source(aligned.cameras.K[view]).float()
        T_world_camera = aligned.cameras.T_world_camera[view].float()
        points.append(points_from_depth(depth, K)[chosen] @ T_world_camera[:3, :3].T + T_world_camera[:3, 3])
        colors.append((views.images[view].permute(1, 2, 0)[chosen] * 255.0).round().to(torch.uint8))
        weights.append(weight[chosen])
        seen_in.append(torch.full((int(chosen.sum()),), view, dtype=torch.int32))
    return Scene(
        names=views.names,
        cameras=aligned.cameras,
        points=torch.cat(points),
        colors=torch.cat(colors),
        point_weights=torch.cat(weights),
        point_views=torch.cat(seen_in),
        provenance=provenance,
        format_version=SCENE_FORMAT_VERSION,
    )


def _provenance(
    stages: Stages, understood: Understood, calibration: Calibration | None, adapter: Adapter | None
) -> dict[str, object]:
    """How the scene was made, in plain values."""
    learnt = None
    if adapter is not None:
        learnt = {"parameters": adapter.parameter_count, "provenance": dict(adapter.provenance)}
    gate = None if calibration is None else calibration.gate
    return {
        "version": __version__,
        "arm": stages.settings.arm,
        "network": stages.base_name,
        "network_fingerprint": stages.base_fingerprint,
        "adapter": learnt,
        "gate": None if gate is None else dataclasses.asdict(gate),
        "photos": len(stages.views),
        "pairs": len(stages.graph),
        "warnings": list(understood.aligned.diagnosis.warnings),
        "settings": _plain(stages.settings),
        "seconds": dict(stages.seconds),
    }


def _plain(value: object) -> object:
    """Settings as nested mappings of plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
