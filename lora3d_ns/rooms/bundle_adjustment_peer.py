"""The peer of our refinement of cameras by matches: bundle adjustment by pycolmap, on the same tracks.

It starts from the cameras of an alignment without matches and does what is customary: triangulate, adjust with a robust
loss, drop what still is far off, adjust again. All errors are in network pixels, as ours are.
"""

import time
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.alignment.matches import Matches
from lora3d_ns.alignment.tracks import Tracks, build_tracks
from lora3d_ns.errors import InvalidDataError, MissingPackageError
from lora3d_ns.types import Cameras, Views

LOSS_SCALE_PX = 1.0
"""Of the Cauchy loss."""
FARTHEST_PX = 4.0
"""Observations with a larger error after the first round have no part in the second."""
MOST_ITERATIONS = 1000
"""Of each round. pycolmap's default of 100 ends many adjustments from such starts before they have converged."""
FOCAL_RANGE = (0.1, 10.0)
"""Focal lengths beyond this share of the photo's longer side are nonsense, as in COLMAP's own reconstructions."""
_PARALLEL = 1e-9
"""Smallest eigenvalue of a track's equations, per ray, below which its rays count as parallel."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BundleAdjusted:
    """Cameras after bundle adjustment.

    Attributes:
        cameras: In the world of the start, whose first camera with tracks has not moved. The start itself where no
            track could be triangulated, or where the adjustment failed or ran away to a nonsensical focal length.
        seconds: Tracks, triangulation and both rounds; without the import of pycolmap.
        observations: Matched pixels of the second round whose points are before their cameras in the end.
        mean_error_before_px, mean_error_after_px: Their mean reprojection error in network pixels, from the start's
            cameras with triangulated points and from the adjusted ones; None without observations.
    """

    cameras: Cameras
    seconds: float
    observations: int
    mean_error_before_px: float | None
    mean_error_after_px: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Structure:
    """Cameras without principal point, and points: what is adjusted."""

    T_world_camera: Float64[Tensor, "views 4 4"]
    focal_px: Float64[Tensor, " views"]
    points: Float64[Tensor, "tracks 3"]


def bundle_adjusted_cameras(views: Views, start: Cameras, matches: Matches) -> BundleAdjusted:
    """Cameras that pycolmap's bundle adjustment makes of tracks; poses and focal lengths are refined.

    Photos of one lens group share a focal length, and keep their principal points. The loss is Cauchy's.

    Args:
        views: The photos.
        start: Their cameras, from an alignment without matches.
        matches: Of these views; joined into tracks as for our own refinement.

    Raises:
        InvalidDataError: There is not one camera for each photo.
        MissingPackageError: pycolmap is not installed.
    """
    try:
        import pycolmap  # noqa: F401 (before the clock starts)
    except ImportError as error:
        raise MissingPackageError(
            "bundle adjustment needs pycolmap", way_out="Install it with `pip install pycolmap`"
        ) from error
    if len(start) != len(views):
        raise InvalidDataError(f"{len(start)} cameras for {len(views)} photos", way_out="Align these photos first")
    begun = time.perf_counter()
    scale = _source_px_per_px(views)
    tracks = _centred_tracks(build_tracks(matches, len(views)), views, start, scale)
    focal_px = start.K[:, [0, 1], [0, 1]].double().mean(dim=1) / scale
    for group in set(views.lens_groups):
        members = [view for view, of in enumerate(views.lens_groups) if of == group]
        focal_px[members] = focal_px[members].mean()
    first = _triangulated(tracks, start.T_world_camera.double(), focal_px)
    structure, seen = first, tracks
    for farthest_px in (torch.inf, FARTHEST_PX):
        seen = _select(seen, _errors_px(seen, structure) < farthest_px)
        adjusted = _adjusted(seen, structure, views.lens_groups) if len(seen.view) else None
        if adjusted is None or not _plausible(adjusted, views):
            seconds = time.perf_counter() - begun
            return BundleAdjusted(
                cameras=start, seconds=seconds, observations=0, mean_error_before_px=None, mean_error_after_px=None
            )
        structure = adjusted
    # The adjustment does not keep points from passing behind a camera, where they have no error.
    seen = _select(seen, torch.isfinite(_errors_px(seen, structure)))
    K = start.K.clone()
    K[:, 0, 0] = K[:, 1, 1] = (structure.focal_px * scale).to(K)
    cameras = replace(start, T_world_camera=structure.T_world_camera.to(start.T_world_camera), K=K)
    return BundleAdjusted(
        cameras=cameras,
        seconds=time.perf_counter() - begun,
        observations=len(seen.view),
        mean_error_before_px=float(_errors_px(seen, first).mean()) if len(seen.view) else None,
        mean_error_after_px=float(_errors_px(seen, structure).mean()) if len(seen.view) else None,
    )


def _source_px_per_px(views: Views) -> Float64[Tensor, " views"]:
    """Source pixels per pixel of the adjustment: those of the network, one size for all photos of a lens group."""
    first = {group: views.lens_groups.index(group) for group in views.lens_groups}
    return torch.tensor(
        [views.source_from_network[first[group]].scale_x for group in views.lens_groups], dtype=torch.float64
    )


def _centred_tracks(tracks: Tracks, views: Views, cameras: Cameras, scale: Tensor) -> Tracks:
    """The tracks with square pixels counted from the principal point."""
    centred = tracks.pixel.clone()
    for view, affine in enumerate(views.source_from_network):
        chosen = tracks.view == view
        source_px = affine.source_from_network(tracks.pixel[chosen])
        centred[chosen] = (source_px - cameras.K[view, :2, 2].double()) / scale[view]
    return replace(tracks, pixel=centred)


def _triangulated(tracks: Tracks, T_world_camera: Tensor, focal_px: Tensor) -> _Structure:
    """The points nearest to all rays of each track, NaN where these are parallel."""
    R, centre = T_world_camera[tracks.view, :3, :3], T_world_camera[tracks.view, :3, 3]
    slopes = tracks.pixel / focal_px[tracks.view, None]
    rays = (R @ torch.cat([slopes, torch.ones_like(slopes[:, :1])], dim=1)[..., None])[..., 0]
    rays = rays / rays.norm(dim=1, keepdim=True)
    across = torch.eye(3, dtype=torch.float64) - rays[:, :, None] * rays[:, None]
    count = len(tracks)
    A = torch.zeros(count, 3, 3, dtype=torch.float64).index_add_(0, tracks.track, across)
    b = torch.zeros(count, 3, dtype=torch.float64).index_add_(0, tracks.track, (across @ centre[..., None])[..., 0])
    rays_of = torch.bincount(tracks.track, minlength=count)
    parallel = torch.linalg.eigvalsh(A)[:, 0] < _PARALLEL * rays_of
    A[parallel] = torch.eye(3, dtype=torch.float64)
    points = torch.where(parallel[:, None], torch.nan, torch.linalg.solve(A, b))
    return _Structure(T_world_camera=T_world_camera, focal_px=focal_px, points=points)


def _errors_px(tracks: Tracks, structure: _Structure) -> Float64[Tensor, " observations"]:
    """Reprojection errors; NaN, which is below no threshold, where the point is not before the camera."""
    T = structure.T_world_camera[tracks.view]
    camera = (T[:, :3, :3].mT @ (structure.points[tracks.track] - T[:, :3, 3])[..., None])[..., 0]
    seen_px = structure.focal_px[tracks.view, None] * camera[:, :2] / camera[:, 2:]
    return torch.where(camera[:, 2] > 0, (seen_px - tracks.pixel).norm(dim=1), torch.nan)


def _plausible(structure: _Structure, views: Views) -> bool:
    long_side_px = torch.tensor([max(shape) for shape in views.shapes], dtype=torch.float64)
    ratio = structure.focal_px / long_side_px
    return bool(((ratio > FOCAL_RANGE[0]) & (ratio < FOCAL_RANGE[1])).all())


def _select(tracks: Tracks, chosen: Tensor) -> Tracks:
    """The chosen observations of tracks that keep two or more; tracks keep their numbers."""
    counts = torch.bincount(tracks.track[chosen], minlength=len(tracks))
    chosen = chosen & (counts[tracks.track] >= 2)
    return Tracks(view=tracks.view[chosen], track=tracks.track[chosen], pixel=tracks.pixel[chosen])


def _adjusted(tracks: Tracks, structure: _Structure, lens_groups: tuple[str, ...]) -> _Structure | None:
    """The structure after one bundle adjustment by pycolmap; None where it failed."""
    import pycolmap

    reconstruction = pycolmap.Reconstruction()
    config = pycolmap.BundleAdjustmentConfig()
    camera_ids = {group: number for number, group in enumerate(dict.fromkeys(lens_groups), start=1)}
    for group, camera_id in camera_ids.items():
        focal_px = float(structure.focal_px[lens_groups.index(group)])
        # Pixels are counted from the principal point, so size and centre are 0 here for all photos alike.
        camera = pycolmap.Camera(
            camera_id=camera_id, model="SIMPLE_PINHOLE", width=0, height=0, params=[focal_px, 0.0, 0.0]
        )
        reconstruction.add_camera_with_trivial_rig(camera)
    place = torch.zeros_like(tracks.view)
    used = torch.unique(tracks.view).tolist()
    for view in used:
        chosen = tracks.view == view
        place[chosen] = torch.arange(int(chosen.sum()))
        image = pycolmap.Image(
            name=f"{view}",
            keypoints=tracks.pixel[chosen].numpy(),
            camera_id=camera_ids[lens_groups[view]],
            image_id=view + 1,
        )
        T_camera_world = torch.linalg.inv(structure.T_world_camera[view])
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(T_camera_world[:3].numpy()))
        config.add_image(view + 1)
    config.set_constant_rig_from_world_pose(reconstruction.images[used[0] + 1].frame_id)
    # Nothing else holds the scale: where wrong matches pull, it runs away until no step can be computed.
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    seen_in: dict[int, list[pycolmap.TrackElement]] = {}
    for view, track, index in torch.stack([tracks.view, tracks.track, place], dim=1).tolist():
        seen_in.setdefault(track, []).append(pycolmap.TrackElement(view + 1, index))
    point_ids = {
        track: reconstruction.add_point3D(structure.points[track].numpy(), pycolmap.Track(elements))
        for track, elements in seen_in.items()
    }

    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = LOSS_SCALE_PX
    options.ceres.solver_options.num_threads = torch.get_num_threads()
    options.ceres.solver_options.max_num_iterations = MOST_ITERATIONS
    level = pycolmap.logging.minloglevel
    try:
        # Steps that could not be computed are tried again, shorter: nothing to warn of.
        pycolmap.logging.minloglevel = int(pycolmap.logging.Level.ERROR)
        summary = pycolmap.create_default_bundle_adjuster(options, config, reconstruction).solve()
    finally:
        pycolmap.logging.minloglevel = level
    if not summary.is_solution_usable():
        return None

    T_world_camera, focal, points = (value.clone() for value in vars(structure).values())
    for view in used:
        T_camera_world = torch.eye(4, dtype=torch.float64)
        T_camera_world[:3] = torch.from_numpy(reconstruction.images[view + 1].cam_from_world().matrix())
        T_world_camera[view] = torch.linalg.inv(T_camera_world)
    for view, group in enumerate(lens_groups):
        focal[view] = reconstruction.cameras[camera_ids[group]].focal_length
    for track, point_id in point_ids.items():
        points[track] = torch.from_numpy(reconstruction.points3D[point_id].xyz)
    if not bool(torch.isfinite(T_world_camera).all()):
        return None
    return _Structure(T_world_camera=T_world_camera, focal_px=focal, points=points)
