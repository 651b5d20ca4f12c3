"""Gaussians to begin with: their sizes and trust, and which points others have said already."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from reference.seed import naive_projection, naive_redundant
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.splat.seed import (
    COARSER_BY,
    SeedSettings,
    pixel_spacing_px,
    project,
    project_to_own_views,
    redundant_points,
    seed_gaussians,
)
from lora3d_ns.types import Cameras, Scene

WALL_Z = 4.0
KEEP_ALL = SeedSettings(redundancy=0.0)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A camera before the wall z = 4, with points on a grid of its pixels.

    Attributes:
        centre: Of the camera.
        turn_deg: About the y axis.
        focal_px: Along x; along y it is `focal_y_px` or the same.
        spacing_px: Source pixels between grid points.
        offset_px: Where the grid begins: network images are cropped out of the middle of their photos.
        cells: Columns and rows of the grid.
    """

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_deg: float = 0.0
    focal_px: float = 200.0
    focal_y_px: float | None = None
    spacing_px: float = 8.0
    offset_px: tuple[float, float] = (0.0, 0.0)
    cells: tuple[int, int] = (24, 18)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the photo."""
        width, height = (
            math.ceil(2 * offset + self.spacing_px * cells)
            for offset, cells in zip(self.offset_px, self.cells, strict=True)
        )
        return width, height

    @property
    def K(self) -> Tensor:
        focal_y_px = self.focal_px if self.focal_y_px is None else self.focal_y_px
        return torch.tensor(
            [[self.focal_px, 0.0, self.size[0] / 2], [0.0, focal_y_px, self.size[1] / 2], [0.0, 0.0, 1.0]]
        ).double()

    @property
    def T_world_camera(self) -> Tensor:
        angle = math.radians(self.turn_deg)
        T = torch.eye(4, dtype=torch.float64)
        T[0, 0] = T[2, 2] = math.cos(angle)
        T[0, 2], T[2, 0] = math.sin(angle), -math.sin(angle)
        T[:3, 3] = torch.tensor(self.centre)
        return T

    def pixels(self) -> Tensor:
        """Middles of the grid's cells in source pixels, row by row."""
        columns, rows = self.cells
        x = self.offset_px[0] + self.spacing_px * (torch.arange(columns).double() + 0.5)
        y = self.offset_px[1] + self.spacing_px * (torch.arange(rows).double() + 0.5)
        return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=1)

    def points(self, box: bool = False) -> Tensor:
        """What the grid sees: the wall, and before it, at z = 2, a square of side 1 if there is a box."""
        rays = torch.cat([self.pixels(), torch.ones(len(self.pixels()), 1).double()], dim=1)
        rays = rays @ torch.linalg.inv(self.K).T @ self.T_world_camera[:3, :3].T
        centre = self.T_world_camera[:3, 3]
        wall, front = (centre + (z - centre[2]) / rays[:, 2:] * rays for z in (WALL_Z, 2.0))
        hit = (front[:, :2].abs() < 0.5).all(dim=1, keepdim=True) if box and self.centre[2] < 2.0 else None
        return wall if hit is None else torch.where(hit, front, wall)


def scene_of(shots: Sequence[Shot], weights: Sequence[float], *, box: bool = False) -> Scene:
    """All that the shots see; the weights are one per shot."""
    points = [shot.points(box).float() for shot in shots]
    counts = torch.tensor([len(part) for part in points])
    total = int(counts.sum())
    return Scene(
        names=tuple(f"{view}.png" for view in range(len(shots))),
        cameras=Cameras(
            T_world_camera=torch.stack([shot.T_world_camera for shot in shots]),
            K=torch.stack([shot.K for shot in shots]),
            sizes=tuple(shot.size for shot in shots),
        ),
        points=torch.cat(points),
        colors=torch.arange(3 * total).remainder(251).reshape(total, 3).to(torch.uint8),
        point_weights=torch.tensor(weights).repeat_interleave(counts),
        point_views=torch.arange(len(shots), dtype=torch.int32).repeat_interleave(counts),
        provenance={},
        format_version=1,
    )


def with_weights(scene: Scene, weights: Tensor) -> Scene:
    return dataclasses.replace(scene, point_weights=weights)


