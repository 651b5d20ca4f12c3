"""What lies beside a scene in `details.safetensors`, for those who look at it: maps, pairs and how it came about.

`Scene` is what other programs need. This is what a person needs to judge it: everything at the network's resolution,
as much of the way to the scene as can be drawn, and as small as it can be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.types import AlignmentDiagnosis, Cameras

DETAILS_FORMAT_VERSION = 1
"""What `SceneDetails.format_version` must be: the meaning of its fields, apart from how files hold them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BeforeLearning:
    """The same photos as the network understood them before it learnt from them.

    Unless a unit is known, this scene has its own: `diagnosis.unit` of either scene, its typical depth, makes their
    lengths comparable.

    Attributes:
        cameras: One camera per view.
        depths: Depth along each view's z axis at network resolution, this scene's unit.
        weights: View weights, as in `SceneDetails`.
        moving: Pixels that no static geometry explains.
        diagnosis: What speaks for this scene, and what against it.
    """

    cameras: Cameras
    depths: tuple[Float32[Tensor, "_ _"], ...]
    weights: tuple[Float[Tensor, "_ _"], ...]
    moving: tuple[Bool[Tensor, "_ _"], ...]
    diagnosis: AlignmentDiagnosis

    def __post_init__(self) -> None:
        _require_one_each(self, len(self.cameras), "views", ("depths", "weights", "moving"))


@dataclass(frozen=True, eq=False, kw_only=True)
class LearningDetails:
    """How the network learnt from the scene, in the last round.

    Attributes:
        before: What it made of the photos before.
        losses: Objective of each step of fine-tuning.
        held_out: The pairs that no step saw.
        held_out_errors: Their mean normalised distance from the labels, before any step and after each epoch.
        best_epoch: The epoch that counts; 0 is the network as it was.
        gate: The gate's decision in plain values, see `adapter.gate.GateDecision`; None for arms without a gate. If it
            refused, the scene is that of the adapter accepted in a round before, or else the one of `before`.
        label_coverage: Share of each view's unmasked pixels that had a label in some pair.
        label_cutoff: The weight above which a pixel had one.
    """

    before: BeforeLearning
    losses: tuple[float, ...]
    held_out: tuple[tuple[int, int], ...]
    held_out_errors: tuple[float, ...]
    best_epoch: int
    gate: Mapping[str, object] | None
    label_coverage: Float32[Tensor, " views"]
    label_cutoff: float


@dataclass(frozen=True, eq=False, kw_only=True)
class SceneDetails:
    """What a viewer and a report need of a finished scene beside the scene itself.

    What belongs to one view is at network resolution, height and width first. Maps that are only looked at are in
    float16, or in float32 where the scene's unit is such that float16 would not hold them.

    Attributes:
        names: Names of the views, as in the scene.
        images: sRGB.
        masks: True where a pixel counts; None where all count.
        source_from_network: Where each network pixel lies in the upright source photo.
        focal_px: Focal length (along x) in source pixels.
        depths: Depth along each view's z axis, world unit.
        weights: How far the scene's own depth can be believed: `AlignedScene.view_weights`.
        confidences: What the network said: C = log(raw confidence), averaged over all pairs that hold the view.
        residuals: Distance between a pair's point and the scene's, as Eq. 8 takes it (see `alignment.calibrate`), world
            unit: mean over the pairs that were not dropped, weighted by C.
        moving: Pixels that no static geometry explains.
        edges: The pairs (i, j), dropped ones included; `diagnosis.edge_residuals` has theirs, as shares of
            `diagnosis.unit`.
        overlap: Per edge the share of both photos' pixels that the other photo sees in the finished scene; the same
            for both orders.
        dropped: Edges left out of the alignment, with the reason.
        losses: The alignment's objective after each accepted step.
        seconds: When each of them was reached, from the beginning.
        diagnosis: What speaks for the scene, and what against it; `warnings` says it in words.
        learning: How the network learnt from it, and the scene before; None where nothing was learnt.
        format_version: Must be `DETAILS_FORMAT_VERSION`.
    """

    names: tuple[str, ...]
    images: tuple[UInt8[Tensor, "_ _ 3"], ...]
    masks: tuple[Bool[Tensor, "_ _"] | None, ...]
    source_from_network: tuple[PixelAffine, ...]
    focal_px: Float32[Tensor, " views"]
    depths: tuple[Float32[Tensor, "_ _"], ...]
    weights: tuple[Float[Tensor, "_ _"], ...]
    confidences: tuple[Float[Tensor, "_ _"], ...]
    residuals: tuple[Float[Tensor, "_ _"], ...]
    moving: tuple[Bool[Tensor, "_ _"], ...]
    edges: tuple[tuple[int, int], ...]
    overlap: Float32[Tensor, " edges"]
    dropped: Mapping[tuple[int, int], str]
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    diagnosis: AlignmentDiagnosis
    learning: LearningDetails | None
    format_version: int

    def __post_init__(self) -> None:
        maps = ("images", "masks", "depths", "weights", "confidences", "residuals", "moving")
        _require_one_each(self, len(self.names), "views", (*maps, "source_from_network", "focal_px"))
        _require_one_each(self, len(self.edges), "edges", ("overlap",))
        _require_one_each(self.diagnosis, len(self.edges), "edges", ("edge_residuals",))
        if self.learning is not None:
            _require_one_each(self.learning, len(self.names), "views", ("label_coverage",))
            _require_one_each(self.learning.before, len(self.names), "views", ("cameras",))
        for name in maps:
            for view, values in enumerate(getattr(self, name)):
                if values is not None and values.shape[:2] != self.depths[view].shape:
                    raise _contradiction(f"{name} of {self.names[view]} have not the shape of its depths")


def _require_one_each(owner: object, count: int, what: str, field_names: Sequence[str]) -> None:
    for name in field_names:
        length = len(getattr(owner, name))
        if length != count:
            raise _contradiction(f"{type(owner).__name__}.{name} has {length} entries for {count} {what}")


def _contradiction(problem: str) -> InvalidDataError:
    return InvalidDataError(problem, way_out="This is a contradiction between the arrays handed in; check the caller")
