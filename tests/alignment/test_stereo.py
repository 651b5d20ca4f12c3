"""Depths corrected by comparing photos: against loops, against the truth of rooms, and where it must not act."""

import dataclasses
import functools
import math

import pytest
import torch
from aligned_rooms import OFF, exact, replaced, room
from reference.stereo import naive_costs, naive_path_costs
from torch import Tensor

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.matches import Matches
from lora3d_ns.alignment.stereo import (
    PosedImage,
    StereoSettings,
    best_neighbours,
    log_depth_change,
    matching_costs,
    path_costs,
    with_stereo_depths,
)
from lora3d_ns.alignment.verification import PairMatches
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.types import AlignedScene, Cameras

SHAPES = ((48, 64), (64, 48))


def linked(*pairs: tuple[int, int]) -> Matches:
    """Matches that say nothing but which photos belong together."""
    some = PairMatches(
        pixels_first=torch.ones(1, 2, dtype=torch.float64), pixels_second=torch.ones(1, 2, dtype=torch.float64)
    )
    return Matches(pairs=dict.fromkeys(pairs, some))


def chain(count: int) -> Matches:
    return linked(*((view, view + 1) for view in range(count - 1)))


@functools.cache
def warped_room(count: int = 6, shapes: tuple[tuple[int, int], ...] = ((48, 64),)) -> tuple[RoomPhotos, AlignedScene]:
    """A room with true cameras, whose depths a smooth wave of 15 % has bent, as networks do."""
    photos = room(count, shapes=shapes, seed=3, supersample=2)
    scene = align(photos.views, exact(count, shapes=shapes, seed=3), OFF)
    depths = []
    for view, depth in enumerate(photos.depths_m):
        height, width = depth.shape
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        depths.append(depth * (1.0 + 0.15 * torch.sin(5.0 * x + 3.0 * y + view)))
    cameras = Cameras(T_world_camera=photos.cameras.T_world_camera, K=photos.cameras.K, sizes=photos.views.source_sizes)
    diagnosis = dataclasses.replace(scene.diagnosis, match_count=1000)
    return photos, dataclasses.replace(scene, depths=tuple(depths), cameras=cameras, diagnosis=diagnosis)


def depth_errors(scene: AlignedScene, photos: RoomPhotos) -> Tensor:
    """Mean relative error of each view's depth."""
    return torch.stack(
        [((depth - true).abs() / true).mean() for depth, true in zip(scene.depths, photos.depths_m, strict=True)]
    )