def redundant_of(scene: Scene, tolerance: float) -> Tensor:
    views = scene.point_views.long()
    pixels, depths = project_to_own_views(scene.points, views, scene.cameras)
    spacings = torch.tensor([pixel_spacing_px(pixels[views == view]) for view in range(len(scene.names))])
    return redundant_points(
        scene.points, views, scene.point_weights, pixels, depths, scene.cameras, spacings, tolerance
    )


# --- projection ---------------------------------------------------------------------------------


def test_projection_agrees_with_the_formula() -> None:
    scene = scene_of([Shot(centre=(0.3, -0.2, 0.1), turn_deg=20.0, focal_y_px=180.0), Shot()], [1.0, 1.0])
    for view in range(2):
        pixels, depths = project(scene.points, scene.cameras, view)
        for index in range(0, len(scene.points), 37):
            x, y, z = naive_projection(scene.points[index], scene.cameras.T_world_camera[view], scene.cameras.K[view])
            # Pixels up to some 400 in float32: worst measured 1.7e-5.
            assert pixels[index].tolist() == pytest.approx([x, y], abs=5e-5)
            assert float(depths[index]) == pytest.approx(z, rel=1e-6)


def test_points_in_their_own_views_are_where_they_were_seen() -> None:
    shots = [Shot(centre=(0.3, -0.2, 0.1), turn_deg=20.0), Shot(offset_px=(3.7, 4.0))]
    scene = scene_of(shots, [1.0, 1.0])
    pixels, depths = project_to_own_views(scene.points, scene.point_views.long(), scene.cameras)
    # Worst measured 1.6e-5.
    torch.testing.assert_close(pixels, torch.cat([shot.pixels() for shot in shots]).float(), atol=5e-5, rtol=0.0)
    assert bool((depths > 0).all())


def test_what_lies_behind_has_no_positive_depth_and_finite_pixels() -> None:
    cameras = scene_of([Shot()], [1.0]).cameras
    pixels, depths = project(torch.tensor([[0.0, 0.0, -3.0], [1.0, 1.0, 0.0]]), cameras, 0)
    assert depths.tolist() == [-3.0, 0.0]
    assert bool(torch.isfinite(pixels).all())


# --- spacing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing_px", [0.75, 1.0, 7.875, 31.25])
def test_spacing_of_a_grid_with_holes_is_exact(spacing_px: float) -> None:
    shot = Shot(spacing_px=spacing_px, offset_px=(2.5, 0.0))
    pixels = shot.pixels().float()
    generator = torch.Generator().manual_seed(0)
    # Numbers with few bits: every distance between neighbours is exact in float32.
    for share in (1.0, 0.6, 0.4):
        kept = pixels[torch.rand(len(pixels), generator=generator) < share]
        assert pixel_spacing_px(kept) == spacing_px


def test_spacing_of_one_point_or_none_is_one_pixel() -> None:
    assert pixel_spacing_px(torch.zeros(0, 2)) == 1.0
    assert pixel_spacing_px(torch.full((1, 2), 7.0)) == 1.0
    # Two points in one place must not make a Gaussian of no size.
    assert pixel_spacing_px(torch.full((2, 2), 7.0)) > 0.0


# --- sizes and trust ----------------------------------------------------------------------------


def test_sigma_is_the_footprint_of_a_pixel() -> None:
    shots = [
        Shot(focal_px=200.0, focal_y_px=220.0, turn_deg=15.0),
        Shot(focal_px=350.0, spacing_px=5.0, centre=(0.4, 0.0, -2.0)),
    ]
    scene = scene_of(shots, [1.0, 1.0])
    seeds = seed_gaussians(scene, SeedSettings(redundancy=0.0, footprint=0.7))
    for index in range(0, len(scene.points), 29):
        view = int(scene.point_views[index])
        z = naive_projection(scene.points[index], scene.cameras.T_world_camera[view], scene.cameras.K[view])[2]
        focal = (210.0, 350.0)[view]
        # The spacing is measured in float32 pixels: worst relative error measured 1.1e-6.
        assert float(seeds.sigmas[index]) == pytest.approx(0.7 * shots[view].spacing_px * z / focal, rel=4e-6)


