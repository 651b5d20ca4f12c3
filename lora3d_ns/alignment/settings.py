"""How an alignment is made."""

import math
from dataclasses import dataclass
from typing import Literal

from lora3d_ns.errors import SettingsError

Objective = Literal["robust", "plain"]
FocalModel = Literal["auto", "shared", "per_image"]


@dataclass(frozen=True, kw_only=True)
class KnownDistance:
    """A length measured in the real world, which gives the scene its unit.

    Attributes:
        first, second: Names of two photos.
        first_px, second_px: (x, y) in their source pixels: the distance is between the points seen there. None: between
            the cameras themselves.
        distance: The length, in the unit the scene shall have.
    """

    first: str
    second: str
    distance: float
    first_px: tuple[float, float] | None = None
    second_px: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.distance < math.inf:
            raise SettingsError(f"a known distance of {self.distance}", way_out="Give a positive length")


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """How an alignment is made. Shares of depth are of the scene's typical depth, so they hold in any unit.

    Attributes:
        objective: "robust" is LoRA3D's Eq. 7 with edges that contradict the rest left out; "plain" is Eq. 6, DUSt3R's
            own, over all edges and all pixels.
        mu: Of Eq. 7, as a share of depth: a point off by mu has a quarter of its confidence left.
        cutoff: Log-confidence below which a point has no say (LoRA3D: 0.5); "plain" has none.
        focal: One focal length for all photos, one for each, or one for each group that EXIF and size put together.
        principal_point: Whether to estimate it too; else it is the photo's centre, or the known one.
        principal_point_offset_px: Added to the centre, in network pixels.
        solver: "fast" is Gauss-Newton with depths eliminated; "adam" is the paper's: Adam on everything, weights
            updated every ten steps. It knows point maps only: no matches, and known poses as they are.
        matches: "auto" finds 2D correspondences and lets them correct the cameras; "off" leaves all to the point maps.
        match_weight: Weight of the matches against the point maps, see `alignment.reprojection`.
        known_poses: Known poses are kept as they are, or pull with the two prior numbers below.
        pose_prior_deg, pose_prior_share: How far a known pose may be off: rotation, and centre as a share of depth.
        known_distances: Measured lengths.
        mask_moving: Whether pixels that no static geometry explains lose their say, found after a first solution.
        coarse_pixels: Pixels of each view on the grid that the first solution is found on.
        coarse_iterations, full_iterations: At most so many steps on that grid, and on all pixels.
        tolerance: Converged when a step lowers the objective by less than this share; see `alignment.solve`.
        show_progress: Whether to draw a bar.
    """

    objective: Objective = "robust"
    mu: float = 0.1
    cutoff: float = 0.5
    focal: FocalModel = "auto"
    principal_point: bool = False
    principal_point_offset_px: tuple[float, float] = (0.0, 0.0)
    solver: Literal["fast", "adam"] = "fast"
    matches: Literal["auto", "off"] = "auto"
    match_weight: float = 20.0
    known_poses: Literal["fixed", "prior"] = "fixed"
    pose_prior_deg: float = 1.0
    pose_prior_share: float = 0.02
    known_distances: tuple[KnownDistance, ...] = ()
    mask_moving: bool = False
    coarse_pixels: int = 700
    coarse_iterations: int = 40
    full_iterations: int = 6
    tolerance: float = 1e-4
    show_progress: bool = True

    def __post_init__(self) -> None:
        for name in ("mu", "tolerance", "pose_prior_deg", "pose_prior_share"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be positive, not {getattr(self, name)}", way_out="Leave it out")
        for name in ("cutoff", "match_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must not be negative, not {getattr(self, name)}", way_out="Leave it out")
        for name in ("coarse_pixels", "coarse_iterations", "full_iterations"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}", way_out="Leave it out")
        if self.solver == "adam" and self.matches == "auto":
            raise SettingsError(
                "the solver adam knows point maps only", way_out="Set matches to off, or solver to fast"
            )
