"""Rooms: exact truth, repeatability, cameras that stand where cameras can, and overlap as the domains promise."""

import dataclasses

import numpy as np
import pytest
import torch
from reference import rooms_raycast

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.errors import SettingsError
from lora3d_ns.rooms.generator import (
    CLUTTER,
    DARK,
    DOMAINS,
    MOVING,
    NOMINAL,
    SPARSE,
    TELE,
    RoomCameras,
    RoomDomain,
    RoomScenes,
    cast_depth,
    clearance_m,
    demo_scene,
    domain_by_name,
    pairwise_overlap,
    render,
    reproject,
    sample_pairs,
    sample_scenes,
    sample_views,
)

ALL_DOMAINS = pytest.mark.parametrize("domain", DOMAINS.values(), ids=list(DOMAINS))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensors_of(owner) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(owner).items() if isinstance(value, torch.Tensor)}


def assert_same_bytes(first, second) -> None:
    for name, value in tensors_of(first).items():
        assert torch.equal(value, tensors_of(second)[name]), name


# --- exactness ----------------------------------------------------------------------------------


@ALL_DOMAINS
def test_truth_equals_the_naive_twin(domain: RoomDomain) -> None:
    scenes = sample_scenes(domain, seed=3, indices=[5])
    cameras = sample_views(scenes, 2, size=(40, 24))
    renders = render(scenes, cameras)
    random = np.random.default_rng(0)
    different = 0
    for view in range(2):
        T, K = cameras.T_world_camera[0, view].double().numpy(), cameras.K[0, view].double().numpy()
        for _ in range(60):
            column, row = int(random.integers(40)), int(random.integers(24))
            time = float(cameras.time[0, view])
            depth, normal, surface = rooms_raycast.cast(scenes, 0, T, K, time, (column, row))
            if int(renders.object_ids[0, view, row, column]) != int(scenes.object_id[0, surface]):
                different += 1
                continue
            x, y = (column + 0.5 - K[0, 2]) / K[0, 0], (row + 0.5 - K[1, 2]) / K[1, 1]
            direction = T[:3, :3] @ np.array([x, y, 1.0])
            if abs(normal @ direction) / np.linalg.norm(direction) < 0.05:
                continue
            assert float(renders.depth_m[0, view, row, column]) == pytest.approx(depth, rel=1e-5)
            assert renders.normals_world[0, view, row, column].double().numpy() @ normal > 0.999
            assert normal @ direction < 0
    # Where an edge passes through the very centre of a pixel, rounding decides which side is seen.
    assert different <= 1


@pytest.mark.parametrize("size", [(16, 16), (50, 34), (200, 208)])
def test_tiles_leave_nothing_out(size: tuple[int, int]) -> None:
    """Every solid in every tile gives the same picture, for whole and partial tiles of either size."""
    from lora3d_ns.rooms import raycast
    from lora3d_ns.rooms import render as render_module

    scenes = sample_scenes(CLUTTER, seed=8, indices=2)
    cameras = sample_views(scenes, 2, size=size)
    chunks = list(render_module._chunks(scenes, cameras, 1))
    everything = raycast._tiles_of_solids
    for _, views in chunks:
        culled = raycast.first_hits(views)
        raycast._tiles_of_solids = lambda views, *_: torch.ones(
            len(views.K), views.tile_rows * views.tile_columns, views.kind.shape[1] - 6, dtype=torch.bool
        )
        try:
            complete = raycast.first_hits(views)
        finally:
            raycast._tiles_of_solids = everything
        assert torch.equal(culled[0], complete[0])
        assert torch.equal(culled[1], complete[1])


def test_shadows_equal_one_ray_at_a_time() -> None:
    from lora3d_ns.rooms import raycast
    from lora3d_ns.rooms import render as render_module

    scenes = sample_scenes(NOMINAL, seed=21, indices=[2])
    cameras = sample_views(scenes, 1, size=(32, 32))
    rows, views = next(render_module._chunks(scenes, cameras, 1))
    shading = render_module._Shading(scenes, rows, views, *raycast.first_hits(views))
    light = scenes.light_position_m[:, 0]
    lit = views.untile(raycast.lit_by(views, shading.world_m, light))[0]
    points = torch.stack([views.untile(component)[0] for component in shading.world_m], dim=-1).double().numpy()
    origin = light[0].double().numpy()
    wrong = 0
    for row in range(0, 32, 2):
        for column in range(0, 32, 2):
            direction = points[row, column] - origin
            blocked = any(
                hit is not None and hit.t < 1 - 2e-3
                for number in range(6, scenes.kind.shape[1])
                if bool(scenes.valid[0, number] & scenes.casts_shadow[0, number])
                for hit in [
                    rooms_raycast.first_hit(
                        int(scenes.kind[0, number]),
                        scenes.center_world_m[0, number].double().numpy(),
                        scenes.R_world_object[0, number].double().numpy(),
                        scenes.half_size_m[0, number].double().numpy(),
                        float(scenes.taper[0, number]),
                        origin,
                        direction,
                    )
                ]
            )
            wrong += blocked != (float(lit[row, column]) == 0.0)
    assert 0.02 < float((lit == 0).float().mean()) < 0.9
    assert wrong <= 2


