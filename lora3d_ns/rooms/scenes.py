"""A batch of rooms, and how one is drawn: where the furniture stands, what it is made of, where the lamps hang.

The world frame has z up and its origin in the middle of the floor; the room spans +-width/2 along x and +-depth/2
along y. Furniture stands along the walls and in the middle, mostly in the northern half (y > 0); cameras walk in the
southern.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lora3d_ns.errors import SettingsError
from lora3d_ns.rooms.domains import RoomDomain
from lora3d_ns.rooms.furniture import DRAWS_PER_PIECE, FURNITURE_BUILDERS, MAXIMUM_PARTS, Part
from lora3d_ns.rooms.materials import COLUMNS, DRAWS_PER_MATERIAL, material_rows, to_table
from lora3d_ns.rooms.primitives import BOX, ROOM_FACE
from lora3d_ns.rooms.random_numbers import FloatArray, IntArray, SceneRandom

ROOM_FACE_NAMES = ("west wall", "east wall", "south wall", "north wall", "floor", "ceiling")
FACE_COUNT = 6
_POSTER_COUNT = 6
_RUG = _POSTER_COUNT
_PLACE_COUNT = 12
_CENTRE_PLACES = (9, 10, 11)
_MOVING_PLACE = 9
SOLID_COUNT = _POSTER_COUNT + 1 + _PLACE_COUNT * MAXIMUM_PARTS
LIGHT_COUNT = 3
_WALL_PLACE_HALF_DEPTH_M = 0.36
# Pieces that look right in the middle of a room.
_CENTRE_FURNITURE = ("table", "chair", "crates", "ball", "plant", "cones", "capsules", "prisms")
_MOVING_FURNITURE = ("crates", "ball", "plant", "chair")


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomScenes:
    """Rooms without cameras, padded to one number of solids. World frame: metres, z up, origin in mid-floor.

    Surfaces are the six faces of the room (west, east, south, north, floor, ceiling) followed by the solids.

    Attributes:
        seed: Seed of the set that the rooms come from.
        domain: Their settings.
        indices: Which scenes of the set.
        room_size_m: Width (x), depth (y), height (z).
        kind: Kind of each surface, see `lora3d_ns.rooms.primitives`.
        valid: False where a solid is padding.
        center_world_m: Position of each surface's own frame.
        R_world_object: Its axes in the world, as columns.
        half_size_m: Half sizes along its own axes (1 for the room's faces).
        taper: Upper radius of cones, as a share of the lower.
        object_id: Number of the object the surface belongs to: a table and its legs share one. The faces are 0 to 5.
        casts_shadow: False for what lies flat on something, and for lamp shades.
        moving: Surfaces that move between the photos.
        displacement_m: How far they move in the world, from the path's first moment to its last.
        materials: Texture parameters, see `lora3d_ns.rooms.materials`.
        light_position_m: Point lights, world.
        light_color: Their linear RGB strengths; 0 where there is no lamp.
        ambient_color: Linear RGB of the light from everywhere.
        exposure: Factor from radiance to the sensor's signal, where 1 is white.
    """

    seed: int
    domain: RoomDomain
    indices: Int64[Tensor, " scenes"]
    room_size_m: Float32[Tensor, "scenes 3"]
    kind: Int64[Tensor, "scenes surfaces"]
    valid: Bool[Tensor, "scenes surfaces"]
    center_world_m: Float32[Tensor, "scenes surfaces 3"]
    R_world_object: Float32[Tensor, "scenes surfaces 3 3"]
    half_size_m: Float32[Tensor, "scenes surfaces 3"]
    taper: Float32[Tensor, "scenes surfaces"]
    object_id: Int64[Tensor, "scenes surfaces"]
    casts_shadow: Bool[Tensor, "scenes surfaces"]
    moving: Bool[Tensor, "scenes surfaces"]
    displacement_m: Float32[Tensor, "scenes 3"]
    materials: Float32[Tensor, "scenes surfaces columns"]
    light_position_m: Float32[Tensor, "scenes lights 3"]
    light_color: Float32[Tensor, "scenes lights 3"]
    ambient_color: Float32[Tensor, "scenes 3"]
    exposure: Float32[Tensor, " scenes"]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.indices.device

    @property
    def moving_object_ids(self) -> tuple[int, ...]:
        """Object ids of what moves; empty in a static domain. The same in every scene."""
        return (_place_object_id(_MOVING_PLACE),) if self.domain.has_moving_object else ()

    def to(self, device: torch.device | str) -> "RoomScenes":
        """The same rooms on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, rows: Sequence[int] | slice) -> "RoomScenes":
        """Some of the rooms."""
        chosen = rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        return self._map(lambda tensor: tensor[chosen])

    def _map(self, change) -> "RoomScenes":
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            changed[field.name] = change(value) if isinstance(value, Tensor) else value
        return RoomScenes(**changed)