def small_images(seed: int, masked: bool = True) -> list[PosedImage]:
    """Three tiny photos of random colours before a wavy surface at depth 2."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for view, (height, width) in enumerate(((9, 11), (10, 9), (9, 11))):
        T = torch.eye(4)
        T[:3, 3] = torch.tensor([0.1 * view, -0.05 * view, 0.0])
        counts = torch.ones(height, width, dtype=torch.bool)
        if masked and view:
            counts[8, 8] = False
        K = torch.tensor([[9.0, 0.0, width / 2], [0.0, 9.0, height / 2], [0.0, 0.0, 1.0]])
        made.append(
            PosedImage(
                image=torch.rand(3, height, width, generator=generator),
                counts=counts,
                depth=2.0 + 0.3 * torch.rand(height, width, generator=generator),
                K=K,
                T_world_camera=T,
            )
        )
    return made


# --- against loops --------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "window_px"), [(0, 0.75), (1, 1.4)])
def test_costs_are_those_of_the_loops(seed: int, window_px: float) -> None:
    images = small_images(seed)
    settings = StereoSettings(kept_share=0.5, contrast=0.1)
    changes = torch.tensor([-0.2, 0.0, 0.15])
    costs = matching_costs(images[0], images[1:], changes, window_px, settings)
    naive = naive_costs(
        [image.image for image in images],
        [image.counts for image in images],
        [image.K for image in images],
        [image.T_world_camera for image in images],
        images[0].depth,
        changes.exp().tolist(),
        window_px=window_px,
        contrast=settings.contrast,
        kept_share=settings.kept_share,
    )
    assert (naive - 1.0).abs().max() > 0.2  # there is something to compare
    assert (naive == 1.0).any()  # and there are pixels that no photo shows
    torch.testing.assert_close(costs.double(), naive, atol=2e-5, rtol=0.0)


def test_masked_pixels_of_the_photo_itself_cost_the_same_everywhere() -> None:
    images = small_images(2, masked=False)
    counts = images[0].counts.clone()
    counts[5, 6] = False  # with the window around it
    masked = dataclasses.replace(images[0], counts=counts)
    costs = matching_costs(masked, images[1:], torch.tensor([-0.1, 0.1]), 0.75, StereoSettings())
    assert (costs[:, 3:8, 4:9] == 1.0).all()
    assert (costs[:, 4, 2] != 1.0).all()


def test_paths_are_those_of_the_loops() -> None:
    costs = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(path_costs(costs, 0.1, 0.25), naive_path_costs(costs, 0.1, 0.25))


# --- against the truth ----------------------------------------------------------------------------


def test_bent_depths_become_straight() -> None:
    photos, scene = warped_room()
    corrected = with_stereo_depths(photos.views, scene, chain(6))
    before, after = depth_errors(scene, photos), depth_errors(corrected, photos)
    assert corrected.refined_views == tuple(range(6))
    assert before.mean() > 0.08
    assert after.mean() < 0.4 * before.mean()
    assert (after < before).all()


def test_photos_of_several_shapes_and_a_smaller_size_to_compare_at() -> None:
    photos, scene = warped_room(6, SHAPES)
    corrected = with_stereo_depths(photos.views, scene, chain(6), StereoSettings(longest_side_px=40))
    assert [tuple(depth.shape) for depth in corrected.depths] == [SHAPES[view % 2] for view in range(6)]
    assert depth_errors(corrected, photos).mean() < 0.6 * depth_errors(scene, photos).mean()


def test_the_unit_does_not_matter() -> None:
    photos, scene = warped_room()
    T = scene.cameras.T_world_camera.clone()
    T[:, :3, 3] *= 8.0
    larger = dataclasses.replace(
        scene,
        depths=tuple(depth * 8.0 for depth in scene.depths),
        cameras=dataclasses.replace(scene.cameras, T_world_camera=T),
    )
    ours, larger = (with_stereo_depths(photos.views, one, chain(6)) for one in (scene, larger))
    for depth, other in zip(ours.depths, larger.depths, strict=True):
        torch.testing.assert_close(8.0 * depth, other, rtol=1e-4, atol=0.0)


# --- where it must not act ------------------------------------------------------------------------


def test_without_texture_the_network_keeps_its_word() -> None:
    images = [dataclasses.replace(image, image=torch.full_like(image.image, 0.5)) for image in small_images(5)]
    change = log_depth_change(images[0], images[1:], StereoSettings())
    assert change.abs().max() < 1e-4


def test_only_photos_that_matches_link_are_touched() -> None:
    photos, scene = warped_room()
    corrected = with_stereo_depths(photos.views, scene, linked((0, 1), (1, 2), (4, 5)))
    assert corrected.refined_views == (0, 1, 2, 4, 5)
    assert torch.equal(corrected.depths[3], scene.depths[3])
    # 0 and 5 are in different groups: what 5 looks like has no say in 0.
    images = list(photos.views.images)
    images[5] = 1.0 - images[5]
    other = with_stereo_depths(
        dataclasses.replace(photos.views, images=tuple(images)), scene, linked((0, 1), (1, 2), (4, 5))
    )
    assert torch.equal(other.depths[0], corrected.depths[0])
    assert not torch.equal(other.depths[4], corrected.depths[4])


@pytest.mark.parametrize("why", ["off", "none", "too few"])
def test_without_matches_nothing_happens(why: str) -> None:
    photos, scene = warped_room()
    if why == "too few":
        scene = dataclasses.replace(scene, diagnosis=dataclasses.replace(scene.diagnosis, match_count=0))
    settings = StereoSettings(use="off" if why == "off" else "auto")
    assert with_stereo_depths(photos.views, scene, None if why == "none" else chain(6), settings) is scene


def test_masked_pixels_have_no_say() -> None:
    photos, scene = warped_room()
    mask = torch.ones(48, 64, dtype=torch.bool)
    mask[:, :32] = False
    painted = photos.views.images[1].clone()
    painted[:, :, :32] = torch.rand(3, 48, 32, generator=torch.Generator().manual_seed(6))
    views = replaced(photos.views, masks={1: mask})
    first = with_stereo_depths(views, scene, chain(6))
    second = with_stereo_depths(replaced(views, images={1: painted}), scene, chain(6))
    assert torch.equal(first.depths[0], second.depths[0])
    assert not torch.equal(first.depths[0], with_stereo_depths(photos.views, scene, chain(6)).depths[0])


# --- which photos are compared --------------------------------------------------------------------


def test_neighbours_see_the_same_from_elsewhere() -> None:
    def camera(x: float, turned_deg: float = 0.0) -> PosedImage:
        image = small_images(7, masked=False)[0]
        T = torch.eye(4)
        angle = math.radians(turned_deg)
        T[0, 0], T[0, 2], T[2, 0], T[2, 2] = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
        T[0, 3] = x
        return dataclasses.replace(image, T_world_camera=T)

    same_place, near, aside, away = camera(0.0), camera(0.02), camera(0.4), camera(0.4, turned_deg=180.0)
    chosen = best_neighbours(camera(0.0), [same_place, away, near, aside], most=4)
    assert len(chosen) == 2  # one in the same place has no parallax, one turned away sees nothing
    assert chosen[0] is aside
    assert chosen[1] is near
    assert len(best_neighbours(camera(0.0), [near, aside], most=1)) == 1


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"neighbours": 0},
        {"hypotheses": 2},
        {"kept_share": 0.0},
        {"span": math.inf},
        {"contrast": 0.0},
        {"windows_px": ()},
        {"windows_px": (1.0, -1.0)},
        {"prior": -1.0},
        {"longest_side_px": 8},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        StereoSettings(**wrong)  # pyright: ignore[reportArgumentType]


def test_a_scene_of_other_photos_is_refused() -> None:
    photos, scene = warped_room()
    with pytest.raises(InvalidDataError):
        with_stereo_depths(photos.views.select([0, 1]), scene, chain(6))