def test_points_of_walls_lie_on_the_walls() -> None:
    """K, poses and pixel centres as the project's conventions say, without the renderer's own geometry."""
    scenes = sample_scenes(NOMINAL, seed=4, indices=3)
    renders = render(scenes, sample_views(scenes, 2, size=(64, 48)))
    pixels = torch.cat([pixel_centres(48, 64), torch.ones(48, 64, 1)], dim=-1)
    for scene in range(3):
        width, depth, height = scenes.room_size_m[scene].tolist()
        planes = {
            0: (0, -width / 2),
            1: (0, width / 2),
            2: (1, -depth / 2),
            3: (1, depth / 2),
            4: (2, 0),
            5: (2, height),
        }
        for view in range(2):
            K, T = renders.K[scene, view], renders.T_world_camera[scene, view]
            camera = (pixels @ torch.linalg.inv(K).T) * renders.depth_m[scene, view][..., None]
            world = camera @ T[:3, :3].T + T[:3, 3]
            for face, (axis, position) in planes.items():
                seen = world[renders.object_ids[scene, view] == face]
                assert ((seen[:, axis] - position).abs() < 1e-4).all()
                inward = renders.normals_world[scene, view][renders.object_ids[scene, view] == face]
                assert (inward[:, axis] == (1.0 if face in (0, 2, 4) else -1.0)).all()


# --- two views agree -----------------------------------------------------------------------------


def test_turned_camera_sees_the_same_colours() -> None:
    """Upside down, each pixel has the ray and the footprint of its opposite: colours must not depend on the view."""
    domain = NOMINAL.without_photo_defects()
    scenes = sample_scenes(domain, seed=6, indices=2)
    cameras = sample_views(scenes, 1, size=(48, 32))
    turned = cameras.T_world_camera @ torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    upright = render(scenes, cameras)
    inverted = render(scenes, dataclasses.replace(cameras, T_world_camera=turned))
    difference = (upright.rgb - inverted.rgb.flip(2, 3)).abs().amax(dim=-1)
    # Hard edges of patterns move by a rounding error at single pixels.
    assert float((difference > 1e-3).float().mean()) < 2e-3
    assert torch.allclose(upright.depth_m, inverted.depth_m.flip(2, 3), rtol=1e-5)


def test_two_views_of_a_scene_agree() -> None:
    """Reprojected pixels have the same colours, up to interpolation and the filtering of textures."""
    domain = NOMINAL.without_photo_defects()
    scenes = sample_scenes(domain, seed=9, indices=6)
    renders = render(scenes, sample_views(scenes, 6, size=(256, 192)).select_views([2, 3]), supersample=2)
    medians, shares = [], []
    for scene in range(6):
        rgb, depth = renders.rgb[scene], renders.depth_m[scene]
        K, T = renders.K[scene], renders.T_world_camera[scene]
        x, y, z = reproject(depth[:1], K[:1], T[:1], K[1:], T[1:])
        grid = torch.stack([x / 128.0 - 1.0, y / 96.0 - 1.0], dim=-1)
        sampled = torch.nn.functional.grid_sample(
            torch.cat([rgb[1], depth[1, ..., None]], dim=-1).movedim(-1, 0)[None], grid, align_corners=False
        )[0]
        seen = (z[0] > 0) & (grid[0].abs() < 0.98).all(dim=-1) & ((sampled[3] / z[0] - 1).abs() < 0.003)
        assert float(seen.float().mean()) > 0.2
        difference = (sampled[:3].movedim(0, -1) - rgb[0]).abs().mean(dim=-1)[seen]
        medians.append(float(difference.median()))
        shares.append(float((difference < 0.05).float().mean()))
    # Measured over these six rooms: medians 0.001 to 0.004, shares 0.93 to 0.97; the rest are edges of patterns.
    assert max(medians) < 0.006
    assert min(shares) > 0.9


# --- repeatability -------------------------------------------------------------------------------


