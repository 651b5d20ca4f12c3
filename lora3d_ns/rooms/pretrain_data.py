"""Training data of the bundled network: groups of photos of a room, and all ordered pairs within a group.

The photos of a group are encoded once and take part in several pairs, which is where most of the time goes. What a
training step sees is fixed by the settings and the number of the step, so that an interrupted training goes on with
exactly the data it would have seen.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from lora3d_ns.atomic_files import remove_leftovers, write_bytes_atomically, write_text_atomically
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.progress import progress_bar
from lora3d_ns.rooms.cameras import sample_views
from lora3d_ns.rooms.domains import domain_by_name
from lora3d_ns.rooms.render import RoomRenders, render
from lora3d_ns.rooms.scenes import sample_scenes

_SCENES_PER_CHUNK = 64
_MANIFEST = "manifest.json"
_CHUNK_PARTS = ("rgb", "depth_m", "K", "T_world_camera")


@dataclass(frozen=True, kw_only=True)
class RoomViewSettings:
    """Which photos to train on.

    Attributes:
        domain: Name of the room domain.
        seed: Names the set of rooms; the benchmark and the validation use others.
        view_count: Photos along the path through each room.
        image_size_px: Side of the square photos.
        supersample: Rays per pixel along each axis for the colours.
    """

    domain: str = "nominal"
    seed: int = 20_241_207
    view_count: int = 8
    image_size_px: int = 64
    supersample: int = 2

    def __post_init__(self) -> None:
        domain_by_name(self.domain)
        for name, low in (("view_count", 2), ("image_size_px", 8), ("supersample", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise SettingsError(
                    f"{name} must be at least {low}, not {getattr(self, name)}", way_out="Change the pretraining data"
                )

    def render(self, scene_indices: Sequence[int], device: torch.device | str = "cpu") -> RoomRenders:
        """Photos and truth of these rooms of the set."""
        scenes = sample_scenes(domain_by_name(self.domain), seed=self.seed, indices=scene_indices, device=device)
        cameras = sample_views(scenes, self.view_count, size=(self.image_size_px, self.image_size_px))
        return render(scenes, cameras, supersample=self.supersample)


@dataclass(frozen=True, eq=False, kw_only=True)
class Photos:
    """Photos of one size, and their truth.

    Attributes:
        rgb: sRGB in 0 to 1.
        depth_m: Depth along the viewing axis at pixel centres.
        K: Intrinsics in pixels.
        T_world_camera: Poses.
    """

    rgb: Float32[Tensor, "batch 3 height width"]
    depth_m: Float32[Tensor, "batch height width"]
    K: Float32[Tensor, "batch 3 3"]
    T_world_camera: Float32[Tensor, "batch 4 4"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.depth_m.shape[1], self.depth_m.shape[2]

    def select(self, rows: Int64[Tensor, " chosen"]) -> "Photos":
        """Some of the photos."""
        return Photos(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def crop(self, size: tuple[int, int]) -> "Photos":
        """The middle of the photos, (height, width); as if taken with a camera of that shape."""
        height, width = size
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        K = self.K.clone()
        K[:, 0, 2] -= left
        K[:, 1, 2] -= top
        return Photos(
            rgb=self.rgb[..., top : top + height, left : left + width].contiguous(),
            depth_m=self.depth_m[..., top : top + height, left : left + width].contiguous(),
            K=K,
            T_world_camera=self.T_world_camera,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomViewGroups:
    """Some photos of each of several rooms, and their truth.

    Attributes:
        rgb, depth_m, K, T_world_camera: As in `Photos`.
        sizes: (height, width) that each of a room's photos shall be cropped to, the same in all rooms.
    """

    rgb: Float32[Tensor, "rooms views 3 height width"]
    depth_m: Float32[Tensor, "rooms views height width"]
    K: Float32[Tensor, "rooms views 3 3"]
    T_world_camera: Float32[Tensor, "rooms views 4 4"]
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.rgb)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "RoomViewGroups":
        return RoomViewGroups(
            **{name: change(getattr(self, name)) for name in ("rgb", "depth_m", "K", "T_world_camera")},
            sizes=self.sizes,
        )

    def select(self, rooms: slice) -> "RoomViewGroups":
        """Some of the rooms."""
        return self._map(lambda tensor: tensor[rooms])

    def to(self, device: torch.device | str) -> "RoomViewGroups":
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def photos(self, view: int) -> Photos:
        """Photo number `view` of every room, cropped to its size."""
        return Photos(
            rgb=self.rgb[:, view],
            depth_m=self.depth_m[:, view],
            K=self.K[:, view],
            T_world_camera=self.T_world_camera[:, view],
        ).crop(self.sizes[view])


def join_photos(parts: Sequence[Photos]) -> Photos:
    """Photos of several batches of one size, one after the other."""
    return Photos(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Photos)})


@dataclass(frozen=True, eq=False, kw_only=True)
class PairBatch:
    """Ordered pairs of photos of two sizes.

    Attributes:
        first_size, second_size: (height, width); which batch of photos `first` and `second` refer to.
        first, second: Rows of the photos of those sizes.
    """

    first_size: tuple[int, int]
    second_size: tuple[int, int]
    first: Int64[Tensor, " pairs"]
    second: Int64[Tensor, " pairs"]


def photos_and_pairs(groups: RoomViewGroups) -> tuple[dict[tuple[int, int], Photos], list[PairBatch]]:
    """All photos of the groups by size, and all ordered pairs (i, j), i != j, within rooms by the two sizes."""
    rooms, views = groups.depth_m.shape[:2]
    of_size: dict[tuple[int, int], list[int]] = {}
    for view, size in enumerate(groups.sizes):
        of_size.setdefault(size, []).append(view)
    photos = {size: join_photos([groups.photos(view) for view in members]) for size, members in of_size.items()}
    # Row of the first room's photo in the batch of its size; the other rooms follow.
    start = {view: rooms * place for members in of_size.values() for place, view in enumerate(members)}
    all_rooms = torch.arange(rooms, device=groups.depth_m.device)
    batches: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[int, int]]] = {}
    for i in range(views):
        for j in range(views):
            if i != j:
                batches.setdefault((groups.sizes[i], groups.sizes[j]), []).append((i, j))
    return photos, [
        PairBatch(
            first_size=first_size,
            second_size=second_size,
            first=torch.cat([start[i] + all_rooms for i, _ in members]),
            second=torch.cat([start[j] + all_rooms for _, j in members]),
        )
        for (first_size, second_size), members in batches.items()
    ]


# --- where photos come from ---------------------------------------------------------------------


@runtime_checkable
class RoomViewSource(Protocol):
    """Anything that hands out photos of rooms by number."""

    @property
    def settings(self) -> RoomViewSettings:
        """Which photos these are."""
        ...

    def load(self, scene_indices: Sequence[int], views: NDArray[np.int64]) -> RoomViewGroups:
        """Photos `views[k]` of room `scene_indices[k]`."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class RenderedRooms:
    """Rooms rendered when they are asked for, on a device that is fast enough."""

    settings: RoomViewSettings
    device: torch.device

    def load(self, scene_indices: Sequence[int], views: NDArray[np.int64]) -> RoomViewGroups:
        """Photos `views[k]` of room `scene_indices[k]`, on the device."""
        made = self.settings.render(scene_indices, self.device)
        rooms = torch.arange(len(scene_indices), device=self.device)[:, None]
        chosen = torch.from_numpy(views).to(self.device)
        return RoomViewGroups(
            rgb=made.rgb[rooms, chosen].permute(0, 1, 4, 2, 3).contiguous(),
            depth_m=made.depth_m[rooms, chosen],
            K=made.K[rooms, chosen],
            T_world_camera=made.T_world_camera[rooms, chosen],
            sizes=((self.settings.image_size_px,) * 2,) * views.shape[1],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedRooms:
    """Rooms rendered once into a folder: colours as bytes, depths in half precision (relative error below 5e-4).

    Attributes:
        settings: Which photos these are.
        folder: Where the files are.
        scene_count: How many rooms there are.
    """

    settings: RoomViewSettings
    folder: Path
    scene_count: int

    def load(self, scene_indices: Sequence[int], views: NDArray[np.int64]) -> RoomViewGroups:
        """Photos `views[k]` of room `scene_indices[k]`."""
        parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in _CHUNK_PARTS}
        for index, chosen in zip(scene_indices, views, strict=True):
            if not 0 <= index < self.scene_count:
                raise InvalidDataError(
                    f"room {index} is not among the {self.scene_count} cached ones", way_out="Cache more rooms"
                )
            chunk, row = divmod(index, _SCENES_PER_CHUNK)
            for name in _CHUNK_PARTS:
                parts[name].append(_mapped(str(_chunk_file(self.folder, chunk, name)))[row][chosen])
        rgb, depth_m, K, T_world_camera = (torch.from_numpy(np.stack(parts[name])) for name in _CHUNK_PARTS)
        return RoomViewGroups(
            rgb=rgb.permute(0, 1, 4, 2, 3).contiguous().to(torch.float32) / 255.0,
            depth_m=depth_m.to(torch.float32),
            K=K,
            T_world_camera=T_world_camera,
            sizes=((self.settings.image_size_px,) * 2,) * views.shape[1],
        )


