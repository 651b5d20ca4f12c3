"""What rooms of one kind have in common: sizes, furniture, light, cameras and the defects of their photos.

`NOMINAL` is what the bundled network is trained on. Each other domain departs from it in one named way, so that
self-calibration has something to do that the network has not seen.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from lora3d_ns.errors import SettingsError

Range = tuple[float, float]
DomainName = Literal["nominal", "dark", "sparse", "tele", "clutter", "moving"]

FurnitureKind = Literal[
    "table", "shelf", "cabinet", "sofa", "chair", "bed", "lamp", "plant", "crates", "ball",
    "cones", "capsules", "prisms",
]  # fmt: skip
MaterialFamily = Literal[
    "plaster", "dots", "stripes", "brick", "planks", "tiles", "carpet", "wood", "fabric", "paint", "checker", "books",
    "poster", "leaf", "metal", "lamp", "marble", "rings",
]  # fmt: skip

_COMMON_FURNITURE: tuple[FurnitureKind, ...] = (
    "table", "shelf", "shelf", "cabinet", "sofa", "chair", "bed", "lamp", "plant", "crates", "ball",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RoomDomain:
    """Settings of one kind of room. Ranges are (low, high), drawn uniformly for each scene unless said otherwise.

    Attributes:
        name: What the domain is called in reports.
        room_width_m, room_depth_m, room_height_m: Inner size of the room along the world's x, y and z (up).
        furniture: Kinds that stand along the walls and in the middle; a kind named twice is twice as likely.
        wall_materials, floor_materials: Texture families of walls and floor.
        box_materials, accent_materials, soft_materials, vivid_materials: Families of furniture: of the body, of its
            smaller parts, of what is upholstered, and of the things that lie about.
        texture_contrast: Factor on the contrast of the noise in all textures.
        slot_fill: Probability that a place for furniture is used.
        centre_item_count: How many of the three places in the middle are used, as whole numbers.
        poster_count: Posters on the walls, as whole numbers, at most 6.
        lamp_count: Point lights under the ceiling, as whole numbers, 1 to 3.
        exposure: Photographic exposure: 1 shows a white surface in average light as nearly white.
        ambient_share: Part of the light that comes from everywhere.
        cast_shadows: Whether the first lamp casts (hard) shadows.
        fov_deg: Field of view along the longer side of the photo.
        camera_height_m: Height of the path of cameras above the floor.
        orbit_span_deg: Angle about the furnished part that the path of one scene covers.
        pan_span_deg: How far the cameras turn away from it, from the path's beginning to its end.
        distance_share: Distance of the path from what it looks at, as a share of what the room allows.
        position_jitter_m, aim_jitter_m: Largest departure of a hand-held camera and of what it aims at.
        roll_deg: Largest roll about the viewing axis.
        clearance_m: Cameras keep at least this distance from every surface.
        moving_distance_m: How far one object moves along x and y between the first and the last photo (0: static).
        read_noise: Standard deviation of the sensor's noise, on exposed linear values where 1 is white.
        shot_noise: Variance of the noise per unit of signal, likewise.
        blur_share: Standard deviation of the blur as a share of the photo's longer side.
        exposure_jitter: Largest relative change of exposure from photo to photo.
    """

    name: str
    room_width_m: Range = (4.2, 6.5)
    room_depth_m: Range = (4.2, 6.5)
    room_height_m: Range = (2.4, 3.1)
    furniture: tuple[FurnitureKind, ...] = _COMMON_FURNITURE
    wall_materials: tuple[MaterialFamily, ...] = ("plaster", "dots", "stripes", "brick", "plaster")
    floor_materials: tuple[MaterialFamily, ...] = ("planks", "tiles", "carpet", "planks")
    box_materials: tuple[MaterialFamily, ...] = ("wood", "wood", "wood", "paint", "checker")
    accent_materials: tuple[MaterialFamily, ...] = ("wood", "paint")
    soft_materials: tuple[MaterialFamily, ...] = ("fabric", "fabric", "paint", "dots")
    vivid_materials: tuple[MaterialFamily, ...] = ("checker", "fabric", "poster", "paint", "carpet")
    texture_contrast: float = 1.0
    slot_fill: float = 0.93
    centre_item_count: tuple[int, int] = (1, 3)
    poster_count: tuple[int, int] = (4, 6)
    lamp_count: tuple[int, int] = (1, 3)
    exposure: Range = (0.85, 1.2)
    ambient_share: Range = (0.3, 0.5)
    cast_shadows: bool = True
    fov_deg: Range = (50.0, 75.0)
    camera_height_m: Range = (1.1, 1.75)
    orbit_span_deg: Range = (45.0, 110.0)
    pan_span_deg: Range = (-15.0, 15.0)
    distance_share: Range = (0.7, 0.98)
    position_jitter_m: float = 0.15
    aim_jitter_m: float = 0.25
    roll_deg: float = 4.0
    clearance_m: float = 0.3
    moving_distance_m: Range = (0.0, 0.0)
    read_noise: float = 0.004
    shot_noise: float = 0.0001
    blur_share: float = 0.0
    exposure_jitter: float = 0.04

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, (int, float)) for part in value):
                self._check(value[0] <= value[1], f"{field.name} {value} must be (low, high)")
        for name in ("room_width_m", "room_depth_m"):
            self._check(getattr(self, name)[0] >= 3.5, f"{name} {getattr(self, name)} leaves no room for cameras")
        self._check(self.room_height_m[0] >= 2.2, f"room_height_m {self.room_height_m} must be at least 2.2")
        self._check(
            self.camera_height_m[0] >= 0.5 and self.camera_height_m[1] <= self.room_height_m[0] - 0.5,
            f"camera_height_m {self.camera_height_m} must lie between 0.5 m and 0.5 m below the lowest ceiling",
        )
        self._check(
            self.fov_deg[0] >= 5 and self.fov_deg[1] <= 120, f"fov_deg {self.fov_deg} must lie within 5 and 120"
        )
        self._check(self.exposure[0] > 0, f"exposure {self.exposure} must be positive")
        self._check(
            self.ambient_share[0] >= 0 and self.ambient_share[1] <= 1,
            f"ambient_share {self.ambient_share} must lie within 0 and 1",
        )
        self._check(
            self.distance_share[0] >= 0.2 and self.distance_share[1] <= 1,
            f"distance_share {self.distance_share} must lie within 0.2 and 1",
        )
        self._check(0 <= self.slot_fill <= 1, f"slot_fill {self.slot_fill} must lie within 0 and 1")
        self._check(0 < self.clearance_m <= 0.4, f"clearance_m {self.clearance_m} must lie within 0 and 0.4")
        for name, low, high in (("centre_item_count", 0, 3), ("poster_count", 0, 6), ("lamp_count", 1, 3)):
            value = getattr(self, name)
            self._check(low <= value[0] and value[1] <= high, f"{name} {value} must lie within {low} and {high}")
        for name in (
            "furniture", "wall_materials", "floor_materials", "box_materials", "accent_materials", "soft_materials",
            "vivid_materials",
        ):  # fmt: skip
            self._check(len(getattr(self, name)) > 0, f"{name} is empty")
        for name in (
            "texture_contrast", "position_jitter_m", "aim_jitter_m", "roll_deg", "read_noise", "shot_noise",
            "blur_share", "exposure_jitter",
        ):  # fmt: skip
            self._check(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        self._check(self.exposure_jitter < 1, f"exposure_jitter must be below 1, not {self.exposure_jitter}")
        self._check(
            self.moving_distance_m[0] >= 0 and self.moving_distance_m[1] <= 2,
            f"moving_distance_m {self.moving_distance_m} must lie within 0 and 2",
        )

    def _check(self, condition: bool, problem: str) -> None:
        if not condition:
            raise SettingsError(f"room domain {self.name!r}: {problem}", way_out="Change the domain's settings")

    @property
    def has_moving_object(self) -> bool:
        """Whether something moves between the photos."""
        return self.moving_distance_m[1] > 0

    def without_photo_defects(self) -> "RoomDomain":
        """The same rooms and cameras with perfect photos: no noise, blur or change of exposure."""
        return dataclasses.replace(self, read_noise=0.0, shot_noise=0.0, blur_share=0.0, exposure_jitter=0.0)


NOMINAL = RoomDomain(name="nominal")
DARK = RoomDomain(
    name="dark",
    exposure=(0.08, 0.2),
    ambient_share=(0.15, 0.3),
    read_noise=0.012,
    shot_noise=0.0015,
    blur_share=0.003,
    exposure_jitter=0.25,
)
SPARSE = RoomDomain(name="sparse", pan_span_deg=(105.0, 160.0), orbit_span_deg=(45.0, 110.0))
TELE = RoomDomain(
    name="tele", fov_deg=(24.0, 36.0), distance_share=(0.92, 1.0), orbit_span_deg=(20.0, 45.0), aim_jitter_m=0.15
)
CLUTTER = RoomDomain(
    name="clutter",
    furniture=("cones", "capsules", "prisms", "cones", "capsules", "prisms", "shelf", "table"),
    wall_materials=("marble", "rings", "plaster"),
    floor_materials=("marble", "rings", "tiles"),
    box_materials=("marble", "rings"),
    accent_materials=("marble",),
    soft_materials=("rings",),
    vivid_materials=("marble", "rings"),
    slot_fill=1.0,
    centre_item_count=(2, 3),
)
MOVING = RoomDomain(name="moving", centre_item_count=(1, 2), moving_distance_m=(0.6, 1.2))

DOMAINS: Mapping[str, RoomDomain] = MappingProxyType(
    {domain.name: domain for domain in (NOMINAL, DARK, SPARSE, TELE, CLUTTER, MOVING)}
)


def domain_by_name(name: str) -> RoomDomain:
    """The named domain.

    Raises:
        SettingsError: There is none of that name.
    """
    if name not in DOMAINS:
        raise SettingsError(f"there is no room domain {name!r}", way_out=f"Choose one of {', '.join(DOMAINS)}")
    return DOMAINS[name]
