from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora3d_ns.alignment.guided_matches import (
    GuidedSettings,
    deviation_px,
    predicted_flow,
    prepare_photo,
    refine,
    search_both_ways,
)
from lora3d_ns.alignment.matches import Matches, MatchSettings, match_views
from lora3d_ns.alignment.tracks import build_tracks
from lora3d_ns.alignment.verification import PairMatches, log10_chance, sampson_px, verify
from lora3d_ns.conventions import PixelAffine, pixel_centres
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.camera import project
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos, make_scene
from lora3d_ns.types import PairGraph, PairPrediction, PairPredictions, Views

FOCAL_PX = 70.0


def texture(x: torch.Tensor, y: torch.Tensor, *, seed: int = 0, finest_px: float = 5.0) -> torch.Tensor:
    """A smooth picture that is known everywhere: waves of all directions, none shorter than `finest_px`."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.zeros_like(x)
    for _ in range(60):
        angle, phase, wave = torch.rand(3, generator=generator).tolist()
        length = finest_px * (1.0 + 4.0 * wave)
        along = np.cos(6.283 * angle) * x + np.sin(6.283 * angle) * y
        value = value + torch.sin(6.283 * (along / length + phase))
    return (0.5 + 0.055 * value).clamp(0.0, 1.0)


def plain_views(images: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None] | None = None) -> Views:
    nothing = (None,) * len(images)
    return Views(
        names=tuple(f"{view}.png" for view in range(len(images))),
        images=tuple(images),
        masks=nothing if masks is None else tuple(masks),
        source_from_network=(PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0),) * len(images),
        source_sizes=tuple((image.shape[2], image.shape[1]) for image in images),
        source_paths=nothing,
        focal_exif_px=nothing,
        lens_groups=("lens",) * len(images),
        known_K=nothing,
        known_T_world_camera=nothing,
    )


def plane_points(height: int, width: int, focal_px: float, moved_px: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """A plane at depth 1 before a camera, seen by one that was moved so that the picture moves by `moved_px`."""
    ray = (pixel_centres(height, width) - torch.tensor([width / 2, height / 2])) / focal_px
    return torch.cat([ray + torch.tensor(moved_px) / focal_px, torch.ones(height, width, 1)], dim=-1)


def plane_pair(shape: tuple[int, int], shift_px: tuple[float, float], error_px: float = 0.0) -> PairPredictions:
    """Point maps of two photos of a plane; a pixel p of the first is p - shift_px in the second, and mapped wrong."""
    own, ones = plane_points(*shape, FOCAL_PX), torch.ones(shape)
    there = plane_points(*shape, FOCAL_PX, (shift_px[0] + error_px, shift_px[1]))
    back = plane_points(*shape, FOCAL_PX, (-shift_px[0] - error_px, -shift_px[1]))
    return PairPredictions(
        graph=PairGraph(view_count=2, edges=((0, 1), (1, 0))),
        pairs=tuple(
            PairPrediction(points_first=own, points_second=second, confidence_first=ones, confidence_second=ones)
            for second in (there, back)
        ),
    )


def plane_photos(shape: tuple[int, int], shift_px: tuple[float, float]) -> Views:
    images = []
    for dx, dy in ((0.0, 0.0), shift_px):
        x, y = (pixel_centres(*shape) + torch.tensor([dx, dy])).unbind(dim=-1)
        images.append(torch.stack([texture(x, y, seed=channel) for channel in range(3)]))
    return plain_views(images)


@pytest.fixture(scope="module", name="room")
def _room() -> RoomPhotos:
    return make_scene("nominal", 1, size=(64, 64), seed_offset=500).calibration


def true_predictions(room: RoomPhotos, views: Sequence[int]) -> PairPredictions:
    graph = build_pair_graph(CompleteGraph(), len(views))
    pairs = []
    for i, j in graph.edges:
        first, second = room.true_points((views[i], views[j]))
        ones = torch.ones(first.shape[:2])
        pairs.append(
            PairPrediction(points_first=first, points_second=second, confidence_first=ones, confidence_second=ones)
        )
    return PairPredictions(graph=graph, pairs=tuple(pairs))


def room_errors_px(room: RoomPhotos, matches: Matches, views: Sequence[int]) -> torch.Tensor:
    """Distance of each match from the truth, by the depth of either of its pixels."""
    errors = []
    for (i, j), pair in matches.pairs.items():
        both_ways = []
        for (a, b), (at, found) in (
            ((i, j), (pair.pixels_first, pair.pixels_second)),
            ((j, i), (pair.pixels_second, pair.pixels_first)),
        ):
            column, row = at.floor().long().unbind(dim=1)
            K_a, K_b = (room.cameras.K[views[view]].double() for view in (a, b))
            ray = torch.cat([at, torch.ones_like(at[:, :1])], dim=1) @ torch.linalg.inv(K_a).T
            # Depth between the pixel's centre and the place asked for: bilinear, in inverse depth.
            depth = (
                1.0
                / torch.nn.functional.grid_sample(
                    1.0 / room.depths_m[views[a]].double()[None, None],
                    (at / 32.0 - 1.0)[None, None],
                    align_corners=False,
                    padding_mode="border",
                ).flatten()
            )
            nearest = room.depths_m[views[a]][row, column].double()
            depth = torch.where((depth - nearest).abs() < 0.03 * nearest, depth, nearest)
            T = torch.linalg.inv(room.cameras.T_world_camera[views[b]].double())
            T = T @ room.cameras.T_world_camera[views[a]].double()
            both_ways.append((project(ray * depth[:, None] @ T[:3, :3].T + T[:3, 3], K_b) - found).norm(dim=1))
        errors.append(torch.minimum(*both_ways))
    return torch.cat(errors)


# --- known answers ------------------------------------------------------------------------------


def test_a_rooms_photos_are_matched_to_a_fraction_of_a_pixel(room: RoomPhotos) -> None:
    chosen = [2, 3, 4]
    matches = match_views(room.views.select(chosen), true_predictions(room, chosen))
    assert set(matches.pairs) == {(0, 1), (0, 2), (1, 2)}
    assert min(len(pair) for pair in matches.pairs.values()) > 80
    errors_px = room_errors_px(room, matches, chosen)
    assert float(errors_px.median()) < 0.2
    assert float((errors_px < 1.0).double().mean()) > 0.93


def test_the_search_corrects_what_the_point_maps_say() -> None:
    """Prediction wrong by 3.4 pixels; the picture moved by a fraction of a pixel: found within 0.05 pixels."""
    shift_px = (2.3, -1.6)
    views, predictions = plane_photos((48, 64), shift_px), plane_pair((48, 64), shift_px, error_px=3.4)
    matches = match_views(views, predictions, MatchSettings(sift=False))
    pair = matches.pairs[0, 1]
    assert len(pair) > 60
    # Nearer to the edge than half a patch both pictures are continued, and errors reach 0.5 pixels.
    inside = torch.ones(len(pair), dtype=torch.bool)
    for pixels in (pair.pixels_first, pair.pixels_second):
        inside &= ((pixels > 5) & (pixels < torch.tensor([59, 43]))).all(dim=1)
    moved = (pair.pixels_first - pair.pixels_second)[inside]
    assert len(moved) > 40
    assert float((moved - torch.tensor(shift_px).double()).norm(dim=1).quantile(0.95)) < 0.05
    # Measured 0.0103: what is left of reading between pixels.
    assert float((moved.mean(dim=0) - torch.tensor(shift_px).double()).norm()) < 0.015


def test_the_flow_is_the_projection_of_the_other_photos_points() -> None:
    shift_px = (2.0, -1.0)
    flow = predicted_flow(plane_pair((48, 64), shift_px).pairs[1])
    expected = pixel_centres(48, 64) - torch.tensor(shift_px)
    torch.testing.assert_close(flow.pixels, expected, atol=1e-3, rtol=0)


def test_refining_moves_a_match_to_where_the_pictures_agree() -> None:
    shift_px = (2.3, -1.6)
    views, settings = plane_photos((48, 64), shift_px), GuidedSettings()
    flow = predicted_flow(plane_pair((48, 64), shift_px).pairs[1])
    photos = [prepare_photo(image, None, settings) for image in views.images]
    first = photos[0].keypoints[:20].double() + 0.2
    # Near the edge the patch reaches out of the photo.
    first = first[((first > 8) & (first < torch.tensor([56, 40]))).all(dim=1)]
    true = first - torch.tensor(shift_px).double()
    refined, good = refine(photos[0], photos[1], flow, first, true + 0.5, settings)
    assert bool(good.all())
    assert float((refined - true).norm(dim=1).max()) < 0.06
    far, good = refine(photos[0], photos[1], flow, first, true + 8.0, settings)
    torch.testing.assert_close(far[~good], (true + 8.0)[~good], atol=0, rtol=0)
    assert float(good.double().mean()) < 0.3


def test_sift_positions_are_carried_to_network_pixels_without_a_shift(tmp_path: Path) -> None:
    """Two crops of one picture, 24 and 16 source pixels apart, seen through different affines."""
    picture = texture(*pixel_centres(300, 400).unbind(dim=-1), finest_px=9.0)
    grey = (picture * 255).round().to(torch.uint8).numpy()
    offset = (24, 16)
    files = (grey[:256, :352], grey[offset[1] :, offset[0] :][:256, :352])
    affines = (
        PixelAffine(scale_x=2.0, scale_y=2.0, offset_x_px=0.0, offset_y_px=0.0),
        PixelAffine(scale_x=1.6, scale_y=1.6, offset_x_px=16.0, offset_y_px=-3.2),
    )
    paths, shapes = [], ((128, 176), (160, 192))
    for name, pixels in zip("ab", files, strict=True):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").save(paths[-1])
    views = replace(
        plain_views([torch.zeros(3, *shape) for shape in shapes]),
        source_from_network=affines,
        source_sizes=((352, 256),) * 2,
        source_paths=tuple(paths),
    )
    ones = [torch.ones(shape) for shape in shapes]
    points = [
        torch.cat(
            [
                (affine.source_from_network(pixel_centres(*shape)) + torch.tensor(moved)) / 500.0 - 0.4,
                torch.ones(*shape, 1),
            ],
            dim=-1,
        )
        for affine, shape, moved in zip(affines, shapes, ((0.0, 0.0), (24.0, 16.0)), strict=True)
    ]
    predictions = PairPredictions(
        graph=PairGraph(view_count=2, edges=((0, 1), (1, 0))),
        pairs=tuple(
            PairPrediction(
                points_first=points[i], points_second=points[j], confidence_first=ones[i], confidence_second=ones[j]
            )
            for i, j in ((0, 1), (1, 0))
        ),
    )
    pair = match_views(views, predictions, MatchSettings(guided=())).pairs[0, 1]
    assert len(pair) > 100
    source = [
        affine.source_from_network(at)
        for affine, at in zip(affines, (pair.pixels_first, pair.pixels_second), strict=True)
    ]
    moved = source[0] - source[1]
    torch.testing.assert_close(moved.median(dim=0).values, torch.tensor([24.0, 16.0]).double(), atol=0.01, rtol=0)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_blob_is_found_where_it_was_drawn(tmp_path: Path, scale: int) -> None:
    """Blobs drawn at known places in files that are enlarged or not: no half or quarter pixel is lost."""
    from lora3d_ns.alignment.matches import _sift_features

    side = 100 * scale
    centres = pixel_centres(side, side)
    places = torch.tensor([[x, y] for x in (20.3, 48.75, 79.0) for y in (22.5, 50.0, 77.9)]) * scale
    picture = torch.zeros(side, side)
    for place in places:
        picture += 0.8 * torch.exp(-0.5 * ((centres - place) / (3.0 * scale)).square().sum(dim=-1))
    path = tmp_path / "blobs.png"
    Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).convert("RGB").save(path)
    views = replace(
        plain_views([torch.zeros(3, 100, 100)]),
        source_from_network=(
            PixelAffine(scale_x=float(scale), scale_y=float(scale), offset_x_px=0.0, offset_y_px=0.0),
        ),
        source_sizes=((side, side),),
        source_paths=(path,),
    )
    features = _sift_features(views, 0, MatchSettings())
    nearest_px = torch.cdist(places.double() / scale, features.pixels).amin(dim=1)
    assert float(nearest_px.max()) < 0.06


# --- verification -------------------------------------------------------------------------------


def random_points(count: int, *, flat: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    spread = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2 - 1
    depth = torch.full((count,), 4.0).double() if flat else 4.0 + 1.5 * spread[:, 2]
    return torch.stack([spread[:, 0] * 1.5, spread[:, 1] * 1.5, depth], dim=1)


def turned(angle_rad: float) -> torch.Tensor:
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("flat", "baseline"), [(False, 0.6), (True, 0.6), (False, 0.0)], ids=["room", "plane", "turn only"]
)
def test_verification_keeps_what_moves_rigidly_and_drops_the_rest(flat: bool, baseline: float) -> None:
    K = torch.tensor([[60.0, 0.0, 32.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    points = random_points(60, flat=flat)
    generator = torch.Generator().manual_seed(5)
    noise = 0.1 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    first = project(points, K)
    second = project(points @ turned(0.1).T + torch.tensor([baseline, 0.0, 0.1 * baseline]).double(), K) + noise
    wrong_first, wrong_second = 64 * torch.rand(2, 20, 2, generator=generator, dtype=torch.float64)
    matches = PairMatches(pixels_first=torch.cat([first, wrong_first]), pixels_second=torch.cat([second, wrong_second]))
    verified = verify(matches, (K, K), 1.0)
    kept = {tuple(row) for row in verified.inliers.pixels_first.tolist()}
    true_kept = sum(tuple(row) in kept for row in first.tolist())
    wrong_kept = sum(tuple(row) in kept for row in wrong_first.tolist())
    assert true_kept >= 58
    # A wrong match on its epipolar line by chance: about one in twenty-five.
    assert wrong_kept <= 4
    assert verified.candidates == 80
    assert verified.log10_chance < -20


def test_unrelated_pixels_agree_by_chance_only() -> None:
    K = torch.tensor([[60.0, 0.0, 32.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    first, second = 64 * torch.rand(2, 40, 2, generator=generator, dtype=torch.float64)
    verified = verify(PairMatches(pixels_first=first, pixels_second=second), (K, K), 1.0)
    assert verified.log10_chance > MatchSettings().most_log10_chance


def test_the_probability_of_chance_counts_motions_and_matches() -> None:
    # 10 * (20 - 5) * C(20, 15) * C(15, 5) * 0.05^10, by hand.
    assert log10_chance(15, 20, 0.05) == pytest.approx(np.log10(150 * 15504 * 3003) + 10 * np.log10(0.05))
    assert log10_chance(5, 20, 0.05) == 0.0
    assert log10_chance(100, 120, 0.05) < log10_chance(50, 120, 0.05)


def test_sampson_distance_is_the_distance_to_a_level_epipolar_line() -> None:
    """A camera moved along x: epipolar lines are rows, and a height difference is shared by both pixels."""
    F_second_first = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    matches = PairMatches(
        pixels_first=torch.tensor([[3.0, 5.0], [3.0, 5.0]]).double(),
        pixels_second=torch.tensor([[9.0, 5.0], [9.0, 7.0]]).double(),
    )
    torch.testing.assert_close(sampson_px(F_second_first, matches), torch.tensor([0.0, 2.0 / np.sqrt(2)]).double())


# --- tracks -------------------------------------------------------------------------------------


def pair_of(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> PairMatches:
    return PairMatches(pixels_first=torch.tensor(first).double(), pixels_second=torch.tensor(second).double())


def listed(matches: Matches, view_count: int) -> list[list[tuple[int, float, float]]]:
    tracks = build_tracks(matches, view_count)
    result: list[list[tuple[int, float, float]]] = [[] for _ in range(len(tracks))]
    for view, track, (x, y) in zip(tracks.view.tolist(), tracks.track.tolist(), tracks.pixel.tolist(), strict=True):
        result[track].append((view, x, y))
    return sorted(result)


def test_matches_that_share_a_pixel_are_one_track() -> None:
    matches = Matches(
        pairs={
            (0, 1): pair_of([(1.5, 1.5), (8.5, 8.5)], [(2.5, 2.5), (9.5, 9.5)]),
            (1, 2): pair_of([(2.4, 2.6)], [(4.5, 4.5)]),
        }
    )
    assert listed(matches, 4) == [
        [(0, 1.5, 1.5), (1, pytest.approx(2.45), pytest.approx(2.55)), (2, 4.5, 4.5)],
        [(0, 8.5, 8.5), (1, 9.5, 9.5)],
    ]


def test_a_track_never_has_two_pixels_in_one_photo() -> None:
    """0 -> 1 -> 2 -> another pixel of 0: the last link is refused, nothing else is lost."""
    matches = Matches(
        pairs={
            (0, 1): pair_of([(1.5, 1.5)], [(2.5, 2.5)]),
            (0, 2): pair_of([(7.5, 7.5)], [(4.5, 4.5)]),
            (1, 2): pair_of([(2.5, 2.5)], [(4.5, 4.5)]),
        }
    )
    assert listed(matches, 3) == [
        [(0, 1.5, 1.5), (1, 2.5, 2.5)],
        [(0, 7.5, 7.5), (2, 4.5, 4.5)],
    ]


def test_tracks_of_a_room_are_consistent(room: RoomPhotos) -> None:
    chosen = [2, 3, 4, 5]
    matches = match_views(room.views.select(chosen), true_predictions(room, chosen))
    tracks = build_tracks(matches, 4)
    both = tracks.track * 4 + tracks.view
    assert len(torch.unique(both)) == len(both)
    assert bool((torch.bincount(tracks.track) >= 2).all())
    assert int((torch.bincount(tracks.track) >= 3).sum()) > 50
    assert bool((both.diff() > 0).all())


def test_tracks_of_nothing_and_of_views_that_do_not_exist() -> None:
    assert len(build_tracks(Matches(pairs={}), 3)) == 0
    matches = Matches(pairs={(0, 3): pair_of([(1.5, 1.5)], [(2.5, 2.5)])})
    with pytest.raises(InvalidDataError):
        build_tracks(matches, 3)
    with pytest.raises(SettingsError):
        build_tracks(matches, 4, merge_px=0.0)


# --- what can go wrong --------------------------------------------------------------------------


def test_the_same_bits_twice(room: RoomPhotos) -> None:
    chosen = [0, 1]
    runs = [match_views(room.views.select(chosen), true_predictions(room, chosen)) for _ in range(2)]
    assert set(runs[0].pairs) == {(0, 1)}
    assert torch.equal(runs[0].pairs[0, 1].pixels_first, runs[1].pairs[0, 1].pixels_first)
    assert torch.equal(runs[0].pairs[0, 1].pixels_second, runs[1].pairs[0, 1].pixels_second)


def test_the_number_of_threads_changes_nothing(room: RoomPhotos) -> None:
    chosen = [0, 1, 2]
    views, predictions = room.views.select(chosen), true_predictions(room, chosen)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(match_views(views, predictions, show_progress=False))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert runs[0].pairs.keys() == runs[1].pairs.keys() != set()
    for pair, found in runs[0].pairs.items():
        assert torch.equal(found.pixels_first, runs[1].pairs[pair].pixels_first)
        assert torch.equal(found.pixels_second, runs[1].pairs[pair].pixels_second)


def test_known_intrinsics_judge_the_matches(room: RoomPhotos, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(matches: PairMatches, K: tuple[torch.Tensor, torch.Tensor], threshold_px: float) -> Any:
        used.append(K)
        return verify(matches, K, threshold_px)

    monkeypatch.setattr("lora3d_ns.alignment.matches.verify", watched)
    # The first photo's are known, in pixels of a source twice as large; the second's are not.
    source = PixelAffine(scale_x=2.0, scale_y=2.0, offset_x_px=0.0, offset_y_px=0.0)
    known = torch.tensor([[123.0, 0.0, 60.0], [0.0, 123.0, 70.0], [0.0, 0.0, 1.0]])
    views = replace(
        room.views.select([0, 1]),
        known_K=(known, None),
        source_from_network=(source, room.views.source_from_network[1]),
    )
    match_views(views, true_predictions(room, [0, 1]))
    assert used
    for first, second in used:
        torch.testing.assert_close(first, source.K_network_from_source(known).double())
        # The truth's point maps give the true focal length.
        assert float(second[0, 0]) == pytest.approx(float(room.cameras.K[1, 0, 0]), rel=1e-3)


def test_masked_pixels_are_not_matched(room: RoomPhotos) -> None:
    chosen = [2, 3]
    mask = torch.ones(64, 64, dtype=torch.bool)
    mask[:, :32] = False
    views = room.views.select(chosen)
    predictions = true_predictions(room, chosen)
    for masks, side in (((mask, None), "pixels_first"), ((None, mask), "pixels_second")):
        pair = match_views(replace(views, masks=masks), predictions).pairs[0, 1]
        assert len(pair) > 20
        assert float(getattr(pair, side)[:, 0].min()) >= 32.0


@pytest.mark.parametrize("kind", ["black", "white", "grey step"])
def test_photos_without_texture_have_no_matches(kind: str) -> None:
    image = torch.full((3, 48, 64), 1.0 if kind == "white" else 0.0)
    if kind == "grey step":
        image[:, :, 30:] = 0.5
    views, predictions = plain_views([image, image.clone()]), plane_pair((48, 64), (1.0, 0.0))
    matches = match_views(views, predictions)
    assert matches.pairs == {}
    assert matches.verified == {(0, 1): 0}


def test_noise_is_not_matched() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    assert match_views(plain_views(images), plane_pair((64, 64), (1.0, 0.0))).pairs == {}


def test_a_photo_matches_itself_in_place() -> None:
    image = plane_photos((48, 64), (0.0, 0.0)).images[0]
    pair = match_views(plain_views([image, image.clone()]), plane_pair((48, 64), (0.0, 0.0))).pairs[0, 1]
    assert len(pair) > 60
    assert float((pair.pixels_first - pair.pixels_second).norm(dim=1).max()) < 0.05


def test_point_maps_of_no_use_are_survived() -> None:
    """All points behind the camera: nothing is predicted, and SIFT has to do without."""
    views, good = plane_photos((48, 64), (2.0, 1.0)), plane_pair((48, 64), (2.0, 1.0))
    behind = [replace(pair, points_first=-pair.points_first, points_second=-pair.points_second) for pair in good.pairs]
    matches = match_views(views, PairPredictions(graph=good.graph, pairs=tuple(behind)))
    for pair in matches.pairs.values():
        moved = pair.pixels_first - pair.pixels_second
        assert float((moved - torch.tensor([2.0, 1.0]).double()).norm(dim=1).median()) < 0.3


def test_a_photo_smaller_than_a_patch() -> None:
    views = plain_views([torch.rand(3, 4, 5), torch.rand(3, 4, 5)])
    assert match_views(views, plane_pair((4, 5), (0.0, 0.0))).pairs == {}


def test_a_pair_in_one_order_only_is_matched_by_sift_alone() -> None:
    views, both = plane_photos((96, 128), (2.0, 1.0)), plane_pair((96, 128), (2.0, 1.0))
    predictions = PairPredictions(graph=PairGraph(view_count=2, edges=((1, 0),)), pairs=both.pairs[1:])
    pair = match_views(views, predictions).pairs[0, 1]
    moved = pair.pixels_first - pair.pixels_second
    assert float((moved - torch.tensor([2.0, 1.0]).double()).norm(dim=1).median()) < 0.1


def test_predictions_of_other_views_are_refused() -> None:
    with pytest.raises(InvalidDataError):
        match_views(plain_views([torch.rand(3, 48, 64)] * 3), plane_pair((48, 64), (0.0, 0.0)))
    with pytest.raises(InvalidDataError):
        Matches(pairs={(1, 0): pair_of([(1.5, 1.5)], [(2.5, 2.5)])})


@pytest.mark.parametrize(
    "wrong",
    [{"features": 0}, {"ratio": 0.0}, {"ratio": 1.5}, {"epipolar_px": 0.0}, {"least_matches": 0}],
)
def test_match_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        MatchSettings(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"keypoints": 0}, {"blur_px": 0.0}, {"margin_px": -1.0}, {"least_zncc": 1.5}, {"uniqueness": 0.0}]
)
def test_guided_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        GuidedSettings(**wrong)


def test_deviation_takes_the_nearer_of_both_ways() -> None:
    right, wrong = plane_pair((48, 64), (2.0, 1.0)), plane_pair((48, 64), (2.0, 1.0), error_px=5.0)
    at = torch.tensor([[30.5, 20.5]]).double()
    flows = predicted_flow(right.pairs[1]), predicted_flow(wrong.pairs[0])
    assert float(deviation_px(*flows, at, at - torch.tensor([2.0, 1.0]))) == pytest.approx(0.0, abs=1e-2)
    flows = predicted_flow(wrong.pairs[1]), predicted_flow(wrong.pairs[0])
    assert float(deviation_px(*flows, at, at - torch.tensor([2.0, 1.0]))) == pytest.approx(5.0, abs=1e-2)


def test_nothing_is_found_outside_the_photo() -> None:
    """The picture moved by more than the photo is wide: every search ends outside."""
    views, flows = plane_photos((48, 64), (80.0, 0.0)), plane_pair((48, 64), (80.0, 0.0))
    settings = GuidedSettings()
    photos = [prepare_photo(image, None, settings) for image in views.images]
    first, second = search_both_ways(
        photos[0], photos[1], predicted_flow(flows.pairs[1]), predicted_flow(flows.pairs[0]), settings
    )
    assert len(first) == len(second) == 0