def cache_rooms(
    settings: RoomViewSettings, scene_count: int, folder: Path, *, show_progress: bool = False
) -> CachedRooms:
    """Renders rooms into a folder, once: what is there already is kept, so the work can be interrupted and extended.

    Args:
        settings: Which photos.
        scene_count: How many rooms; rounded up to whole files of 64.
        folder: Where to; one set per folder.
        show_progress: Whether to draw a bar.

    Raises:
        SettingsError: The folder holds another set of photos, or scene_count is not positive.
        StorageError: The folder cannot be written to.
    """
    if scene_count < 1:
        raise SettingsError(f"{scene_count} rooms make no training set", way_out="Ask for at least one")
    remove_leftovers(folder)
    manifest = folder / _MANIFEST
    wanted = asdict(settings)
    if manifest.exists():
        found = json.loads(manifest.read_text())
        if found != wanted:
            raise SettingsError(
                f"the folder {folder} holds other rooms: {found}", way_out="Choose another folder, or delete it"
            )
    else:
        write_text_atomically(manifest, json.dumps(wanted, indent=1))
    chunks = -(-scene_count // _SCENES_PER_CHUNK)
    with progress_bar("rendering rooms", chunks * _SCENES_PER_CHUNK, shown=show_progress) as advance:
        for chunk in range(chunks):
            # The last part is written last: if it is there, the chunk is complete.
            if not _chunk_file(folder, chunk, _CHUNK_PARTS[-1]).exists():
                _render_chunk(settings, chunk, folder)
            advance(_SCENES_PER_CHUNK)
    return CachedRooms(settings=settings, folder=folder, scene_count=chunks * _SCENES_PER_CHUNK)


def _render_chunk(settings: RoomViewSettings, chunk: int, folder: Path) -> None:
    start = chunk * _SCENES_PER_CHUNK
    made = settings.render(range(start, start + _SCENES_PER_CHUNK))
    arrays = {
        "rgb": (made.rgb.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8),
        "depth_m": made.depth_m.to(torch.float16),
        "K": made.K,
        "T_world_camera": made.T_world_camera,
    }
    for name in _CHUNK_PARTS:
        # Not straight into the file: numpy does not say why a write failed, and a full disk should be called one.
        encoded = io.BytesIO()
        np.save(encoded, arrays[name].numpy())
        write_bytes_atomically(_chunk_file(folder, chunk, name), encoded.getvalue())


def _chunk_file(folder: Path, chunk: int, part: str) -> Path:
    return folder / f"{chunk:05d}-{part}.npy"


@lru_cache(maxsize=1024)
def _mapped(path: str) -> NDArray[np.generic]:
    return np.load(path, mmap_mode="r")


# --- what a step sees ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GroupSampling:
    """How a training step draws its photos.

    Attributes:
        seed: Of the draws.
        scene_count: The rooms that are gone through, in another order each time.
        rooms_per_step: Rooms of one step.
        views_per_room: Photos of each; all their ordered pairs are trained on.
        first_window: Longest stretch of consecutive photos that a group is drawn from at the beginning.
        window_steps: After so many steps groups are drawn from the whole path (the curriculum on baseline and
            overlap): the window grows linearly.
        gain_range, gamma_range: Photometric changes `gain * rgb^gamma`, one for all photos of a group.
        tint: Largest relative change of a colour channel, likewise.
        mirror: Whether half of the groups are seen in a mirror.
        phone_share: Share of the steps with photos of 4:3, cropped from the square ones.
        landscape_share: Share of those in landscape; the others are in portrait. One group may have both.
    """

    seed: int = 0
    scene_count: int = 3072
    rooms_per_step: int = 4
    views_per_room: int = 3
    first_window: int = 3
    window_steps: int = 2000
    gain_range: tuple[float, float] = (0.75, 1.2)
    gamma_range: tuple[float, float] = (0.8, 1.25)
    tint: float = 0.1
    mirror: bool = True
    phone_share: float = 0.5
    landscape_share: float = 0.7

    def __post_init__(self) -> None:
        def check(condition: bool, problem: str) -> None:
            if not condition:
                raise SettingsError(problem, way_out="Change the sampling of the training data")

        check(self.scene_count >= 1, f"scene_count must be positive, not {self.scene_count}")
        check(
            1 <= self.rooms_per_step <= self.scene_count,
            f"rooms_per_step must be 1 to {self.scene_count}, not {self.rooms_per_step}",
        )
        check(self.views_per_room >= 2, f"views_per_room must be at least 2, not {self.views_per_room}")
        check(
            self.first_window >= self.views_per_room,
            f"first_window {self.first_window} cannot hold {self.views_per_room} views",
        )
        check(self.window_steps >= 0, f"window_steps must not be negative, not {self.window_steps}")
        for name in ("gain_range", "gamma_range"):
            low, high = getattr(self, name)
            check(0 < low <= high, f"{name} {(low, high)} must be positive and (low, high)")
        for name in ("phone_share", "landscape_share"):
            check(0 <= getattr(self, name) <= 1, f"{name} must lie within 0 and 1, not {getattr(self, name)}")
        check(0 <= self.tint < 1, f"tint must lie within 0 and 1, not {self.tint}")

    @property
    def pairs_per_step(self) -> int:
        """Ordered pairs of one step."""
        return self.rooms_per_step * self.views_per_room * (self.views_per_room - 1)

    @staticmethod
    def short_side_px(image_size_px: int) -> int:
        """Short side of a photo of 4:3 whose long side is this."""
        return 3 * image_size_px // 4

    def scene_indices(self, step: int) -> list[int]:
        """The rooms of a step: each room once per pass, in an order of its own for each pass."""
        steps_per_pass = self.scene_count // self.rooms_per_step
        number, place = divmod(step, steps_per_pass)
        order = np.random.default_rng([self.seed, 1, number]).permutation(self.scene_count)
        return order[place * self.rooms_per_step : (place + 1) * self.rooms_per_step].tolist()

    def window(self, step: int, view_count: int) -> int:
        """Length of the stretch of consecutive photos that a group is drawn from."""
        if step >= self.window_steps:
            return view_count
        grown = self.first_window + (view_count - self.first_window) * step / max(1, self.window_steps)
        return min(view_count, int(grown))

    def draw(self, source: RoomViewSource, step: int) -> RoomViewGroups:
        """Photos of a step, changed photometrically and mirrored as the settings say.

        The draws depend on the seed and the step alone.
        """
        random = np.random.default_rng([self.seed, 2, step])
        rooms, view_count = self.rooms_per_step, source.settings.view_count
        if self.views_per_room > view_count:
            raise SettingsError(
                f"groups of {self.views_per_room} views from paths of {view_count}", way_out="Lower views_per_room"
            )
        window = self.window(step, view_count)
        views = np.stack(
            [
                start + random.permutation(window)[: self.views_per_room]
                for start in random.integers(0, view_count - window + 1, size=rooms)
            ]
        )
        groups = source.load(self.scene_indices(step), views.astype(np.int64))
        gain, gamma = (random.uniform(*limits, size=(rooms, 1)) for limits in (self.gain_range, self.gamma_range))
        tint = 1.0 + self.tint * random.uniform(-1.0, 1.0, size=(rooms, 3))
        mirrored = random.random(rooms) < (0.5 if self.mirror else 0.0)
        factor = torch.from_numpy(gain * tint).to(groups.rgb)[:, None, :, None, None]
        exponent = torch.from_numpy(gamma).to(groups.rgb)[:, None, :, None, None]
        rgb = (factor * groups.rgb.clamp_min(1e-4).pow(exponent)).clamp(0.0, 1.0)
        turned = random.random() < self.phone_share
        landscape = random.random(self.views_per_room) < self.landscape_share
        long, short = source.settings.image_size_px, self.short_side_px(source.settings.image_size_px)
        changed = RoomViewGroups(
            rgb=rgb,
            depth_m=groups.depth_m,
            K=groups.K,
            T_world_camera=groups.T_world_camera,
            sizes=tuple((short, long) if lying else (long, short) for lying in landscape) if turned else groups.sizes,
        )
        return mirror_groups(changed, torch.from_numpy(mirrored).to(rgb.device))


def mirror_groups(groups: RoomViewGroups, mirrored: Tensor) -> RoomViewGroups:
    """The groups as a mirror shows them, where asked for.

    The mirror maps world x to -x; a camera's own x axis is turned round with it, so poses stay rotations:
    `T' = M T M` with M = diag(-1, 1, 1, 1), photos flip left to right, and `c_x' = width - c_x`.

    Args:
        groups: Photos and truth.
        mirrored: [rooms] bool.
    """
    width = groups.rgb.shape[-1]
    sign = torch.where(mirrored, -1.0, 1.0).to(groups.K)[:, None]
    T_world_camera = groups.T_world_camera.clone()
    T_world_camera[..., 0, 1:] *= sign[..., None]
    T_world_camera[..., 1:, 0] *= sign[..., None]
    K = groups.K.clone()
    K[..., 0, 2] = torch.where(mirrored[:, None], width - K[..., 0, 2], K[..., 0, 2])
    return RoomViewGroups(
        rgb=torch.where(mirrored[:, None, None, None, None], groups.rgb.flip(-1), groups.rgb),
        depth_m=torch.where(mirrored[:, None, None, None], groups.depth_m.flip(-1), groups.depth_m),
        K=K,
        T_world_camera=T_world_camera,
        sizes=groups.sizes,
    )