def test_opacity_and_rate_say_how_far_a_point_is_believed() -> None:
    scene = scene_of([Shot()], [1.0])
    weights = torch.linspace(0.0, 60.0, len(scene.points))
    settings = SeedSettings(
        redundancy=0.0, weight_cutoff=0.0, opacity_low=0.2, opacity_high=0.7, half_weight=2.0, slowest_rate=0.3
    )
    seeds = seed_gaussians(with_weights(scene, weights), settings)
    assert bool((seeds.opacities.diff() > 0).all())
    assert bool((seeds.rates.diff() < 0).all())
    assert float(seeds.opacities[0]) == pytest.approx(0.2)
    assert float(seeds.rates[0]) == 1.0
    assert bool((seeds.opacities < 0.7).all())
    assert bool((seeds.rates > 0.3).all())
    for index in (1, 17, 200):
        w = float(weights[index])
        assert float(seeds.opacities[index]) == pytest.approx(0.2 + 0.5 * w / (w + 2.0), rel=1e-6)
        assert float(seeds.rates[index]) == pytest.approx(0.3 + 0.7 * 2.0 / (w + 2.0), rel=1e-6)


def test_seeds_are_the_scenes_own_points() -> None:
    scene = scene_of([Shot(), Shot(centre=(0.5, 0.0, 0.0))], [1.0, 0.8])
    seeds = seed_gaussians(scene)
    assert 0 < len(seeds.chosen) < len(scene.points)
    assert bool((seeds.chosen.diff() > 0).all())
    assert torch.equal(seeds.points, scene.points[seeds.chosen])
    assert torch.equal(seeds.colors, scene.colors[seeds.chosen])


def test_points_below_the_cutoff_make_none() -> None:
    scene = scene_of([Shot()], [1.0])
    weights = torch.full((len(scene.points),), 0.3)
    weights[::3] = 0.29
    weights[1::3] = 5.0
    seeds = seed_gaussians(with_weights(scene, weights), SeedSettings(weight_cutoff=0.3, redundancy=0.0))
    assert torch.equal(seeds.chosen, (weights >= 0.3).nonzero()[:, 0])


def test_the_cap_takes_the_largest_weights_and_the_first_of_equal_ones() -> None:
    scene = scene_of([Shot()], [1.0])
    generator = torch.Generator().manual_seed(3)
    weights = torch.randint(1, 9, (len(scene.points),), generator=generator).float()
    seeds = seed_gaussians(with_weights(scene, weights), SeedSettings(redundancy=0.0, at_most=100))
    wanted = sorted(sorted(range(len(weights)), key=lambda index: (-float(weights[index]), index))[:100])
    assert seeds.chosen.tolist() == wanted
    most = seed_gaussians(scene, SeedSettings(redundancy=0.0, at_most=len(scene.points)))
    assert len(most.chosen) == len(scene.points)


def test_a_scene_that_nobody_believes_is_an_error() -> None:
    scene = scene_of([Shot()], [0.05])
    with pytest.raises(InvalidDataError, match=r"weight of 0\.1"):
        seed_gaussians(scene)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_cutoff": -0.1},
        {"weight_cutoff": math.nan},
        {"redundancy": -1.0},
        {"at_most": 0},
        {"footprint": 0.0},
        {"footprint": math.inf},
        {"half_weight": 0.0},
        {"slowest_rate": 0.0},
        {"slowest_rate": 1.1},
        {"opacity_low": 0.0},
        {"opacity_high": 1.0},
        {"opacity_low": 0.9},
    ],
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        SeedSettings(**wrong)  # pyright: ignore[reportArgumentType]


# --- redundancy ---------------------------------------------------------------------------------


def test_without_redundancy_all_points_stay() -> None:
    scene = scene_of([Shot(), Shot()], [1.0, 1.0])
    assert len(seed_gaussians(scene, KEEP_ALL).chosen) == len(scene.points)


