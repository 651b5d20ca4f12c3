"""Photos of rooms with exact depth, normals and object numbers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lora3d_ns.errors import SettingsError
from lora3d_ns.rooms.materials import COLUMN_INDEX
from lora3d_ns.rooms.primitives import ROOM_FACE, SOLID_KINDS, unit_normals
from lora3d_ns.rooms.raycast import ViewBatch, first_hits, lit_by, product, view_batch
from lora3d_ns.rooms.scenes import LIGHT_COUNT, RoomScenes
from lora3d_ns.rooms.textures import SurfacePoints, albedo

# Rays handled at once: small enough for the host's caches, large enough to keep a GPU busy.
_RAYS_PER_CHUNK_HOST = 2**16
_RAYS_PER_CHUNK_GPU = 2**21
_LIGHT_SOFTENING_M2 = 1.5
_WHITE_SIGNAL = 3.0


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomCameras:
    """Cameras in rooms, all photos of one size.

    Attributes:
        K: Intrinsics in pixels, pixel centres at +0.5.
        T_world_camera: Poses in the rooms' world frame (metres, z up), OpenCV axes.
        time: Moment of each photo in 0 to 1; matters where something moves.
        exposure_factor: Relative exposure of each photo.
        photo_key: Names the photo's noise.
        width, height: Size of the photos in pixels.
    """

    K: Float32[Tensor, "scenes views 3 3"]
    T_world_camera: Float32[Tensor, "scenes views 4 4"]
    time: Float32[Tensor, "scenes views"]
    exposure_factor: Float32[Tensor, "scenes views"]
    photo_key: Int64[Tensor, "scenes views"]
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 8 or self.height < 8:
            raise SettingsError(
                f"photos of {self.width} x {self.height} pixels are too small", way_out="Ask for at least 8 x 8"
            )

    @property
    def view_count(self) -> int:
        """Views per scene."""
        return self.K.shape[1]

    def select_views(self, views: list[int]) -> "RoomCameras":
        """The same views of every scene, in that order."""
        return RoomCameras(
            K=self.K[:, views],
            T_world_camera=self.T_world_camera[:, views],
            time=self.time[:, views],
            exposure_factor=self.exposure_factor[:, views],
            photo_key=self.photo_key[:, views],
            width=self.width,
            height=self.height,
        )

    def to(self, device: torch.device | str) -> "RoomCameras":
        """The same cameras on another device."""
        return RoomCameras(
            K=self.K.to(device),
            T_world_camera=self.T_world_camera.to(device),
            time=self.time.to(device),
            exposure_factor=self.exposure_factor.to(device),
            photo_key=self.photo_key.to(device),
            width=self.width,
            height=self.height,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomRenders:
    """Photos with their truth.

    Attributes:
        rgb: sRGB in 0 to 1.
        depth_m: Depth along the viewing axis at pixel centres; finite and positive everywhere.
        normals_world: Unit normals of the surfaces at pixel centres, facing the camera.
        object_ids: What is seen: 0 to 5 the room's faces, then posters, rug and pieces of furniture.
        moving: Pixels of what moves between the photos.
        K, T_world_camera: The cameras, as in `RoomCameras`.
    """

    rgb: Float32[Tensor, "scenes views height width 3"]
    depth_m: Float32[Tensor, "scenes views height width"]
    normals_world: Float32[Tensor, "scenes views height width 3"]
    object_ids: Int64[Tensor, "scenes views height width"]
    moving: Bool[Tensor, "scenes views height width"]
    K: Float32[Tensor, "scenes views 3 3"]
    T_world_camera: Float32[Tensor, "scenes views 4 4"]


def render(scenes: RoomScenes, cameras: RoomCameras, *, supersample: int = 1) -> RoomRenders:
    """Photograph rooms.

    The truth (depth, normals, ids) is that of the rays through pixel centres. Noise depends on the photo's key, so the
    same cameras give the same photos again.

    Args:
        scenes: The rooms.
        cameras: Cameras of each room.
        supersample: Rays per pixel along each axis for the colours: 1 is fast, 2 or 3 smooths the edges of objects.

    Returns:
        Photos and truth on the scenes' device.

    Raises:
        SettingsError: Scenes and cameras do not fit together, or supersample is not positive.
    """
    _check_match(scenes, cameras)
    if supersample < 1:
        raise SettingsError(f"supersample must be at least 1, not {supersample}", way_out="Use 1, 2 or 3")
    images: list[list[Tensor]] = [[], [], [], []]
    for rows, views in _chunks(scenes, cameras, supersample):
        depth, surface = first_hits(views)
        shaded = _Shading(scenes, rows, views, depth, surface)
        normals = torch.stack([views.untile(component) for component in shaded.normal_world], dim=-1)
        if supersample == 1:
            radiance = _image(views, shaded.radiance())
        else:
            fine = _refined(views, supersample)
            fine_radiance = _image(fine, _Shading(scenes, rows, fine, *first_hits(fine)).radiance())
            radiance = F.avg_pool2d(fine_radiance, supersample)
        view_rows = torch.arange(len(rows.scene), device=scenes.device)
        surfaces = views.untile(surface).to(torch.int64)
        table = scenes.object_id[rows.scene]
        ids = table[view_rows[:, None, None], surfaces]
        for image, made in zip(
            images, (_photo(scenes, rows, radiance), views.untile(depth), normals, ids), strict=True
        ):
            image.append(made)
    shape = (len(scenes), cameras.view_count)
    rgb, depth_m, normals_world, object_ids = (torch.cat(parts).unflatten(0, shape) for parts in images)
    moving_ids = torch.tensor(scenes.moving_object_ids, dtype=torch.int64, device=scenes.device)
    return RoomRenders(
        rgb=rgb,
        depth_m=depth_m,
        normals_world=normals_world,
        object_ids=object_ids,
        moving=torch.isin(object_ids, moving_ids),
        K=cameras.K,
        T_world_camera=cameras.T_world_camera,
    )


def cast_depth(scenes: RoomScenes, cameras: RoomCameras) -> Float32[Tensor, "scenes views height width"]:
    """Depth only, the same as `render` gives."""
    _check_match(scenes, cameras)
    parts = [views.untile(first_hits(views)[0]) for _, views in _chunks(scenes, cameras, 1)]
    return torch.cat(parts).unflatten(0, (len(scenes), cameras.view_count))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Of each view of a chunk: its scene, exposure and noise."""

    scene: Tensor
    exposure_factor: Tensor
    photo_key: Tensor