@ALL_DOMAINS
def test_same_seed_same_bytes_whatever_the_batch(domain: RoomDomain) -> None:
    batch = sample_scenes(domain, seed=17, indices=5)
    alone = sample_scenes(domain, seed=17, indices=[3])
    assert_same_bytes(batch.select([3]), alone)
    cameras, cameras_alone = sample_views(batch, 2, size=(32, 24)), sample_views(alone, 2, size=(32, 24))
    assert torch.equal(cameras.T_world_camera[3:4], cameras_alone.T_world_camera)
    renders, again, renders_alone = render(batch, cameras), render(batch, cameras), render(alone, cameras_alone)
    assert_same_bytes(renders, again)
    assert torch.equal(renders.depth_m[3:4], renders_alone.depth_m)
    assert torch.equal(renders.object_ids[3:4], renders_alone.object_ids)
    # Powers and convolutions of a library may round differently for another size of batch.
    assert torch.allclose(renders.rgb[3:4], renders_alone.rgb, atol=1e-5)


def test_seed_index_and_series_matter() -> None:
    scenes = sample_scenes(NOMINAL, seed=1, indices=2)
    assert not torch.equal(scenes.center_world_m[0], scenes.center_world_m[1])
    assert not torch.equal(scenes.room_size_m, sample_scenes(NOMINAL, seed=2, indices=2).room_size_m)
    first, second = (sample_views(scenes, 3, size=(16, 16), series=series) for series in (0, 1))
    assert not torch.allclose(first.T_world_camera, second.T_world_camera)


def test_render_in_small_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = sample_scenes(NOMINAL, seed=1, indices=3)
    cameras = sample_views(scenes, 3, size=(32, 24))
    whole = render(scenes, cameras)
    monkeypatch.setattr("lora3d_ns.rooms.render._RAYS_PER_CHUNK_HOST", 1000)
    parts = render(scenes, cameras)
    assert torch.equal(whole.depth_m, parts.depth_m)
    assert torch.allclose(whole.rgb, parts.rgb, atol=1e-5)
    assert torch.equal(cast_depth(scenes, cameras), whole.depth_m)


# --- cameras -------------------------------------------------------------------------------------


@ALL_DOMAINS
def test_cameras_keep_clear_of_everything(domain: RoomDomain) -> None:
    scenes = sample_scenes(domain, seed=33, indices=60)
    cameras = sample_views(scenes, 6, size=(24, 24))
    free = clearance_m(scenes, cameras.T_world_camera[..., :3, 3], cameras.time)
    assert float(free.amin()) >= domain.clearance_m - 1e-4
    depth = cast_depth(scenes, cameras)
    assert bool(torch.isfinite(depth).all())
    assert float(depth.amin()) > 0.29
    R = cameras.T_world_camera[..., :3, :3]
    assert torch.allclose(R @ R.mT, torch.eye(3).expand_as(R), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(60, 6), atol=1e-5)
    # Upright: the camera's y axis points down, which is -z of the world.
    assert float(R[..., 2, 1].amax()) < -0.5


@ALL_DOMAINS
def test_overlap_is_what_the_domain_says(domain: RoomDomain) -> None:
    scenes = sample_scenes(domain, seed=35, indices=16)
    cameras = sample_views(scenes, 6, size=(32, 24))
    overlap = pairwise_overlap(cast_depth(scenes, cameras), cameras.K, cameras.T_world_camera)
    assert torch.equal(overlap.diagonal(dim1=1, dim2=2), torch.ones(16, 6))
    pairs = overlap[:, ~torch.eye(6, dtype=torch.bool)]
    assert bool(((pairs >= 0) & (pairs <= 1)).all())
    if domain.name == "sparse":
        assert float(pairs.median()) < 0.3
    else:
        assert float(pairs.median()) > 0.4
    # Where i sees half of j, j sees some of i.
    assert bool((overlap.mT[overlap > 0.5] > 0.1).all())


def test_opposite_views_have_no_overlap() -> None:
    scenes = sample_scenes(NOMINAL, seed=35, indices=2)
    cameras = sample_views(scenes, 1, size=(32, 24))
    back = cameras.T_world_camera @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    both = torch.cat([cameras.T_world_camera, back], dim=1)
    twice = dataclasses.replace(
        cameras,
        K=cameras.K.expand(-1, 2, -1, -1),
        T_world_camera=both,
        time=cameras.time.expand(-1, 2),
        exposure_factor=cameras.exposure_factor.expand(-1, 2),
        photo_key=cameras.photo_key.expand(-1, 2),
    )
    overlap = pairwise_overlap(cast_depth(scenes, twice), twice.K, twice.T_world_camera)
    assert torch.equal(overlap, torch.eye(2).expand(2, 2, 2))


