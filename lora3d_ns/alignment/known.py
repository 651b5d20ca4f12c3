"""What is known beforehand: intrinsics, poses, distances."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lora3d_ns.alignment.settings import KnownDistance
from lora3d_ns.alignment.state import AlignmentState, orthonormal
from lora3d_ns.errors import KnownCameraError, SettingsError
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.types import Cameras, Sim3, Views

_COINCIDENT_SHARE = 1e-3
"""Known cameras closer to each other than this share of the depth fix no scale."""
_SUSPECT_FOCAL_RATIO = 1.6


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownIntrinsics:
    """Focal lengths to begin with, and which of them are known.

    Attributes:
        focal_px: Along x and y, network pixels.
        known: Views whose intrinsics were given.
        warnings: Given ones that the point maps deny.
    """

    focal_px: Float64[Tensor, "views 2"]
    known: frozenset[int]
    warnings: tuple[str, ...]


def intrinsics_to_begin_with(
    views: Views, estimated_px: Float64[Tensor, " views"], groups: Sequence[int]
) -> KnownIntrinsics:
    """Known focal lengths where given; elsewhere the group's, a known one if it has one, else the median estimate.

    Raises:
        KnownCameraError: A given matrix is no matrix of intrinsics.
    """
    known: dict[int, Tensor] = {}
    warnings = []
    for view, (K, name) in enumerate(zip(views.known_K, views.names, strict=True)):
        if K is None:
            continue
        if not bool(torch.isfinite(K).all()) or float(K[0, 0]) <= 0 or float(K[1, 1]) <= 0:
            raise KnownCameraError(
                f"the known intrinsics of {name} are not finite and positive", way_out="Correct them"
            )
        K_network = views.source_from_network[view].K_network_from_source(K.double())
        known[view] = K_network[[0, 1], [0, 1]]
        ratio = float(known[view].mean() / estimated_px[view])
        if not 1.0 / _SUSPECT_FOCAL_RATIO < ratio < _SUSPECT_FOCAL_RATIO:
            warnings.append(
                f"the known focal length of {name} is {ratio:.2g} times what its point maps say; it was used as given"
            )
    scale = torch.tensor([affine.scale_x for affine in views.source_from_network], dtype=torch.float64)
    focal_px = torch.empty(len(views), 2, dtype=torch.float64)
    for group in sorted(set(groups)):
        members = [view for view in range(len(views)) if groups[view] == group]
        given = [float((known[view] * scale[view]).mean()) for view in members if view in known]
        source_px = sum(given) / len(given) if given else float((estimated_px * scale)[members].median())
        for view in members:
            focal_px[view] = known.get(view, torch.full((2,), source_px, dtype=torch.float64) / scale[view])
    return KnownIntrinsics(focal_px=focal_px, known=frozenset(known), warnings=tuple(warnings))


def focal_groups(views: Views, model: str) -> tuple[int, ...]:
    """For each view the number of its group of one focal length."""
    if model == "per_image":
        return tuple(range(len(views)))
    if model == "shared":
        return (0,) * len(views)
    names = list(dict.fromkeys(views.lens_groups))
    return tuple(names.index(group) for group in views.lens_groups)


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownPoses:
    """Known poses, as float64 matrices by view.

    Attributes:
        T_world_camera: The poses.
        fix_scale: Whether two of them are apart, so that they fix the world's unit.
    """

    T_world_camera: dict[int, Tensor]
    fix_scale: bool


def known_poses(views: Views) -> KnownPoses:
    """The poses that were given.

    Raises:
        KnownCameraError: One is no rigid motion.
    """
    found: dict[int, Tensor] = {}
    for view, (T, name) in enumerate(zip(views.known_T_world_camera, views.names, strict=True)):
        if T is None:
            continue
        R = T[:3, :3].double()
        rigid = torch.allclose(R @ R.T, torch.eye(3).double(), atol=1e-3) and float(torch.linalg.det(R)) > 0
        if not bool(torch.isfinite(T).all()) or not rigid:
            raise KnownCameraError(
                f"the known pose of {name} is no rotation and translation", way_out="Correct it, or leave it out"
            )
        found[view] = torch.eye(4, dtype=torch.float64)
        found[view][:3, :3], found[view][:3, 3] = orthonormal(R), T[:3, 3].double()
    centres = torch.stack([T[:3, 3] for T in found.values()]) if found else torch.zeros(0, 3)
    spread = float((centres - centres.mean(dim=0)).norm(dim=1).max()) if len(found) > 1 else 0.0
    return KnownPoses(T_world_camera=found, fix_scale=spread > 0)


def moved_to_known_poses(state: AlignmentState, unit: float, poses: KnownPoses) -> tuple[AlignmentState, float, bool]:
    """The scene laid over the known poses, in their unit where they fix one.

    Each known camera stands for three points, its centre and two on its axes at typical depth, so that one camera fixes
    the frame and two in one place do not fix a scale by accident.

    Returns:
        The state with the known poses put in, its typical depth, and whether the known poses fix the scale.
    """
    if not poses.T_world_camera:
        return state, unit, False
    views = list(poses.T_world_camera)
    ours = state.T_world_camera[views]
    theirs = torch.stack([poses.T_world_camera[view] for view in views])
    baseline = float((ours[:, :3, 3] - ours[:, :3, 3].mean(dim=0)).norm(dim=1).max())
    fixes_scale = poses.fix_scale and baseline > _COINCIDENT_SHARE * unit
    similarity = _similarity_of_cameras(ours, theirs, fixes_scale)
    state, unit = state.moved(similarity), unit * float(similarity.scale)
    T = state.T_world_camera.clone()
    T[views] = theirs
    return (
        AlignmentState(
            T_world_camera=T,
            focal_px=state.focal_px,
            principal_point_px=state.principal_point_px,
            world_from_edge=state.world_from_edge,
        ),
        unit,
        fixes_scale,
    )


def _similarity_of_cameras(ours: Tensor, theirs: Tensor, with_scale: bool) -> Sim3:
    rotation = orthonormal((theirs[:, :3, :3] @ ours[:, :3, :3].mT).sum(dim=0))
    if float(torch.linalg.det(rotation)) < 0:
        # Contradicting orientations: the centres alone decide.
        similarity = weighted_similarity(ours[:, :3, 3], theirs[:, :3, 3], torch.ones(len(ours)).double())
        rotation = similarity.rotation
    turned = ours[:, :3, 3] @ rotation.T
    mean_ours, mean_theirs = turned.mean(dim=0), theirs[:, :3, 3].mean(dim=0)
    scale = torch.ones((), dtype=torch.float64)
    if with_scale:
        a, b = turned - mean_ours, theirs[:, :3, 3] - mean_theirs
        scale = b.norm() / a.norm()
    return Sim3(scale=scale, rotation=rotation, translation=mean_theirs - scale * mean_ours)


def check_distances(distances: Sequence[KnownDistance], views: Views, poses: KnownPoses) -> None:
    """Nothing, if the known distances can be measured and are the only thing that gives the unit.

    Raises:
        SettingsError: They are not.
    """
    for known in distances:
        for name, pixel in ((known.first, known.first_px), (known.second, known.second_px)):
            if name not in views.names:
                raise SettingsError(f"a known distance names the photo {name!r}", way_out="Give a photo of the set")
            if pixel is not None:
                _row_and_column(views, views.names.index(name), pixel)
    if distances and poses.fix_scale:
        raise SettingsError(
            "known poses and known distances both give the scene its unit", way_out="Leave one of them out"
        )


def scale_from_distances(
    distances: Sequence[KnownDistance], views: Views, cameras: Cameras, depths: Sequence[Float32[Tensor, "_ _"]]
) -> float | None:
    """By what to multiply the scene so that the known distances hold: their total over the scene's; None without any.

    Raises:
        SettingsError: The two ends of a distance lie in one place.
    """
    if not distances:
        return None
    measured = 0.0
    for known in distances:
        ends = [
            _world_point(views.names.index(name), pixel, views, cameras, depths)
            for name, pixel in ((known.first, known.first_px), (known.second, known.second_px))
        ]
        length = float((ends[0] - ends[1]).norm())
        if not length > 0:
            raise SettingsError(
                f"the known distance between {known.first} and {known.second} is between one and the same point",
                way_out="Choose two points apart",
            )
        measured += length
    return sum(known.distance for known in distances) / measured


def scaled_about_known_poses(state: AlignmentState, factor: float, poses: KnownPoses) -> AlignmentState:
    """The scene in another unit. The world's origin stays, or the known cameras, which then are all in one place."""
    centre = torch.zeros(3, dtype=torch.float64)
    if poses.T_world_camera:
        centre = torch.stack([T[:3, 3] for T in poses.T_world_camera.values()]).mean(dim=0)
    return state.moved(
        Sim3(
            scale=torch.tensor(factor, dtype=torch.float64),
            rotation=torch.eye(3, dtype=torch.float64),
            translation=(1.0 - factor) * centre,
        )
    )


def _world_point(
    view: int,
    pixel: tuple[float, float] | None,
    views: Views,
    cameras: Cameras,
    depths: Sequence[Tensor],
) -> Tensor:
    T = cameras.T_world_camera[view].double()
    if pixel is None:
        return T[:3, 3]
    source = torch.tensor([*pixel, 1.0], dtype=torch.float64)
    ray = torch.linalg.inv(cameras.K[view].double()) @ source
    return T[:3, :3] @ (float(depths[view][_row_and_column(views, view, pixel)]) * ray) + T[:3, 3]


def _row_and_column(views: Views, view: int, pixel: tuple[float, float]) -> tuple[int, int]:
    """The network pixel in which a source pixel lies."""
    source = torch.tensor(pixel, dtype=torch.float64)
    x, y = views.source_from_network[view].network_from_source(source).floor().tolist()
    height, width = views.shapes[view]
    if not (0 <= x < width and 0 <= y < height):
        raise SettingsError(
            f"pixel {pixel} lies outside what is used of {views.names[view]}", way_out="Choose a pixel inside"
        )
    return int(y), int(x)