def sample_scenes(
    domain: RoomDomain, *, seed: int, indices: Sequence[int] | int, device: torch.device | str = "cpu"
) -> RoomScenes:
    """Draw rooms. A room depends on (seed, its index, domain) and nothing else.

    Args:
        domain: Settings.
        seed: Names the set of scenes.
        indices: Which scenes of the set; a whole number n means the first n.
        device: Where the tensors shall be. The drawing happens on the host, so that all devices see the same rooms.

    Raises:
        SettingsError: No scene was asked for, or an index is negative.
    """
    chosen = list(range(indices)) if isinstance(indices, int) else [int(index) for index in indices]
    if not chosen or min(chosen) < 0:
        raise SettingsError(f"scene indices {indices} name no scenes", way_out="Give at least one index >= 0")
    random = SceneRandom(seed, chosen)
    draft = _Draft(domain, random)
    draft.add_room()
    draft.add_posters_and_rug()
    draft.add_furniture()
    return draft.finish(seed, chosen).to(device)


def _place_object_id(place: int) -> int:
    return FACE_COUNT + _POSTER_COUNT + 1 + place


def _R_from_yaw_pitch(yaw_rad: FloatArray, pitch_rad: FloatArray) -> FloatArray:
    """Rotation about x by the pitch, then about z by the yaw; [..., 3, 3]."""
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = np.cos(yaw_rad), np.sin(yaw_rad), np.cos(pitch_rad), np.sin(pitch_rad)
    zero = np.zeros_like(yaw_rad)
    rows = [
        [cos_yaw, -sin_yaw * cos_pitch, sin_yaw * sin_pitch],
        [sin_yaw, cos_yaw * cos_pitch, -cos_yaw * sin_pitch],
        [zero, sin_pitch, cos_pitch],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _wall_frame(inward: tuple[float, float, float]) -> FloatArray:
    """Axes of a wall as columns: x along it, y up, z into the room."""
    normal, up = np.array(inward), np.array([0.0, 0.0, 1.0])
    return np.stack([np.cross(up, normal), up, normal], axis=-1)


_FACE_FRAMES = np.stack(
    [
        _wall_frame((1.0, 0.0, 0.0)),
        _wall_frame((-1.0, 0.0, 0.0)),
        _wall_frame((0.0, 1.0, 0.0)),
        _wall_frame((0.0, -1.0, 0.0)),
        np.diag([1.0, 1.0, 1.0]),
        np.diag([1.0, -1.0, -1.0]),
    ]
)


class _Draft:
    """Arrays of the scenes being drawn, float64, [scenes, surfaces, ...]."""

    def __init__(self, domain: RoomDomain, random: SceneRandom) -> None:
        self.domain, self.random = domain, random
        scenes, surfaces = random.scene_count, FACE_COUNT + SOLID_COUNT
        self.kind = np.full((scenes, surfaces), BOX, dtype=np.int64)
        self.valid = np.zeros((scenes, surfaces), dtype=bool)
        self.center = np.zeros((scenes, surfaces, 3))
        self.rotation = np.broadcast_to(np.eye(3), (scenes, surfaces, 3, 3)).copy()
        self.half = np.ones((scenes, surfaces, 3))
        self.taper = np.ones((scenes, surfaces))
        self.object_id = np.zeros((scenes, surfaces), dtype=np.int64)
        self.casts_shadow = np.ones((scenes, surfaces), dtype=bool)
        self.moving = np.zeros((scenes, surfaces), dtype=bool)
        self.material_rows = np.zeros((scenes, surfaces, len(COLUMNS)))
        low, high = zip(domain.room_width_m, domain.room_depth_m, domain.room_height_m, strict=True)
        self.room = np.array(low) + random.uniform("room size", 3) * (np.array(high) - np.array(low))

    def add_room(self) -> None:
        width, depth, height = self.room.T
        zero = np.zeros_like(width)
        centers = [
            (-0.5 * width, zero, 0.5 * height), (0.5 * width, zero, 0.5 * height),
            (zero, -0.5 * depth, 0.5 * height), (zero, 0.5 * depth, 0.5 * height),
            (zero, zero, zero), (zero, zero, height),
        ]  # fmt: skip
        self.kind[:, :FACE_COUNT] = ROOM_FACE
        self.valid[:, :FACE_COUNT] = True
        self.casts_shadow[:, :FACE_COUNT] = False
        self.object_id[:, :FACE_COUNT] = np.arange(FACE_COUNT)
        for face, center in enumerate(centers):
            self.center[:, face] = np.stack(center, axis=-1)
            self.rotation[:, face] = _FACE_FRAMES[face]
        draws = self.random.uniform("room materials", FACE_COUNT, DRAWS_PER_MATERIAL)
        pick = self.random.uniform("room material families", 4)
        # All walls alike but one, as people paint them.
        draws[:, 1:4, :5] = draws[:, :1, :5]
        draws[:, 1:4, 6:] = draws[:, :1, 6:]
        accent_wall = (pick[:, 1] * 4).astype(np.int64)
        draws[np.arange(len(draws)), accent_wall] = self.random.uniform("accent wall", DRAWS_PER_MATERIAL)
        for face in range(4):
            share = np.where(accent_wall == face, pick[:, 2], pick[:, 0])
            self._set_materials(np.arange(len(draws)), face, self.domain.wall_materials, share, draws[:, face])
        self._set_materials(np.arange(len(draws)), 4, self.domain.floor_materials, pick[:, 3], draws[:, 4])
        self._set_materials(np.arange(len(draws)), 5, ("plaster",), pick[:, 3], draws[:, 5])

    def add_posters_and_rug(self) -> None:
        width, depth, height = self.room.T
        draws = self.random.uniform("posters", _POSTER_COUNT, 4)
        materials = self.random.uniform("poster materials", _POSTER_COUNT + 1, DRAWS_PER_MATERIAL)
        low, high = self.domain.poster_count
        used = low + np.floor(self.random.uniform("poster count") * (high - low + 1))
        # Face of each poster, and the share of its wall (along x or y) that its centre may take.
        places = ((3, -0.4, -0.08), (3, 0.08, 0.4), (1, 0.0, 0.38), (0, 0.0, 0.38), (1, -0.35, -0.1), (0, -0.35, -0.1))
        every = np.arange(len(width))
        for number, (face, low_share, high_share) in enumerate(places):
            surface = FACE_COUNT + number
            share = low_share + (high_share - low_share) * draws[:, number, 0]
            half_x, half_y = 0.3 + 0.35 * draws[:, number, 1], 0.25 + 0.22 * draws[:, number, 2]
            z = np.minimum(1.35 + 0.45 * draws[:, number, 3], height - half_y - 0.1)
            if face == 3:
                self.center[:, surface] = np.stack([share * width, 0.5 * depth, z], axis=-1)
            else:
                side = 0.5 if face == 1 else -0.5
                self.center[:, surface] = np.stack([side * width, share * depth, z], axis=-1)
            self.rotation[:, surface] = _FACE_FRAMES[face]
            self.half[:, surface] = np.stack([half_x, half_y, np.full_like(half_x, 0.015)], axis=-1)
            self.valid[:, surface] = number < used
            self.casts_shadow[:, surface] = False
            self.object_id[:, surface] = surface
            self._set_materials(every, surface, ("poster",), half_x, materials[:, number])
        rug = FACE_COUNT + _RUG
        size = self.random.uniform("rug", 4)
        self.center[:, rug] = np.stack([0.6 * (size[:, 2] - 0.5), 0.05 * depth, np.zeros_like(depth)], axis=-1)
        self.half[:, rug] = np.stack([0.7 + 0.5 * size[:, 0], 0.5 + 0.4 * size[:, 1], np.full_like(depth, 0.012)], -1)
        self.rotation[:, rug] = _R_from_yaw_pitch(0.5 * (size[:, 3] - 0.5), np.zeros_like(depth))
        self.valid[:, rug] = self.random.uniform("rug present") < 0.75
        self.casts_shadow[:, rug] = False
        self.object_id[:, rug] = rug
        self._set_materials(every, rug, ("carpet",), size[:, 0], materials[:, _RUG])

    def add_furniture(self) -> None:
        domain, random = self.domain, self.random
        scenes = random.scene_count
        center, yaw, half = self._places()
        low, high = domain.centre_item_count
        centre_count = low + np.floor(random.uniform("centre item count") * (high - low + 1))
        present = random.uniform("places used", _PLACE_COUNT) < domain.slot_fill
        for rank, place in enumerate(_CENTRE_PLACES):
            present[:, place] = rank < centre_count
        if domain.has_moving_object:
            present[:, _MOVING_PLACE] = True
        choice = random.uniform("furniture kinds", _PLACE_COUNT)
        draws = random.uniform("furniture draws", _PLACE_COUNT, DRAWS_PER_PIECE)
        kinds = np.empty((scenes, _PLACE_COUNT), dtype=object)
        for place in range(_PLACE_COUNT):
            options: tuple[str, ...] = domain.furniture
            if place in _CENTRE_PLACES:
                options = tuple(kind for kind in options if kind in _CENTRE_FURNITURE) or options
            if domain.has_moving_object and place == _MOVING_PLACE:
                options = _MOVING_FURNITURE
            kinds[:, place] = np.array(options, dtype=object)[(choice[:, place] * len(options)).astype(np.int64)]
        for kind in sorted(set(domain.furniture) | set(_MOVING_FURNITURE)):
            rows, places = np.nonzero((kinds == kind) & present)
            if len(rows) == 0:
                continue
            parts = FURNITURE_BUILDERS[kind](half[rows, places, 0], half[rows, places, 1], draws[rows, places])
            for number, part in enumerate(parts):
                self._add_part(rows, places, number, part, center[rows, places], yaw[rows, places])

    def _places(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Centres [scenes, places, 2], yaw and half sizes [scenes, places, 2] of the places for furniture."""
        width, depth, _ = self.room.T
        jitter = self.random.uniform("place jitter", _PLACE_COUNT, 3, low=-1.0)
        wall = _WALL_PLACE_HALF_DEPTH_M
        inset = wall + 0.04
        columns = []
        # North wall: three places side by side; the piece's y axis points into the room, hence the half turn.
        third = (width - 0.3) / 3.0
        for column in (-1.0, 0.0, 1.0):
            columns.append((column * third, 0.5 * depth - inset, np.pi, 0.5 * third - 0.08))
        # West and east walls: two places each, north of the middle, clear of the corner.
        quarter = 0.5 * (0.58 * depth - 2 * inset)
        for yaw, side in ((-np.pi / 2, -1.0), (np.pi / 2, 1.0)):
            for row in (0.5, 1.5):
                y = 0.5 * depth - 2 * inset - row * quarter
                columns.append((side * (0.5 * width - inset), y, yaw, np.minimum(0.5 * quarter - 0.05, 0.8)))
        # The southern corners.
        for side in (-1.0, 1.0):
            columns.append((side * (0.5 * width - 0.5), -0.5 * depth + inset, 0.0, np.full_like(width, 0.4)))
        for x, y in ((0.0, 0.04), (-0.2, 0.14), (0.2, 0.12)):
            columns.append((x * width, y * depth, 0.0, np.full_like(width, 0.5)))
        center = np.stack([np.stack([x, y], axis=-1) for x, y, _, _ in columns], axis=1)
        yaw = np.stack([np.full_like(width, value) for _, _, value, _ in columns], axis=1)
        half_x = np.stack([value for _, _, _, value in columns], axis=1)
        half_y = np.full_like(half_x, wall)
        for place in _CENTRE_PLACES:
            yaw[:, place] = np.pi * jitter[:, place, 2]
            center[:, place] += 0.12 * jitter[:, place, :2]
        return center, yaw, np.stack([half_x, half_y], axis=-1)

    def _add_part(
        self, rows: IntArray, places: IntArray, number: int, part: Part, center: FloatArray, yaw: FloatArray
    ) -> None:
        surfaces = FACE_COUNT + _POSTER_COUNT + 1 + places * MAXIMUM_PARTS + number
        cos, sin = np.cos(yaw), np.sin(yaw)
        local = part.center_m
        world_x = center[:, 0] + cos * local[:, 0] - sin * local[:, 1]
        world_y = center[:, 1] + sin * local[:, 0] + cos * local[:, 1]
        self.kind[rows, surfaces] = part.kind
        self.valid[rows, surfaces] = part.present
        self.center[rows, surfaces] = np.stack([world_x, world_y, local[:, 2]], axis=-1)
        self.rotation[rows, surfaces] = _R_from_yaw_pitch(yaw + part.yaw_rad, part.pitch_rad)
        self.half[rows, surfaces] = part.half_m
        self.taper[rows, surfaces] = part.taper
        self.object_id[rows, surfaces] = FACE_COUNT + _POSTER_COUNT + 1 + places
        self.casts_shadow[rows, surfaces] = part.surface != "lamp"
        self.moving[rows, surfaces] = self.domain.has_moving_object & (places == _MOVING_PLACE)
        pools: dict[str, tuple[str, ...]] = {
            "body": self.domain.box_materials,
            "accent": self.domain.accent_materials,
            "soft": self.domain.soft_materials,
            "vivid": self.domain.vivid_materials,
        }
        families = pools.get(part.surface, (part.surface,))
        # What is vivid differs from part to part; everything else is the same all over the piece.
        purpose = f"vivid {number}" if part.surface == "vivid" else part.surface
        draws = self.random.uniform(f"furniture materials {purpose}", _PLACE_COUNT, DRAWS_PER_MATERIAL)[rows, places]
        pick = self.random.uniform(f"furniture families {purpose}", _PLACE_COUNT)[rows, places]
        self._set_materials(rows, surfaces, families, pick, draws)

    def _set_materials(
        self, rows: IntArray, surfaces: IntArray | int, families: Sequence[str], pick: FloatArray, draws: FloatArray
    ) -> None:
        surfaces = np.broadcast_to(np.asarray(surfaces), rows.shape)
        chosen = np.minimum((pick * len(families)).astype(np.int64), len(families) - 1)
        for number, family in enumerate(families):
            where = np.flatnonzero(chosen == number)
            if len(where):
                made = material_rows(family, draws[where], self.domain.texture_contrast)
                self.material_rows[rows[where], surfaces[where]] = made

    def finish(self, seed: int, indices: Sequence[int]) -> RoomScenes:
        domain, random = self.domain, self.random
        width, depth, height = self.room.T
        draws = random.uniform("lights", LIGHT_COUNT, 5)
        position = np.stack(
            [
                0.5 * width[:, None] * (1.2 * draws[:, :, 0] - 0.6),
                0.5 * depth[:, None] * (1.2 * draws[:, :, 1] - 0.6),
                np.broadcast_to(height[:, None] - 0.45, draws.shape[:2]),
            ],
            axis=-1,
        )
        low, high = domain.lamp_count
        used = np.arange(LIGHT_COUNT) < (low + np.floor(random.uniform("lamp count") * (high - low + 1)))[:, None]
        strength = used * (0.5 + draws[:, :, 2]) * np.array([1.6, 1.0, 1.0])
        warmth = draws[:, :, 3, None] * np.array([0.06, 0.0, -0.14]) + np.array([1.0, 0.97, 0.95])
        # Normalised so that exposure means the same in large and small rooms.
        middle = np.stack([np.zeros_like(width), 0.1 * depth, np.full_like(width, 0.9)], axis=-1)
        received = (strength / (((position - middle[:, None]) ** 2).sum(axis=-1) + 1.0)).sum(axis=1)
        ambient_low, ambient_high = domain.ambient_share
        ambient = ambient_low + (ambient_high - ambient_low) * random.uniform("ambient share")
        color = strength[..., None] * warmth * (2.2 * (1.0 - ambient) / received)[:, None, None]
        angle = 2 * np.pi * random.uniform("moving direction")
        distance_low, distance_high = domain.moving_distance_m
        distance = distance_low + (distance_high - distance_low) * random.uniform("moving distance")
        displacement = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=-1) * distance[:, None]
        exposure_low, exposure_high = domain.exposure

        return RoomScenes(
            seed=seed,
            domain=domain,
            indices=torch.tensor(list(indices), dtype=torch.int64),
            room_size_m=_single(self.room),
            kind=torch.from_numpy(self.kind),
            valid=torch.from_numpy(self.valid),
            center_world_m=_single(self.center),
            R_world_object=_single(self.rotation),
            half_size_m=_single(self.half),
            taper=_single(self.taper),
            object_id=torch.from_numpy(self.object_id),
            casts_shadow=torch.from_numpy(self.casts_shadow),
            moving=torch.from_numpy(self.moving),
            displacement_m=_single(displacement),
            materials=to_table(self.material_rows),
            light_position_m=_single(position),
            light_color=_single(color),
            ambient_color=_single(ambient[:, None] * np.array([1.0, 1.0, 1.04])),
            exposure=_single(exposure_low + (exposure_high - exposure_low) * random.uniform("exposure")),
        )


def _single(values: FloatArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