def test_splits_are_disjoint_and_interleaved() -> None:
    scenes = sample_scenes(NOMINAL, seed=1, indices=2)
    calibration = sample_views(scenes, 5, size=(16, 16), split="calibration")
    test = sample_views(scenes, 5, size=(16, 16), split="test")
    assert bool((calibration.time < test.time).all())
    assert bool((test.time[:, :-1] < calibration.time[:, 1:]).all())
    gaps = torch.cdist(calibration.T_world_camera[..., :3, 3], test.T_world_camera[..., :3, 3])
    assert float(gaps.amin()) > 0.01


def test_portrait_has_the_focal_length_of_landscape() -> None:
    scenes = sample_scenes(NOMINAL, seed=1, indices=1)
    wide, tall = (sample_views(scenes, 1, size=size) for size in ((64, 48), (48, 64)))
    assert torch.equal(wide.K[..., 0, 0], tall.K[..., 0, 0])
    assert wide.K[0, 0, 0, 2] == 32
    assert tall.K[0, 0, 0, 2] == 24


@pytest.mark.parametrize("wanted", [(0.2, 0.45), (0.6, 1.0)])
def test_pairs_have_the_overlap_asked_for(wanted: tuple[float, float]) -> None:
    scenes = sample_scenes(NOMINAL, seed=41, indices=24)
    pairs = sample_pairs(scenes, 3, size=(40, 30), overlap=wanted, baseline_m=(0.2, 1.0))
    cameras = pairs.cameras
    matrix = pairwise_overlap(cast_depth(scenes, cameras), cameras.K, cameras.T_world_camera)
    exact = torch.stack([matrix[:, 2 * k, 2 * k + 1] for k in range(3)], dim=1)
    within = (exact > wanted[0] - 0.05) & (exact < wanted[1] + 0.05)
    assert float(within.float().mean()) > 0.75
    assert float((exact - pairs.overlap).abs().mean()) < 0.05
    centres = cameras.T_world_camera[..., :3, 3]
    assert float((centres[:, ::2] - centres[:, 1::2]).norm(dim=-1).amax()) < 1.2
    assert float(clearance_m(scenes, centres, cameras.time).amin()) > NOMINAL.clearance_m - 1e-4
    again = sample_pairs(scenes, 3, size=(40, 30), overlap=wanted, baseline_m=(0.2, 1.0))
    assert torch.equal(again.cameras.T_world_camera, cameras.T_world_camera)


# --- domains -------------------------------------------------------------------------------------


def test_dark_photos_are_dark_and_noisy() -> None:
    dark, clean = (
        render(scenes, sample_views(scenes, 2, size=(48, 48)))
        for scenes in (sample_scenes(domain, seed=2, indices=4) for domain in (DARK, DARK.without_photo_defects()))
    )
    nominal_scenes = sample_scenes(NOMINAL, seed=2, indices=4)
    nominal = render(nominal_scenes, sample_views(nominal_scenes, 2, size=(48, 48)))
    assert float(dark.rgb.mean()) < 0.6 * float(nominal.rgb.mean())
    assert torch.equal(dark.depth_m, clean.depth_m)
    assert float((dark.rgb - clean.rgb).std()) > 0.02


def test_noise_is_that_of_the_settings() -> None:
    quiet = NOMINAL.without_photo_defects()
    noisy = dataclasses.replace(quiet, read_noise=0.02)
    from lora3d_ns.rooms.render import _noise

    noise = _noise(torch.tensor([5, 6]), torch.Size((2, 3, 64, 64)))
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.02
    assert abs(float((noise[:, :, :, 1:] * noise[:, :, :, :-1]).mean())) < 0.02
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.02
    scenes = [sample_scenes(domain, seed=2, indices=1) for domain in (quiet, noisy)]
    images = [render(scene, sample_views(scene, 1, size=(32, 32))).rgb for scene in scenes]
    assert 0.003 < float((images[0] - images[1]).std()) < 0.1


def test_tele_is_narrower_and_clutter_has_other_solids() -> None:
    tele, nominal = (sample_scenes(domain, seed=2, indices=20) for domain in (TELE, NOMINAL))
    focal = [sample_views(scenes, 1, size=(64, 64)).K[..., 0, 0] for scenes in (tele, nominal)]
    assert float(focal[0].amin()) > float(focal[1].amax())
    clutter = sample_scenes(CLUTTER, seed=2, indices=20)
    assert {3, 4} <= set(clutter.kind[clutter.valid].tolist())
    assert not {3, 4} & set(nominal.kind[nominal.valid].tolist())


