"""Small scenes whose report is known beforehand: rooms with true depths and cameras, and facts made by hand."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from alignment.aligned_rooms import room
from torch import Tensor

from lora3d_ns.report.facts import Histogram, PairFacts, PairState, Partner, PhotoFacts
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.scene_details import edge_overlap
from lora3d_ns.scene_io.details import BeforeLearning, LearningDetails, SceneDetails
from lora3d_ns.types import AlignmentDiagnosis, Cameras, Scene

GATE = {
    "accepted": True,
    "reason": "held-out pairs: distance from the labels 0.210 -> 0.120",
    "before": {"label_error": 0.21, "order_error": 0.05, "match_error": None, "matches": 0},
    "after": {"label_error": 0.12, "order_error": 0.04, "match_error": None, "matches": 0},
}

HOSTILE = (
    "<script>window.hacked=1;alert(1)</script>.png",
    '" onmouseover="window.hacked=1" x=\'.png',
    "'><img src=x onerror=window.hacked=1>&amp;{{ 7*7 }}.png",
)
"""Names of photos that would act if they were not escaped."""


def photo(
    number: int, *, name: str | None = None, partners: Mapping[int, float] | None = None, **changed
) -> PhotoFacts:
    """A photo that nothing is wrong with; `partners` are overlaps by number."""
    found = PhotoFacts(
        name=name or letter(number),
        number=number,
        width_px=640,
        height_px=480,
        focal_px=500.0,
        focal_mm=27.0,
        focal_spread_percent=1.0,
        position=(0.3 * number, 0.0, 0.0),
        looks_along=(0.0, 0.0, 1.0),
        points=100,
        weight_median=1.0,
        weighted_share=0.9,
        unborne_share=0.0,
        label_coverage=0.9,
        seen_share=0.9,
        thin_share=0.0,
        thin_regions=(),
        moving_share=0.0,
        masked_share=0.0,
        brightness=0.45,
        partners=tuple(Partner(name=letter(k), number=k, overlap=o) for k, o in (partners or {}).items()),
        residual=Histogram(bounds=(0.01, 0.1, 1.0), counts=(3, 1), median=0.05),
        hardly_sure=False,
        contested=False,
    )
    return dataclasses.replace(found, **changed)


def pair(first: int, second: int, overlap: float = 0.6, state: PairState = "good") -> PairFacts:
    """A pair of two photos of `photos_of`."""
    return PairFacts(
        names=(letter(first), letter(second)),
        numbers=(first, second),
        overlap=overlap,
        residual=None if state == "left_out" else 0.05,
        state=state,
        left_out=("It is far off.",) if state == "left_out" else (),
    )


def photos_of(count: int, pairs: Sequence[PairFacts], **changed: Mapping[int, object]) -> list[PhotoFacts]:
    """Photos whose partners are those of the pairs; `changed` holds other values of fields by number."""
    found = []
    for number in range(1, count + 1):
        overlaps = {
            other: one.overlap for one in pairs if number in one.numbers for other in one.numbers if other != number
        }
        best = dict(sorted(overlaps.items(), key=lambda item: (-item[1], item[0]))[:2])
        fields: dict[str, Any] = {name: values[number] for name, values in changed.items() if number in values}
        found.append(photo(number, partners=best, **fields))
    return found


def letter(number: int) -> str:
    return f"{chr(ord('a') + number - 1)}.jpg"


# --- scenes -------------------------------------------------------------------------------------------


def diagnosis(edges: int, views: int, *, residual: float = 0.05, unit: float = 2.0, **changed) -> AlignmentDiagnosis:
    found = AlignmentDiagnosis(
        unit=unit,
        edge_residuals=torch.full((edges,), residual),
        focal_spread_percent=torch.full((views,), 2.0),
        weighted_share=torch.full((views,), 0.8),
        baseline=0.4,
        near_static=False,
        uncut_views=(),
        contested_views=(),
        scale_known=False,
        match_count=100,
        match_error_px=0.3,
        converged=True,
        warnings=(),
    )
    return dataclasses.replace(found, **changed)


def scene_and_details(
    count: int = 3,
    *,
    names: Sequence[str] | None = None,
    shapes: tuple[tuple[int, int], ...] = ((48, 64), (64, 48)),
    learnt: bool = True,
    accepted: bool = True,
    provenance: Mapping[str, object] | None = None,
) -> tuple[Scene, SceneDetails]:
    """A room with true depths and cameras; learning moved its cameras a little, where it was accepted."""
    photos = room(count, shapes=shapes)
    views = photos.views
    given = tuple(names or views.names)
    edges = tuple((i, j) for i in range(count) for j in range(count) if i != j)
    weights = tuple(_ramp(depth) for depth in photos.depths_m)
    gate = {**GATE, "accepted": accepted}
    details = SceneDetails(
        names=given,
        images=tuple((image.permute(1, 2, 0) * 255).round().to(torch.uint8) for image in views.images),
        masks=views.masks,
        source_from_network=views.source_from_network,
        focal_px=photos.cameras.K[:, 0, 0].float(),
        depths=photos.depths_m,
        weights=weights,
        confidences=tuple(2.0 * weight for weight in weights),
        residuals=tuple(0.1 * torch.ones_like(depth) for depth in photos.depths_m),
        moving=tuple(torch.zeros_like(depth, dtype=torch.bool) for depth in photos.depths_m),
        edges=edges,
        overlap=_overlap(photos, edges),
        dropped={},
        losses=(3.0, 2.0, 1.5, 4.0, 2.5),
        seconds=(0.1, 0.2, 0.3, 0.4, 0.5),
        diagnosis=diagnosis(len(edges), count),
        learning=_learning(photos, edges, weights, gate, changed=accepted) if learnt else None,
        format_version=1,
    )
    points = 50 * count
    scene = Scene(
        names=given,
        cameras=photos.cameras,
        points=torch.rand(points, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.0, 1.0]),
        colors=torch.full((points, 3), 128, dtype=torch.uint8),
        point_weights=torch.ones(points),
        point_views=(torch.arange(points) % count).to(torch.int32),
        provenance={
            "version": "0.1.0",
            "arm": "self_calibrated" if learnt else "robust",
            "network": "rooms",
            "adapter": {"parameters": 1000, "provenance": {"epochs": 2}} if learnt and accepted else None,
            "gate": gate if learnt else None,
            "warnings": [],
            "settings": {"kind": "ReconstructSettings", "graph": {"kind": "CompleteGraph"}, "point_cutoff": 0.1},
            "seconds": {"predict": 1.5, "align": 0.5},
            **(provenance or {}),
        },
        format_version=1,
    )
    return scene, details


def _learning(
    photos: RoomPhotos, edges: Sequence[tuple[int, int]], weights: tuple[Tensor, ...], gate: object, *, changed: bool
) -> LearningDetails:
    count = len(photos.views)
    T = photos.cameras.T_world_camera.clone()
    if changed:
        # The world before had twice the unit, lay elsewhere, and its last camera stood 0.2 of a unit off.
        T[:, :3, 3] = 2.0 * T[:, :3, 3] + 1.0
        T[-1, 0, 3] += 2.0 * 2.0 * 0.2
    before = BeforeLearning(
        cameras=dataclasses.replace(photos.cameras, T_world_camera=T),
        depths=tuple(2.0 * depth for depth in photos.depths_m) if changed else photos.depths_m,
        weights=tuple(0.5 * weight for weight in weights),
        moving=tuple(torch.zeros_like(depth, dtype=torch.bool) for depth in photos.depths_m),
        diagnosis=diagnosis(len(edges), count, residual=0.2, unit=4.0),
    )
    assert isinstance(gate, dict)
    return LearningDetails(
        before=before,
        losses=(0.5, 0.4, 0.3, 0.2),
        held_out=((0, 1), (1, 0)),
        held_out_errors=(0.21, 0.15, 0.12, 0.13),
        best_epoch=2,
        gate=gate,
        label_coverage=torch.full((count,), 0.9),
        label_cutoff=1.5,
    )


def _overlap(photos: RoomPhotos, edges: Sequence[tuple[int, int]]) -> Tensor:
    K = [
        affine.K_network_from_source(K).float()
        for affine, K in zip(photos.views.source_from_network, photos.cameras.K, strict=True)
    ]
    return edge_overlap(edges, photos.depths_m, K, photos.cameras.T_world_camera, photos.views.masks)


def _ramp(depth: Tensor) -> Tensor:
    """Weights from 0 at the left to 1 at the right."""
    return torch.linspace(0.0, 1.0, depth.shape[1]).expand(depth.shape).clone()


def ring(count: int, size: tuple[int, int], seed: int = 0) -> tuple[Scene, SceneDetails]:
    """Many photos around the origin, of rough surfaces at the distance of the middle."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    T = torch.eye(4).repeat(count, 1, 1)
    for view in range(count):
        angle = 2 * math.pi * view / count
        forward = torch.tensor([-math.sin(angle), 0.0, math.cos(angle)])
        right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward)
        T[view, :3, :3] = torch.stack([right, torch.tensor([0.0, 1.0, 0.0]), forward], dim=1)
        T[view, :3, 3] = -3.0 * forward
    K = torch.tensor([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]]).repeat(count, 1, 1)
    cameras = Cameras(T_world_camera=T, K=K, sizes=((width, height),) * count)
    edges = tuple((i, j) for i in range(count) for j in range(count) if i != j)

    def rough(low: float, high: float) -> tuple[Tensor, ...]:
        coarse = torch.rand(count, 1, max(2, height // 32), max(2, width // 32), generator=generator)
        fine = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[:, 0]
        fine = fine + 0.04 * torch.rand(count, *size, generator=generator)
        return tuple(low + (high - low) * fine)

    colours = torch.stack([torch.stack(rough(0.0, 1.0)) for _ in range(3)], dim=3)
    still = torch.zeros(size, dtype=torch.bool)
    apart = torch.tensor([min(abs(i - j), count - abs(i - j)) for i, j in edges])
    details = SceneDetails(
        names=tuple(f"IMG_{view:04d}.jpg" for view in range(count)),
        images=tuple((255 * colours.clamp(0, 1)).to(torch.uint8)),
        masks=(None,) * count,
        source_from_network=(room(1).views.source_from_network[0],) * count,
        focal_px=K[:, 0, 0].clone(),
        depths=rough(2.9, 3.1),
        weights=rough(0.0, 2.0),
        confidences=rough(0.0, 3.0),
        residuals=rough(0.0, 0.5),
        moving=(still,) * count,
        edges=edges,
        overlap=(1.0 - apart / (count / 2)).clamp(min=0.0).float(),
        dropped={},
        losses=tuple(1.0 / (step + 1) for step in range(300)),
        seconds=tuple(float(step) for step in range(300)),
        diagnosis=diagnosis(len(edges), count, unit=3.0),
        learning=None,
        format_version=1,
    )
    points = 5_000 * count
    scene = Scene(
        names=details.names,
        cameras=cameras,
        points=2.0 * torch.rand(points, 3, generator=generator) - 1.0,
        colors=(255 * torch.rand(points, 3, generator=generator)).to(torch.uint8),
        point_weights=torch.ones(points),
        point_views=(torch.arange(points) % count).to(torch.int32),
        provenance={"arm": "robust", "settings": {}, "seconds": {"align": 80.0}},
        format_version=1,
    )
    return scene, details