def _check_match(scenes: RoomScenes, cameras: RoomCameras) -> None:
    if len(scenes) != len(cameras.K):
        raise SettingsError(
            f"{len(scenes)} scenes and cameras for {len(cameras.K)}", way_out="Give cameras drawn for these scenes"
        )
    if scenes.device != cameras.K.device:
        raise SettingsError(
            f"scenes are on {scenes.device}, cameras on {cameras.K.device}", way_out="Move both to one device"
        )


def _chunks(scenes: RoomScenes, cameras: RoomCameras, supersample: int) -> Iterator[tuple[_Rows, ViewBatch]]:
    limit = _RAYS_PER_CHUNK_HOST if scenes.device.type == "cpu" else _RAYS_PER_CHUNK_GPU
    views_at_once = max(1, limit // (cameras.width * cameras.height * supersample**2))
    scene_rows = torch.arange(len(scenes), device=scenes.device).repeat_interleave(cameras.view_count)
    K, T_world_camera, time = cameras.K.flatten(0, 1), cameras.T_world_camera.flatten(0, 1), cameras.time.flatten()
    exposure_factor, photo_key = cameras.exposure_factor.flatten(), cameras.photo_key.flatten()
    for start in range(0, len(scene_rows), views_at_once):
        part = slice(start, start + views_at_once)
        rows = _Rows(scene_rows[part], exposure_factor[part], photo_key[part])
        size = (cameras.width, cameras.height)
        yield rows, view_batch(scenes, rows.scene, T_world_camera[part], K[part], time[part], size)


def _refined(views: ViewBatch, factor: int) -> ViewBatch:
    """The same views with `factor` times as many pixels along each axis."""
    scale = views.K.new_tensor([factor, factor, 1.0])[:, None]
    changed = {**vars(views), "K": views.K * scale}
    return ViewBatch(**{**changed, "width": views.width * factor, "height": views.height * factor})


def _image(views: ViewBatch, channels: list[Tensor]) -> Tensor:
    """[views, channels, height, width]."""
    return torch.stack([views.untile(channel) for channel in channels], dim=1)


class _Shading:
    """Light and colour of the points that a batch of views sees; all of [tiles, pixels of a tile]."""

    def __init__(self, scenes: RoomScenes, rows: _Rows, views: ViewBatch, depth: Tensor, surface: Tensor) -> None:
        self._scenes, self._rows, self._views = scenes, rows, views
        shape = (len(views.K), views.tile_rows, views.tile_columns, views.tile_px, views.tile_px)
        x = views.columns_camera()[:, None, :, None, :].expand(shape).reshape(views.tile_count, -1)
        y = views.rows_camera()[:, :, None, :, None].expand(shape).reshape(views.tile_count, -1)
        self._x, self._y, self._depth = x, y, depth
        # Everything about a surface that its pixels need, one column per number, gathered in one go.
        R_object_world = views.R_world_object.mT
        R_object_camera = product(R_object_world, views.R_world_camera[:, None])
        origin_object = product(R_object_world, (views.origin_world_m[:, None] - views.center_world_m)[..., None])
        table = torch.cat(
            [
                R_object_camera.flatten(2),
                origin_object[..., 0],
                views.R_world_object.flatten(2),
                views.half_size_m,
                views.taper[..., None],
                views.kind[..., None].to(torch.float32),
                scenes.materials[rows.scene],
            ],
            dim=-1,
        )
        surface_count = views.kind.shape[1]
        index = surface + (views.view_of_tile()[:, None] * surface_count).to(torch.int32)
        columns = table.flatten(0, 1).T.contiguous().index_select(1, index.flatten()).unflatten(1, x.shape)
        R, origin, R_out, half = columns[0:9], columns[9:12], columns[12:21], columns[21:24]
        self._materials = columns[26:]
        scaled_x, scaled_y = x * depth, y * depth

        object_x, object_y, object_z = (
            R[3 * axis] * scaled_x + R[3 * axis + 1] * scaled_y + R[3 * axis + 2] * depth + origin[axis]
            for axis in range(3)
        )
        self._object = (object_x, object_y, object_z)
        normal = self._normal_object(columns[25], half, columns[24])
        self.normal_world = tuple(
            R_out[3 * axis] * normal[0] + R_out[3 * axis + 1] * normal[1] + R_out[3 * axis + 2] * normal[2]
            for axis in range(3)
        )
        R_view, origin_view = views.R_world_camera, views.origin_world_m
        world_x, world_y, world_z = (
            views.per_ray(R_view[:, axis, 0]) * scaled_x
            + views.per_ray(R_view[:, axis, 1]) * scaled_y
            + views.per_ray(R_view[:, axis, 2]) * depth
            + views.per_ray(origin_view[:, axis])
            for axis in range(3)
        )
        self.world_m = (world_x, world_y, world_z)

    def _normal_object(self, kind: Tensor, half: Tensor, taper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normals = torch.zeros((3, kind.numel()), device=kind.device)
        flat_kind, flat_half, flat_taper = kind.flatten(), half.flatten(1), taper.flatten()
        points = [component.flatten() for component in self._object]
        for number in (*SOLID_KINDS, ROOM_FACE):
            where = (flat_kind == number).nonzero()[:, 0]
            if len(where) == 0:
                continue
            sizes = flat_half[:, where]
            unit = (points[0][where] / sizes[0], points[1][where] / sizes[1], points[2][where] / sizes[2])
            normals[:, where] = torch.stack(unit_normals(number, unit, flat_taper[where])) / sizes
        length = (normals * normals).sum(dim=0).clamp_min(1e-20).sqrt()
        x, y, z = (normals / length).unflatten(1, kind.shape)
        return x, y, z

    def radiance(self) -> list[Tensor]:
        """Linear red, green and blue that reach the camera."""
        views, scenes, rows = self._views, self._scenes, self._rows
        nx, ny, nz = self.normal_world
        # Cosine between normal and ray, for the size of a pixel on the surface; softened, since it is no ellipse here.
        px, py, pz = self.world_m
        to_camera = [
            component - views.per_ray(views.origin_world_m[:, axis]) for axis, component in enumerate(self.world_m)
        ]
        distance = (to_camera[0].square() + to_camera[1].square() + to_camera[2].square()).sqrt()
        cosine = (nx * to_camera[0] + ny * to_camera[1] + nz * to_camera[2]).abs() / distance
        footprint_m = self._depth / views.per_ray(views.K[:, 0, 0]) / cosine.clamp_min(0.15).sqrt()
        points = SurfacePoints(materials=self._materials, object_m=self._object, footprint_m=footprint_m)
        with_waves = bool((scenes.materials[..., COLUMN_INDEX["wave_strength"]] > 0).any())
        colors = albedo(points, with_waves=with_waves)
        ambient = self._occlusion() * (0.85 + 0.15 * nz)
        light = [ambient * views.per_ray(scenes.ambient_color[rows.scene, channel]) for channel in range(3)]
        for lamp in range(LIGHT_COUNT):
            position, strength = scenes.light_position_m[rows.scene, lamp], scenes.light_color[rows.scene, lamp]
            if not bool((strength > 0).any()):
                continue
            to_lamp = [views.per_ray(position[:, axis]) - component for axis, component in enumerate((px, py, pz))]
            square = to_lamp[0].square() + to_lamp[1].square() + to_lamp[2].square()
            facing = (nx * to_lamp[0] + ny * to_lamp[1] + nz * to_lamp[2]).clamp_min(0.0) / square.sqrt()
            received = facing / (square + _LIGHT_SOFTENING_M2)
            if lamp == 0 and scenes.domain.cast_shadows:
                received = received * lit_by(views, (px, py, pz), position)
            light = [light[channel] + received * views.per_ray(strength[:, channel]) for channel in range(3)]
        emission = self._materials[COLUMN_INDEX["emission"]]
        return [color * (arriving + emission) for color, arriving in zip(colors, light, strict=True)]

    def _occlusion(self) -> Tensor:
        """How much of the surrounding light arrives: less along the room's edges, where surfaces shade each other."""
        views = self._views
        half_x, half_y = (views.per_ray(0.5 * views.room_size_m[:, axis]) for axis in range(2))
        px, py, pz = self.world_m
        share = torch.ones_like(px)
        for gap in (half_x - px.abs(), half_y - py.abs(), pz, views.per_ray(views.room_size_m[:, 2]) - pz):
            share = share * (1.0 - 0.3 / (1.0 + (gap / 0.18).square()))
        return share


def _photo(scenes: RoomScenes, rows: _Rows, radiance: Tensor) -> Tensor:
    """sRGB photos [views, height, width, 3] from radiance [views, 3, height, width]."""
    domain = scenes.domain
    signal = radiance * (scenes.exposure[rows.scene] * rows.exposure_factor)[:, None, None, None]
    if domain.blur_share > 0:
        signal = _blurred(signal, domain.blur_share * max(signal.shape[-2:]))
    if domain.read_noise > 0 or domain.shot_noise > 0:
        deviation = (domain.read_noise**2 + domain.shot_noise * signal).sqrt()
        signal = (signal + deviation * _noise(rows.photo_key, signal.shape)).clamp_min(0.0)
    # A film-like shoulder: bright spots near lamps keep their texture.
    toned = signal * (1.0 + signal / _WHITE_SIGNAL**2) / (1.0 + 0.75 * signal)
    toned = (toned * 1.4).clamp(0.0, 1.0)
    srgb = torch.where(toned <= 0.0031308, 12.92 * toned, 1.055 * toned.clamp_min(1e-8).pow(1 / 2.4) - 0.055)
    return srgb.movedim(1, -1).contiguous()


def _blurred(signal: Tensor, sigma_px: float) -> Tensor:
    radius = max(1, round(3 * sigma_px))
    offsets = torch.arange(-radius, radius + 1, device=signal.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    signal = F.conv2d(F.pad(signal, (radius, radius, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(signal, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3), groups=3)


def _noise(photo_key: Tensor, shape: torch.Size) -> Tensor:
    """Nearly normal deviates: sums of four uniform ones, hashed from the photo's key, the channel and the pixel."""
    count = shape[1] * shape[2] * shape[3]
    word = torch.arange(count, device=photo_key.device, dtype=torch.int32) * 0x2C1B3C6D
    word = word[None] ^ photo_key.to(torch.int32)[:, None]
    total = torch.zeros(word.shape, device=word.device)
    for _ in range(2):
        word = (word ^ ((word >> 15) & 0x1FFFF)) * 0x1B873593
        word = (word ^ ((word >> 13) & 0x7FFFF)) * 0x5BD1E995
        mixed = word ^ ((word >> 16) & 0xFFFF)
        total = total + ((mixed & 0xFFFF) + ((mixed >> 16) & 0xFFFF)).to(torch.float32)
    return ((total * 2.0**-16 - 2.0) * 3.0**0.5).reshape(shape)
