"""The fixed scenes of `rooms-v1`: rooms that no training sees, photographed twice, with their truth."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from lora3d_ns.conventions import PixelAffine, pixel_centres
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.rooms.cameras import Split, sample_views
from lora3d_ns.rooms.disk import PhotographedRoom
from lora3d_ns.rooms.domains import domain_by_name
from lora3d_ns.rooms.render import render
from lora3d_ns.rooms.scenes import sample_scenes
from lora3d_ns.types import Cameras, Views

MAIN_DOMAINS = ("nominal", "dark", "sparse", "tele")
EXTRA_DOMAINS = ("clutter", "moving")
SCENES_PER_DOMAIN = 6
PHOTOS = 10

# Each domain has a seed of its own: equal seeds would make dark room 3 the nominal room 3 by night.
_FIRST_SEED = 90_000_000
_SEEDS_PER_OFFSET = 1_000


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomPhotos:
    """Photos of one room with their truth.

    Attributes:
        views: The photos.
        depths_m: Depth along the viewing axis at network resolution.
        static: False where something moves between the photos, at network resolution.
        cameras: The true cameras, metres; intrinsics in source pixels.
    """

    views: Views
    depths_m: tuple[Float32[Tensor, "_ _"], ...]
    static: tuple[Bool[Tensor, "_ _"], ...]
    cameras: Cameras

    def true_points(self, edge: tuple[int, int]) -> tuple[Float32[Tensor, "_ _ 3"], Float32[Tensor, "_ _ 3"]]:
        """X̄^{i,i} and X̄^{j,i}: the true points of both photos' pixels in camera i's frame, metres."""
        i, j = edge
        own_first, own_second = (
            points_from_depth(
                self.depths_m[view], self.views.source_from_network[view].K_network_from_source(self.cameras.K[view])
            )
            for view in edge
        )
        T_world_camera = self.cameras.T_world_camera.double()
        T_i_j = (torch.linalg.inv(T_world_camera[i]) @ T_world_camera[j]).float()
        return own_first, own_second @ T_i_j[:3, :3].T + T_i_j[:3, 3]


def truth_for_views(views: Views, room: PhotographedRoom) -> RoomPhotos:
    """The truth of a photographed room for its photos as they were loaded from disk.

    A network pixel has the depth of the source pixel in which its centre lies.

    Raises:
        InvalidDataError: The views are not this room's photos.
    """
    if [Path(name).stem for name in views.names] != list(room.names):
        raise InvalidDataError("the views are not the photos of this room", way_out="Load them from its own folder")
    depths_m, static = [], []
    for view, (height, width) in enumerate(views.shapes):
        pixels = views.source_from_network[view].source_from_network(pixel_centres(height, width))
        x, y = pixels.floor().long().unbind(dim=-1)
        source_height, source_width = room.depths_m[view].shape
        at = (y.clamp(0, source_height - 1), x.clamp(0, source_width - 1))
        depths_m.append(room.depths_m[view][at])
        static.append(~room.moving[view][at])
    return RoomPhotos(
        views=views,
        depths_m=tuple(depths_m),
        static=tuple(static),
        cameras=Cameras(
            T_world_camera=torch.stack(room.T_world_camera), K=torch.stack(room.K), sizes=views.source_sizes
        ),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class BenchmarkScene:
    """One room of the benchmark: photos to calibrate on, and photos of the same room to be tested on."""

    name: str
    domain: str
    calibration: RoomPhotos
    test: RoomPhotos


def make_scene(
    domain: str, index: int, *, size: tuple[int, int], seed_offset: int = 0, calibration_photos: int = PHOTOS
) -> BenchmarkScene:
    """One scene of the benchmark, rendered.

    Args:
        domain: Name of the domain.
        index: 0 to 5 for the fixed list.
        size: (width, height) of the photos in pixels.
        seed_offset: 0 for the fixed list; another number for other scenes of the same kind.
        calibration_photos: Photos to calibrate on, evenly spread over the same path; the test photos stay the same.

    Raises:
        SettingsError: Unknown domain, or a negative offset or index.
    """
    known = (*MAIN_DOMAINS, *EXTRA_DOMAINS)
    if domain not in known:
        raise SettingsError(f"the benchmark has no domain {domain!r}", way_out=f"Use one of {', '.join(known)}")
    if index < 0 or seed_offset < 0:
        raise SettingsError(f"scene {index} at seed offset {seed_offset}", way_out="Use numbers from 0")
    seed = _FIRST_SEED + _SEEDS_PER_OFFSET * seed_offset + known.index(domain)
    scenes = sample_scenes(domain_by_name(domain), seed=seed, indices=[index])
    splits = []
    splits_and_counts: tuple[tuple[Split, int], ...] = (("calibration", calibration_photos), ("test", PHOTOS))
    for split, count in splits_and_counts:
        cameras = sample_views(scenes, count, size=size, split=split)
        made = render(scenes, cameras, supersample=2)
        splits.append(
            _room_photos(split, made.rgb[0], made.depth_m[0], ~made.moving[0], made.K[0], made.T_world_camera[0])
        )
    suffix = f"+{seed_offset}" if seed_offset else ""
    return BenchmarkScene(name=f"{domain}-{index}{suffix}", domain=domain, calibration=splits[0], test=splits[1])


def _room_photos(
    split: str, rgb: Tensor, depth_m: Tensor, static: Tensor, K: Tensor, T_world_camera: Tensor
) -> RoomPhotos:
    count, height, width = depth_m.shape
    sizes = ((width, height),) * count
    nothing = (None,) * count
    # Photos are stored with eight bits, as files would be.
    images = (rgb.permute(0, 3, 1, 2) * 255.0).round() / 255.0
    views = Views(
        names=tuple(f"{split}-{view:02d}" for view in range(count)),
        images=tuple(images.contiguous()),
        masks=nothing,
        source_from_network=(PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0),) * count,
        source_sizes=sizes,
        source_paths=nothing,
        focal_exif_px=nothing,
        lens_groups=("rooms",) * count,
        known_K=nothing,
        known_T_world_camera=nothing,
    )
    return RoomPhotos(
        views=views,
        depths_m=tuple(depth_m),
        static=tuple(static),
        cameras=Cameras(T_world_camera=T_world_camera, K=K, sizes=sizes),
    )