def test_moving_object_moves_and_the_rest_stays() -> None:
    scenes = sample_scenes(MOVING, seed=12, indices=4)
    cameras = sample_views(scenes, 1, size=(48, 48))

    def at(time: float) -> RoomCameras:
        return dataclasses.replace(cameras, time=torch.full_like(cameras.time, time))

    first, last = render(scenes, at(0.1)), render(scenes, at(0.9))
    assert bool(first.moving.any())
    assert not torch.equal(first.moving, last.moving)
    static = ~(first.moving | last.moving)
    assert torch.equal(first.depth_m[static], last.depth_m[static])
    nominal = sample_scenes(NOMINAL, seed=12, indices=1)
    assert not bool(render(nominal, sample_views(nominal, 1, size=(16, 16))).moving.any())


@pytest.mark.parametrize(
    "wrong",
    [
        {"fov_deg": (60.0, 50.0)},
        {"fov_deg": (60.0, 150.0)},
        {"room_width_m": (2.0, 3.0)},
        {"room_height_m": (2.0, 3.0)},
        {"camera_height_m": (0.1, 1.0)},
        {"camera_height_m": (1.0, 2.4)},
        {"exposure": (0.0, 1.0)},
        {"ambient_share": (0.2, 1.2)},
        {"distance_share": (0.0, 1.0)},
        {"slot_fill": 1.1},
        {"clearance_m": 0.0},
        {"poster_count": (0, 7)},
        {"lamp_count": (0, 1)},
        {"furniture": ()},
        {"read_noise": -0.1},
        {"exposure_jitter": 1.0},
        {"moving_distance_m": (0.0, 5.0)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_domain_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        dataclasses.replace(NOMINAL, **wrong)


def test_wrong_requests_are_refused() -> None:
    scenes = sample_scenes(NOMINAL, seed=0, indices=2)
    cameras = sample_views(scenes, 1, size=(16, 16))
    for request in (
        lambda: sample_scenes(NOMINAL, seed=0, indices=0),
        lambda: sample_scenes(NOMINAL, seed=0, indices=[-1]),
        lambda: sample_views(scenes, 0, size=(16, 16)),
        lambda: sample_views(scenes, 1, size=(4, 16)),
        lambda: sample_pairs(scenes, 1, size=(16, 16), overlap=(0.5, 0.2)),
        lambda: sample_pairs(scenes, 1, size=(16, 16), baseline_m=(-1.0, 0.2)),
        lambda: render(scenes.select([0]), cameras),
        lambda: render(scenes, cameras, supersample=0),
        lambda: domain_by_name("foggy"),
    ):
        with pytest.raises(SettingsError):
            request()


# --- pictures worth matching ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (256, 192)])
def test_photos_are_well_lit_and_full_of_texture(size: tuple[int, int]) -> None:
    scenes = sample_scenes(NOMINAL.without_photo_defects(), seed=50, indices=6)
    rgb = render(scenes, sample_views(scenes, 2, size=size)).rgb
    grey = rgb.mean(dim=-1).flatten(0, 1)
    assert 0.25 < float(grey.mean()) < 0.7
    assert float((grey > 0.98).float().mean()) < 0.05
    assert float(grey.flatten(1).std(dim=1).amin()) > 0.05
    # Some edge or corner in most blocks of an eighth of the photo's width.
    gradient = (grey[:, 1:, 1:] - grey[:, 1:, :-1]).abs() + (grey[:, 1:, 1:] - grey[:, :-1, 1:]).abs()
    block = size[0] // 8
    strongest = torch.nn.functional.max_pool2d(gradient[:, None], block)
    assert float((strongest > 0.04).float().mean()) > 0.8


def test_demo_scene_is_fixed() -> None:
    demo = demo_scene()
    assert isinstance(demo, RoomScenes)
    assert demo.domain == NOMINAL
    assert len(demo) == 1
    assert_same_bytes(demo, demo_scene())


def test_sparse_scenes_still_connect() -> None:
    """Neighbours on the path share something, or nothing could be reconstructed at all."""
    scenes = sample_scenes(SPARSE, seed=35, indices=16)
    cameras = sample_views(scenes, 8, size=(32, 24))
    overlap = pairwise_overlap(cast_depth(scenes, cameras), cameras.K, cameras.T_world_camera)
    neighbours = torch.stack([overlap[:, view, view + 1] for view in range(7)], dim=1)
    assert float(neighbours.median()) > 0.35