@pytest.mark.parametrize("offset_px", [(0.0, 0.0), (3.7, 2.0), (4.0, 12.0)])
def test_of_two_equal_views_the_better_one_stays_as_a_whole(offset_px: tuple[float, float]) -> None:
    """Also where the crop begins in the middle of a network pixel: grid points then lie on multiples of the spacing."""
    for shift in (0.0, 1e-4, 0.02):
        shots = [Shot(offset_px=offset_px, centre=(shift, 0.6 * shift, 0.0)), Shot(offset_px=offset_px)]
        scene = scene_of(shots, [0.8, 0.9])
        seeds = seed_gaussians(scene)
        assert torch.equal(seeds.chosen, (scene.point_views == 1).nonzero()[:, 0])
    alike = seed_gaussians(scene_of([Shot(offset_px=offset_px)] * 2, [1.0, 1.0]))
    assert torch.equal(alike.chosen, (scene.point_views == 0).nonzero()[:, 0])


def test_a_close_up_is_not_sacrificed_to_a_far_view() -> None:
    scene = scene_of([Shot(), Shot(centre=(0.0, 0.0, 2.0))], [5.0, 0.2])
    seeds = seed_gaussians(scene)
    assert torch.equal(seeds.chosen, torch.arange(len(scene.points)))
    # The other way round the far view says nothing new where the close-up was.
    other = scene_of([Shot(), Shot(centre=(0.0, 0.0, 2.0))], [0.2, 5.0])
    left = seed_gaussians(other).chosen
    assert torch.equal(left[left >= len(other.points) // 2], torch.arange(len(other.points) // 2, len(other.points)))
    middle = other.points[: len(other.points) // 2, :2].abs()
    inside = (middle[:, 0] < 0.9) & (middle[:, 1] < 0.65)
    assert int(inside.sum()) > 80
    assert not bool(inside[left[left < len(other.points) // 2]].any())


def test_nor_step_by_step_through_views_in_between() -> None:
    """Each view's pixels are within the factor of the next one's, the first's and the last's are not."""
    distances = (4.0, 4.0 / 1.4, 4.0 / 1.4**2, 4.0 / 1.4**3)
    shots = [Shot(centre=(0.0, 0.0, WALL_Z - distance)) for distance in distances]
    scene = scene_of(shots, [4.0, 3.0, 2.0, 1.0])
    redundant = redundant_of(scene, 0.05)
    by_view = [float(redundant[scene.point_views == view].float().mean()) for view in range(4)]
    assert by_view[0] == 0.0
    assert by_view[1] > 0.9
    # What could have made them redundant is redundant itself, and the first view is twice as coarse.
    assert by_view[2] == 0.0
    assert by_view[3] > 0.9


def test_surfaces_that_the_other_view_does_not_see_stay() -> None:
    """A square hides part of the wall from the first view, and its image ends somewhere."""
    shots = [Shot(), Shot(centre=(1.0, 0.0, 0.0))]
    scene = scene_of(shots, [5.0, 1.0], box=True)
    seeds = seed_gaussians(scene)
    stays = torch.zeros(len(scene.points), dtype=torch.bool)
    stays[seeds.chosen] = True
    second = scene.point_views == 1
    on_wall = scene.points[:, 2] > 3.0
    # The shadow of the square on the wall, as the first camera (in the origin) throws it.
    hidden = second & on_wall & (scene.points[:, :2].abs() < 1.0).all(dim=1)
    outside = second & on_wall & (scene.points[:, 0] > 4.0 * 96.0 / 200.0)
    assert int(hidden.sum()) > 30
    assert int(outside.sum()) > 30
    assert bool(stays[hidden].all())
    assert bool(stays[outside].all())
    # What both see, a cell inside the borders, does not.
    seen = second & on_wall & (scene.points[:, 0] > 1.2) & (scene.points[:, 0] < 1.7)
    front = second & ~on_wall & (scene.points[:, :2].abs() < 0.4).all(dim=1)
    assert int(seen.sum()) > 30
    assert int(front.sum()) > 30
    assert not bool(stays[seen].any())
    assert not bool(stays[front].any())


def test_other_depths_stay() -> None:
    """The same wall, but the second view thinks it 3 % further away."""
    scene = scene_of([Shot(), Shot()], [2.0, 1.0])
    points = torch.where((scene.point_views == 1)[:, None], 1.03 * scene.points, scene.points)
    moved = dataclasses.replace(scene, points=points)
    assert len(seed_gaussians(moved, SeedSettings(redundancy=0.02)).chosen) == len(points)
    assert len(seed_gaussians(moved, SeedSettings(redundancy=0.04)).chosen) == len(points) // 2


def test_cameras_that_look_away_leave_everything() -> None:
    away = dataclasses.replace(Shot(), turn_deg=180.0)
    scene = scene_of([Shot(), Shot()], [2.0, 1.0])
    T = torch.stack([away.T_world_camera, Shot().T_world_camera])
    own_points = torch.cat([away.points(), Shot().points()]).float()
    # The first camera sees a wall behind the origin: the second one's points are behind it.
    own_points[scene.point_views == 0, 2] = -WALL_Z
    turned = dataclasses.replace(scene, cameras=dataclasses.replace(scene.cameras, T_world_camera=T), points=own_points)
    assert len(seed_gaussians(turned).chosen) == len(scene.points)


def random_scene(seed: int) -> Scene:
    """Four views of the wall from all sides, with holes, noise of depth and weights."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    shots = [
        Shot(
            centre=(between(-0.6, 0.6), between(-0.4, 0.4), between(-1.0, 1.5)),
            turn_deg=between(-12.0, 12.0),
            focal_px=between(150.0, 260.0),
            spacing_px=between(5.0, 10.0),
            offset_px=(between(0.0, 30.0), between(0.0, 30.0)),
            cells=(14, 11),
        )
        for _ in range(4)
    ]
    scene = scene_of(shots, [1.0] * 4, box=True)
    count = len(scene.points)
    T = scene.cameras.T_world_camera[scene.point_views.long()]
    factor = 1.0 + 0.02 * torch.randn(count, 1, generator=generator)
    centres = T[:, :3, 3].float()
    points = centres + factor * (scene.points - centres)
    kept = torch.rand(count, generator=generator) < 0.7
    return dataclasses.replace(
        scene,
        points=points[kept],
        colors=scene.colors[kept],
        point_weights=torch.rand(count, generator=generator)[kept] + 0.1,
        point_views=scene.point_views[kept],
    )


@pytest.mark.parametrize("seed", range(4))
def test_redundancy_agrees_with_its_definition(seed: int) -> None:
    scene = random_scene(seed)
    views = scene.point_views.tolist()
    pixels, _ = project_to_own_views(scene.points, scene.point_views.long(), scene.cameras)
    spacings = [pixel_spacing_px(pixels[scene.point_views == view]) for view in range(4)]
    expected = naive_redundant(
        scene.points,
        views,
        scene.point_weights.tolist(),
        scene.cameras.T_world_camera,
        scene.cameras.K,
        spacings,
        tolerance=0.03,
        coarser_by=COARSER_BY,
    )
    redundant = redundant_of(scene, 0.03)
    assert 0.05 < float(redundant.float().mean()) < 0.7
    assert redundant.tolist() == expected


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_worlds_frame_and_unit_do_not_matter(scale: float) -> None:
    scene = random_scene(0)
    settings = SeedSettings(redundancy=0.05)
    before = seed_gaussians(scene, settings)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())
    turn = turn * torch.sign(torch.linalg.det(turn))
    shift = scale * torch.tensor([3.0, -5.0, 2.0]).double()
    T = scene.cameras.T_world_camera.clone()
    T[:, :3, :3] = turn @ T[:, :3, :3]
    T[:, :3, 3] = scale * T[:, :3, 3] @ turn.T + shift
    moved = dataclasses.replace(
        scene,
        points=(scale * scene.points.double() @ turn.T + shift).float(),
        cameras=dataclasses.replace(scene.cameras, T_world_camera=T),
    )
    after = seed_gaussians(moved, settings)
    assert len(before.chosen) < 0.95 * len(scene.points)
    assert torch.equal(after.chosen, before.chosen)
    assert torch.equal(after.opacities, before.opacities)
    assert torch.equal(after.rates, before.rates)
    # The spacing is measured in float32 pixels: worst relative difference measured 9e-6.
    torch.testing.assert_close(after.sigmas, scale * before.sigmas, rtol=4e-5, atol=0.0)
