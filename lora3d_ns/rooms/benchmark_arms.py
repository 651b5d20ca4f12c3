"""The arms of the benchmark: what is made of a network before it is shown the test photos."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lora3d_ns.adapter.lora import Adapter, with_adapter
from lora3d_ns.errors import TooFewLabelsError
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.predict import predict_pairs
from lora3d_ns.reconstruct import Measured, ReconstructSettings, reconstruct, self_calibrate
from lora3d_ns.rooms.benchmark_scenes import BenchmarkScene
from lora3d_ns.rooms.label_errors import label_error_m, prediction_error_m
from lora3d_ns.types import AlignedScene, Cameras, PairPredictions

BENCHMARK_NETWORK_NAME = "benchmark"
"""What adapters made here say their base is called; nobody keeps them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ArmResult:
    """What an arm makes of a scene's test photos.

    Attributes:
        predictions: Point maps of all ordered pairs.
        cameras: Of all photos.
        aligned: The scene they were aligned to, for arms that align.
        accepted: What the gate decided, for arms that have one.
        refused: What the network with the adapter says of the same pairs, where the gate refused it: to judge the gate.
        prediction_error_m: Point error on the calibration photos, which labels were made of; None for arms without.
        label_error_m: The same of these labels.
    """

    predictions: PairPredictions
    cameras: Cameras
    aligned: AlignedScene | None = None
    accepted: bool | None = None
    refused: PairPredictions | None = None
    prediction_error_m: float | None = None
    label_error_m: float | None = None


Arm = Callable[[Dust3r, BenchmarkScene], ArmResult]


def pretrained_arm(network: Dust3r, scene: BenchmarkScene) -> ArmResult:
    """The network as it is, aligned by Eq. 6: what DUSt3R itself does."""
    return _reconstructed(network, scene, ReconstructSettings(arm="pretrained"))


def robust_arm(network: Dust3r, scene: BenchmarkScene) -> ArmResult:
    """The network as it is, aligned by Eq. 7 with whatever 2D matches there are: the method without fine-tuning."""
    return _reconstructed(network, scene, ReconstructSettings(arm="robust"))


def self_calibrated_arm(network: Dust3r, scene: BenchmarkScene) -> ArmResult:
    """The whole method: an adapter from the calibration photos alone, if the gate accepts it, on the test photos."""
    return _learnt(network, scene, ReconstructSettings(arm="self_calibrated"))


def gt_finetuned_arm(network: Dust3r, scene: BenchmarkScene) -> ArmResult:
    """The same recipe on the true depths and cameras of the calibration photos: what labels could give at best."""
    return _learnt(network, scene, ReconstructSettings(arm="gt_finetuned"))


def depth_calibrated_arm(network: Dust3r, scene: BenchmarkScene) -> ArmResult:
    """The same recipe on the true depths, as a sensor would give them, with cameras from the robust alignment."""
    return _learnt(network, scene, ReconstructSettings(arm="depth_calibrated"))


def _learnt(network: Dust3r, scene: BenchmarkScene, settings: ReconstructSettings) -> ArmResult:
    photos = scene.calibration
    # What moves has no place in the truth of another moment.
    depths = tuple(
        torch.where(static, depth, 0.0) for depth, static in zip(photos.depths_m, photos.static, strict=True)
    )
    measured = None
    if settings.arm != "self_calibrated":
        measured = Measured(depths=depths, cameras=photos.cameras)
    try:
        learnt = self_calibrate(
            photos.views, network, settings.silent(), base_name=BENCHMARK_NETWORK_NAME, measured=measured
        )
    except TooFewLabelsError:
        return dataclasses.replace(_reconstructed(network, scene, settings, None), accepted=False)
    result = dataclasses.replace(
        _reconstructed(network, scene, settings, learnt.adapter),
        accepted=None if learnt.gate is None else learnt.gate.accepted,
        prediction_error_m=prediction_error_m(learnt.before.predictions, photos),
        label_error_m=label_error_m(learnt.labels, photos),
    )
    if learnt.refused is None:
        return result
    refused = predict_pairs(
        scene.test.views,
        result.predictions.graph,
        with_adapter(network, learnt.refused),
        settings.silent().prediction,
    )
    return dataclasses.replace(result, refused=refused)


def _reconstructed(
    network: Dust3r, scene: BenchmarkScene, settings: ReconstructSettings, adapter: Adapter | None = None
) -> ArmResult:
    """The test photos through the network, with an adapter or without, and aligned; nothing is learnt from them."""
    arm = "pretrained" if settings.arm == "pretrained" else "robust"
    made = reconstruct(
        scene.test.views,
        network,
        dataclasses.replace(settings, arm=arm).silent(),
        base_name=BENCHMARK_NETWORK_NAME,
        adapter=adapter,
    ).understood
    return ArmResult(predictions=made.predictions, cameras=made.aligned.cameras, aligned=made.aligned)


ARMS: Mapping[str, Arm] = {
    "pretrained": pretrained_arm,
    "robust": robust_arm,
    "self_calibrated": self_calibrated_arm,
    "gt_finetuned": gt_finetuned_arm,
    "depth_calibrated": depth_calibrated_arm,
}
"""All arms by name."""
