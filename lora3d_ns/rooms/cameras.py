"""Hand-held cameras in rooms, pairs of them, and how much two photos have in common."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from lora3d_ns.errors import SettingsError
from lora3d_ns.rooms.domains import RoomDomain
from lora3d_ns.rooms.random_numbers import FloatArray, SceneRandom
from lora3d_ns.rooms.raycast import product
from lora3d_ns.rooms.render import RoomCameras, cast_depth
from lora3d_ns.rooms.scenes import FACE_COUNT, RoomScenes

Split = Literal["calibration", "test"]

_TRY_COUNT = 14
_PROBE_PX = 8
_OVERLAP_PROBE_PX = 20
_SMALLEST_MEDIAN_DEPTH_M = 1.0
# A pixel counts as seen again if the other view's depth there agrees to this share.
_DEPTH_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomPairs:
    """Pairs of views for training.

    Attributes:
        cameras: Views 2k and 2k + 1 are a pair.
        overlap: Share of the first view's pixels that the second sees.
    """

    cameras: RoomCameras
    overlap: Float32[Tensor, "scenes pairs"]


def sample_views(
    scenes: RoomScenes, count: int, *, size: tuple[int, int], split: Split = "calibration", series: int = 0
) -> RoomCameras:
    """Cameras along one hand-held path per room.

    The two splits are taken from the same path, in turns, so test views lie between calibration views.

    Args:
        scenes: The rooms; their domain says how cameras move.
        count: Views per room.
        size: (width, height) in pixels. Portrait and landscape share the focal length: the phone is turned.
        split: Which of the two disjoint sets.
        series: Another number is another path through the same room.

    Returns:
        Cameras on the scenes' device, in the order of the path.

    Raises:
        SettingsError: count is not positive or the size is too small.
    """
    _check_count(count)
    random = SceneRandom(scenes.seed, scenes.indices.tolist())
    phase = {"calibration": 0.25, "test": 0.75}[split]
    moments = np.broadcast_to((np.arange(count) + phase) / count, (len(scenes), count))
    return _place_cameras(scenes, random, moments, f"{split} {count} {series}", size, f"path {series}")


def sample_pairs(
    scenes: RoomScenes,
    pair_count: int,
    *,
    size: tuple[int, int],
    baseline_m: tuple[float, float] = (0.1, 1.5),
    overlap: tuple[float, float] = (0.3, 1.0),
    series: int = 0,
) -> RoomPairs:
    """Pairs of views that have about as much in common as asked for.

    Several second views are tried for each first one; the one kept is, of those within the range of overlap, drawn at
    random, else the nearest to it. A curriculum narrows or widens the two ranges.

    Args:
        scenes: The rooms.
        pair_count: Pairs per room.
        size: (width, height) in pixels.
        baseline_m: Distance between the two cameras, (low, high); taken as it is where there is space.
        overlap: Share of the first view's pixels that the second shall see, (low, high) within 0 and 1.
        series: Another number gives other pairs in the same rooms.

    Raises:
        SettingsError: A count, range or size makes no sense.
    """
    _check_count(pair_count)
    for name, (low, high), limit in (("baseline_m", baseline_m, 3.0), ("overlap", overlap, 1.0)):
        if not 0 <= low <= high <= limit:
            raise SettingsError(f"{name} {(low, high)} is no range", way_out=f"Use 0 <= low <= high <= {limit:g}")
    random = SceneRandom(scenes.seed, scenes.indices.tolist())
    name = f"pairs {pair_count} {series}"
    moments = random.uniform(f"{name} moments", pair_count)
    first = _place_cameras(scenes, random, moments, f"{name} first", size, f"path {name}")
    tries = 6
    wanted = random.uniform(f"{name} overlap", pair_count, low=overlap[0], high=overlap[1])
    draws = random.uniform(f"{name} second", pair_count, tries, 7)
    T_first = first.T_world_camera.double().cpu().numpy()[:, :, None]
    # Step aside by the baseline, mostly horizontally, and look at about the same place from there.
    angle = 2 * np.pi * draws[..., 0]
    step = baseline_m[0] + (baseline_m[1] - baseline_m[0]) * draws[..., 1]
    direction = np.stack([np.cos(angle), np.sin(angle), 0.5 * (draws[..., 2] - 0.5)], axis=-1)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    position = T_first[..., :3, 3] + step[..., None] * direction
    position[..., 2] = np.clip(
        position[..., 2], 0.6, np.asarray(scenes.room_size_m[:, 2].cpu())[:, None, None] - scenes.domain.clearance_m
    )
    focus = T_first[..., :3, 3] + (1.5 + 2.0 * draws[..., 3, None]) * T_first[..., :3, 2]
    turn = np.radians(130.0) * (draws[..., 4] - 0.5) * (1.0 - wanted[..., None])
    heading = _turned(focus - position, turn)
    heading[..., 2] += 0.3 * (draws[..., 5] - 0.5)
    roll = np.radians(scenes.domain.roll_deg) * (2 * draws[..., 6] - 1)
    T_tries = torch.from_numpy(_look_along(position, heading, roll).astype(np.float32)).to(scenes.device)
    chosen, overlap_chosen = _choose_second(scenes, first, T_tries, wanted, overlap)
    keys, factors = _photo_draws(scenes, random, f"{name} second", pair_count)

    cameras = RoomCameras(
        K=_interleaved(first.K, first.K),
        T_world_camera=_interleaved(first.T_world_camera, chosen),
        time=_interleaved(first.time, first.time),
        exposure_factor=_interleaved(first.exposure_factor, factors),
        photo_key=_interleaved(first.photo_key, keys),
        width=size[0],
        height=size[1],
    )
    return RoomPairs(cameras=cameras, overlap=overlap_chosen)


def pairwise_overlap(
    depth_m: Float32[Tensor, "scenes views height width"],
    K: Float32[Tensor, "scenes views 3 3"],
    T_world_camera: Float32[Tensor, "scenes views 4 4"],
) -> Float32[Tensor, "scenes views views"]:
    """Entry (i, j) is the share of view i's pixels whose surface point view j sees.

    A point is seen if it projects into the photo and the depth of the four pixels around its projection encloses its
    own depth to 2 %. The matrix is not symmetric: a close-up lies wholly in a wide view, but not the reverse.
    """
    view_count = depth_m.shape[1]
    rows = []
    for i in range(view_count):
        others = [
            _share_seen(depth_m[:, i], K[:, i], T_world_camera[:, i], depth_m[:, j], K[:, j], T_world_camera[:, j])
            for j in range(view_count)
        ]
        rows.append(torch.stack(others, dim=1))
    return torch.stack(rows, dim=1)


def clearance_m(
    scenes: RoomScenes, position_world_m: Float32[Tensor, "scenes points 3"], time: Float32[Tensor, "scenes points"]
) -> Float32[Tensor, "scenes points"]:
    """Distance from points to the nearest wall or bounding box of a solid; 0 inside a box, negative outside the room.

    Never more than the distance to the nearest surface.
    """
    solids = slice(FACE_COUNT, None)
    moved = scenes.displacement_m[:, None] * (time - 0.5)[..., None]
    offset = position_world_m[:, :, None] - scenes.center_world_m[:, None, solids]
    offset = offset - moved[:, :, None] * scenes.moving[:, None, solids, None]
    local = product(scenes.R_world_object[:, None, solids].mT, offset[..., None])[..., 0]
    outside = (local.abs() - scenes.half_size_m[:, None, solids]).clamp_min(0.0)
    distance = outside.square().sum(dim=-1).sqrt() + (~scenes.valid[:, None, solids]) * 1e3
    walls = 0.5 * scenes.room_size_m[:, None, :2] - position_world_m[..., :2].abs()
    ceiling = scenes.room_size_m[:, None, 2] - position_world_m[..., 2]
    nearest = torch.minimum(distance.amin(dim=-1), walls.amin(dim=-1))
    return torch.minimum(nearest, torch.minimum(position_world_m[..., 2], ceiling))


def _check_count(count: int) -> None:
    if count < 1:
        raise SettingsError(f"{count} views make no set", way_out="Ask for at least one")


def _place_cameras(
    scenes: RoomScenes, random: SceneRandom, moments: FloatArray, purpose: str, size: tuple[int, int], path: str
) -> RoomCameras:
    """Cameras at moments [scenes, views] of the path, moved where something is in the way."""
    tries = _path_poses(scenes, random, moments, purpose, path)
    count = moments.shape[1]
    T_tries = torch.from_numpy(tries.astype(np.float32)).to(scenes.device)
    K = _intrinsics(scenes, random, size).to(scenes.device)[:, None].expand(-1, count, -1, -1)
    time = torch.from_numpy(np.array(moments, dtype=np.float32)).to(scenes.device)
    keys, factors = _photo_draws(scenes, random, purpose, count)

    chosen = T_tries[:, :, 0].clone()
    best = torch.full((len(scenes), count), -1e9, device=scenes.device)
    for number in range(_TRY_COUNT):
        pending = best < 0
        rows = pending.any(dim=1).nonzero()[:, 0]
        if len(rows) == 0:
            break
        score = _score(scenes.select(rows.tolist()), T_tries[rows, :, number], K[rows], time[rows], size)
        better = pending[rows] & (score > best[rows])
        best[rows] = torch.where(better, score, best[rows])
        chosen[rows] = torch.where(better[..., None, None], T_tries[rows, :, number], chosen[rows])
    return RoomCameras(
        K=K.contiguous(),
        T_world_camera=chosen,
        time=time,
        exposure_factor=factors,
        photo_key=keys,
        width=size[0],
        height=size[1],
    )


def _score(scenes: RoomScenes, T_world_camera: Tensor, K: Tensor, time: Tensor, size: tuple[int, int]) -> Tensor:
    """How far a camera is from breaking a rule, [scenes, views]; >= 0 if it breaks none."""
    free = clearance_m(scenes, T_world_camera[..., :3, 3], time) - scenes.domain.clearance_m
    depth = cast_depth(scenes, _probe(K, T_world_camera, time, size, _PROBE_PX)).flatten(2)
    close = depth.amin(dim=-1) - scenes.domain.clearance_m
    blocked = depth.median(dim=-1).values - _SMALLEST_MEDIAN_DEPTH_M
    # Being too close counts more than a poor view.
    return 10.0 * torch.minimum(free, close).clamp_max(0.0) + blocked.clamp_max(0.0)


def _probe(K: Tensor, T_world_camera: Tensor, time: Tensor, size: tuple[int, int], side_px: int) -> RoomCameras:
    """The same cameras with side_px x side_px pixels."""
    scale = K.new_tensor([side_px / size[0], side_px / size[1], 1.0])[:, None]
    zero = torch.zeros_like(time)
    return RoomCameras(
        K=K * scale,
        T_world_camera=T_world_camera,
        time=time,
        exposure_factor=zero,
        photo_key=zero.to(torch.int64),
        width=side_px,
        height=side_px,
    )


def _photo_draws(scenes: RoomScenes, random: SceneRandom, purpose: str, count: int) -> tuple[Tensor, Tensor]:
    keys = torch.from_numpy(random.integers(f"{purpose} photo keys", count, high=2**31 - 1))
    jitter = scenes.domain.exposure_jitter
    factors = 1.0 + jitter * random.uniform(f"{purpose} exposure", count, low=-1.0)
    return keys.to(scenes.device), torch.from_numpy(factors.astype(np.float32)).to(scenes.device)


def _intrinsics(scenes: RoomScenes, random: SceneRandom, size: tuple[int, int]) -> Tensor:
    """One lens per room, [scenes, 3, 3]."""
    low, high = scenes.domain.fov_deg
    fov = np.radians(random.uniform("field of view", low=low, high=high))
    K = np.zeros((len(scenes), 3, 3))
    K[:, 0, 0] = K[:, 1, 1] = 0.5 * max(size) / np.tan(0.5 * fov)
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = 0.5 * size[0], 0.5 * size[1], 1.0
    return torch.from_numpy(K.astype(np.float32))


def _path_poses(scenes: RoomScenes, random: SceneRandom, moments: FloatArray, purpose: str, path: str) -> FloatArray:
    """Poses to be tried, [scenes, views, tries, 4, 4]: the path's own first, then ever further from it."""
    domain: RoomDomain = scenes.domain
    count = moments.shape[1]
    width, depth, height = scenes.room_size_m.double().cpu().numpy().T[:, :, None, None]
    draws = random.uniform(path, 10)[:, :, None, None]
    jitter = random.uniform(f"{purpose} jitter", count, _TRY_COUNT, 8, low=-1.0)
    # The path itself wavers little; later tries leave it.
    number = np.arange(_TRY_COUNT)[None, None]
    waver = np.maximum(number / 3.0, 0.0)

    target_x = width * 0.2 * (draws[:, 0] - 0.5)
    target_y = depth * (0.1 + 0.16 * (draws[:, 1] - 0.5))
    span = np.radians(_scaled(draws[:, 2], domain.orbit_span_deg)) * np.where(draws[:, 3] < 0.5, 1.0, -1.0)
    pan = np.radians(_scaled(draws[:, 4], domain.pan_span_deg)) * np.where(draws[:, 3] < 0.5, 1.0, -1.0)
    phase = moments[..., None] - 0.5
    azimuth = np.radians(40.0) * (draws[:, 5] - 0.5) + span * phase + 0.12 * waver * jitter[..., 0]
    sin, cos = np.sin(azimuth), np.cos(azimuth)
    # The longest way from the target in this direction that stays in the part of the room that cameras walk in.
    to_side = (0.5 * width - 0.55 - np.sign(sin) * target_x) / np.maximum(np.abs(sin), 1e-3)
    to_back = (target_y + 0.5 * depth - 0.5) / np.maximum(cos, 1e-3)
    to_front = (0.1 * depth) / np.maximum(-cos, 1e-3)
    reach = np.minimum(np.minimum(to_side, to_back), to_front)
    radius = reach * _scaled(draws[:, 6], domain.distance_share) * (1.0 - 0.06 * waver)
    sway = domain.position_jitter_m * (1.0 + 0.5 * waver)
    position = np.stack(
        [
            target_x + radius * sin + sway * jitter[..., 1],
            target_y - radius * cos + sway * jitter[..., 2],
            _scaled(draws[:, 7], domain.camera_height_m)
            + 0.12 * np.sin(2 * np.pi * (moments[..., None] + draws[:, 8]))
            + 0.5 * domain.position_jitter_m * jitter[..., 3],
        ],
        axis=-1,
    )
    position[..., 2] = np.clip(position[..., 2], 0.8, height - domain.clearance_m - 0.1)
    # The last tries ignore the path: anywhere in the free southern part.
    free = np.stack([0.22 * width * jitter[..., 1], depth * (-0.28 + 0.08 * jitter[..., 2]), position[..., 2]], axis=-1)
    position = np.where((number >= _TRY_COUNT // 2)[..., None], free, position)
    aim = np.stack(np.broadcast_arrays(target_x, target_y, 0.6 + 0.45 * draws[:, 9]), axis=-1)
    aim = aim + domain.aim_jitter_m * jitter[..., 4:7] * np.array([1.0, 1.0, 0.6])
    heading = _turned(aim - position, pan * phase)
    return _look_along(position, heading, np.radians(domain.roll_deg) * jitter[..., 7])


def _scaled(draw: FloatArray, low_high: tuple[float, float]) -> FloatArray:
    return low_high[0] + (low_high[1] - low_high[0]) * draw


def _interleaved(left: Tensor, right: Tensor) -> Tensor:
    """The views of both, in turns."""
    return torch.stack([left, right.to(left)], dim=2).flatten(1, 2)


def _turned(heading: FloatArray, angle_rad: FloatArray) -> FloatArray:
    """Directions turned about the vertical."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    x, y, z = heading[..., 0], heading[..., 1], heading[..., 2]
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=-1)


def _look_along(position: FloatArray, heading: FloatArray, roll_rad: FloatArray) -> FloatArray:
    """Poses T_world_camera [..., 4, 4] of cameras that look along a heading, upright but for the roll."""
    forward = heading / np.linalg.norm(heading, axis=-1, keepdims=True)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll_rad)[..., None], np.sin(roll_rad)[..., None]
    T_world_camera = np.zeros((*position.shape[:-1], 4, 4))
    T_world_camera[..., :3, 0] = cos * right + sin * down
    T_world_camera[..., :3, 1] = cos * down - sin * right
    T_world_camera[..., :3, 2] = forward
    T_world_camera[..., :3, 3] = position
    T_world_camera[..., 3, 3] = 1.0
    return T_world_camera


def _choose_second(
    scenes: RoomScenes, first: RoomCameras, T_tries: Tensor, wanted: FloatArray, overlap: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """The best second view of each pair, and the overlap it has."""
    scene_count, pair_count, try_count = T_tries.shape[:3]
    size = (first.width, first.height)
    probe = _probe(first.K, first.T_world_camera, first.time, size, _OVERLAP_PROBE_PX)
    depth_first = cast_depth(scenes, probe)
    target = torch.from_numpy(wanted.astype(np.float32)).to(scenes.device)
    # The first view itself is the last resort: no parallax, but nothing impossible either.
    best_score = torch.full((scene_count, pair_count), -3.0, device=scenes.device)
    best_T, best_overlap = first.T_world_camera.clone(), torch.ones_like(best_score)
    for number in range(try_count):
        T_second = T_tries[:, :, number]
        second = _probe(first.K, T_second, first.time, size, _OVERLAP_PROBE_PX)
        depth_second = cast_depth(scenes, second)
        share = _share_seen(
            depth_first.flatten(0, 1),
            probe.K.flatten(0, 1),
            probe.T_world_camera.flatten(0, 1),
            depth_second.flatten(0, 1),
            second.K.flatten(0, 1),
            second.T_world_camera.flatten(0, 1),
        ).reshape(scene_count, pair_count)
        free = clearance_m(scenes, T_second[..., :3, 3], first.time) >= scenes.domain.clearance_m
        free = free & (depth_second.flatten(2).amin(dim=-1) >= scenes.domain.clearance_m)
        within = (share >= overlap[0]) & (share <= overlap[1])
        score = within.to(share.dtype) - (share - target).abs() - 10.0 * (~free).to(share.dtype)
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best_overlap = torch.where(better, share, best_overlap)
        best_T = torch.where(better[..., None, None], T_second, best_T)
    return best_T, best_overlap


def _share_seen(
    depth_i: Tensor, K_i: Tensor, T_world_i: Tensor, depth_j: Tensor, K_j: Tensor, T_world_j: Tensor
) -> Tensor:
    """Share of view i's pixels that view j sees, [batch]; depths [batch, height, width]."""
    height, width = depth_j.shape[-2:]
    u, v, z = reproject(depth_i, K_i, T_world_i, K_j, T_world_j)
    inside = (z > 0) & (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
    column, row = (u - 0.5).floor().nan_to_num(0.0), (v - 0.5).floor().nan_to_num(0.0)
    flat = depth_j.flatten(1)
    corners = []
    for step_row in (0, 1):
        for step_column in (0, 1):
            at_row = (row + step_row).clamp(0, height - 1).to(torch.int64)
            at_column = (column + step_column).clamp(0, width - 1).to(torch.int64)
            corners.append(flat.gather(1, (at_row * width + at_column).flatten(1)).reshape(z.shape))
    around = torch.stack(corners)
    seen = (
        inside & (z <= around.amax(dim=0) * (1 + _DEPTH_TOLERANCE)) & (z >= around.amin(dim=0) * (1 - _DEPTH_TOLERANCE))
    )
    return seen.flatten(1).to(torch.float32).mean(dim=1)


def reproject(
    depth_i_m: Float32[Tensor, "batch height width"],
    K_i: Float32[Tensor, "batch 3 3"],
    T_world_i: Float32[Tensor, "batch 4 4"],
    K_j: Float32[Tensor, "batch 3 3"],
    T_world_j: Float32[Tensor, "batch 4 4"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the surface points of view i's pixels lie in view j: x and y in pixels, and depth; [batch, height, width].

    Points behind camera j have a depth <= 0 and meaningless pixels.
    """
    height, width = depth_i_m.shape[-2:]
    u = torch.arange(width, device=depth_i_m.device, dtype=torch.float32) + 0.5
    v = torch.arange(height, device=depth_i_m.device, dtype=torch.float32) + 0.5
    x = (u[None, None] - K_i[:, 0, 2, None, None]) / K_i[:, 0, 0, None, None] * depth_i_m
    y = (v[None, :, None] - K_i[:, 1, 2, None, None]) / K_i[:, 1, 1, None, None] * depth_i_m
    R_j_i = product(T_world_j[:, :3, :3].mT, T_world_i[:, :3, :3])
    t_j_i = product(T_world_j[:, :3, :3].mT, (T_world_i[:, :3, 3] - T_world_j[:, :3, 3])[..., None])[..., 0]
    moved = [
        R_j_i[:, axis, 0, None, None] * x
        + R_j_i[:, axis, 1, None, None] * y
        + R_j_i[:, axis, 2, None, None] * depth_i_m
        + t_j_i[:, axis, None, None]
        for axis in range(3)
    ]
    in_j_x = K_j[:, 0, 0, None, None] * moved[0] / moved[2] + K_j[:, 0, 2, None, None]
    in_j_y = K_j[:, 1, 1, None, None] * moved[1] / moved[2] + K_j[:, 1, 2, None, None]
    return in_j_x, in_j_y, moved[2]
