"""Photos that a scene was made without find their place in it, and leave it as it is."""

import dataclasses
import math
from dataclasses import dataclass
from typing import NoReturn

import pytest
import torch
from adapter.adapter_samples import random_adapter
from torch import Tensor

from lora3d_ns import registration
from lora3d_ns.adapter.lora import with_adapter
from lora3d_ns.alignment.settings import KnownDistance
from lora3d_ns.alignment.state import orthonormal
from lora3d_ns.errors import DisconnectedViewsError, InvalidDataError
from lora3d_ns.network.checkpoints import load_network, network_fingerprint
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import PairGraphSettings, RetrievalGraph, StarGraph, WindowGraph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.reconstruct import Reconstruction, ReconstructSettings, reconstruct
from lora3d_ns.registration import registered_cameras
from lora3d_ns.rooms.benchmark_scenes import make_scene
from lora3d_ns.types import Cameras, PairGraph, PairPredictions, Views

PHOTOS = 7
HELD_OUT = (2, 5)
KEPT = (0, 1, 3, 4, 6)
ROBUST = ReconstructSettings(arm="robust").silent()


@dataclass(frozen=True, eq=False, kw_only=True)
class Room:
    """Photos of a room, their true cameras in metres and its typical depth; a scene of those that are kept."""

    views: Views
    truth: Tensor
    depth_m: float
    made: Reconstruction


@pytest.fixture(scope="module")
def network() -> Dust3r:
    return load_network("rooms")


def photographed(network: Dust3r, settings: ReconstructSettings = ROBUST) -> Room:
    photos = make_scene("nominal", 1, size=(64, 64), seed_offset=700).calibration
    views = photos.views.select(range(PHOTOS))
    return Room(
        views=views,
        truth=photos.cameras.T_world_camera[:PHOTOS].double(),
        depth_m=float(torch.cat([depth.flatten() for depth in photos.depths_m[:PHOTOS]]).median()),
        made=reconstruct(views.select(KEPT), network, settings, base_name="rooms"),
    )


@pytest.fixture(scope="module")
def room(network: Dust3r) -> Room:
    return photographed(network)


@pytest.fixture(scope="module")
def registered(room: Room, network: Dust3r) -> Cameras:
    return registered_cameras(room.views, HELD_OUT, room.made, network, ROBUST)


def errors(cameras: Cameras, room: Room) -> tuple[list[float], list[float]]:
    """Rotation in degrees and centre as a share of depth, of each view, the kept ones laid over the truth."""
    ours, truth, kept = cameras.T_world_camera.double(), room.truth, list(KEPT)
    turn = orthonormal((truth[kept, :3, :3] @ ours[kept, :3, :3].mT).sum(dim=0))
    centres, true_centres = ours[:, :3, 3] @ turn.T, truth[:, :3, 3]
    middle, true_middle = centres[kept].mean(dim=0), true_centres[kept].mean(dim=0)
    scale = (true_centres[kept] - true_middle).norm() / (centres[kept] - middle).norm()
    distances = (scale * (centres - middle) + true_middle - true_centres).norm(dim=1) / room.depth_m
    traces = torch.einsum("vij,vij->v", truth[:, :3, :3], turn @ ours[:, :3, :3])
    return [math.degrees(math.acos(min(1.0, (float(trace) - 1.0) / 2.0))) for trace in traces], distances.tolist()


def test_cameras_are_found(registered: Cameras, room: Room) -> None:
    rotation_deg, centre_share = errors(registered, room)
    # Worst measured over six rooms of this domain: 0.39 degrees, 0.53 % of the depth.
    for view in HELD_OUT:
        assert rotation_deg[view] < 0.8
        assert centre_share[view] < 0.011
    # Not by chance: the photos were taken from places well apart.
    distances = torch.cdist(room.truth[:, :3, 3], room.truth[:, :3, 3]) / room.depth_m
    assert float((distances + torch.eye(PHOTOS)).min()) > 0.02


def test_the_scenes_cameras_stay_to_the_last_bit(registered: Cameras, room: Room) -> None:
    scene = room.made.scene.cameras
    assert len(registered) == PHOTOS
    assert registered.sizes == room.views.source_sizes
    assert torch.equal(registered.T_world_camera[list(KEPT)], scene.T_world_camera)
    assert torch.equal(registered.K[list(KEPT)], scene.K)


def test_the_same_lens_has_the_same_intrinsics(registered: Cameras, room: Room) -> None:
    for view in HELD_OUT:
        torch.testing.assert_close(registered.K[view], room.made.scene.cameras.K[0], rtol=1e-6, atol=0.0)


def test_another_lens_has_its_own_and_given_intrinsics_stay(registered: Cameras, room: Room, network: Dust3r) -> None:
    given = registered.K[2].double().clone()
    given[0, 0] = given[1, 1] = 1.01 * given[0, 0]
    elsewhere = torch.eye(4, dtype=torch.float64)
    elsewhere[:3, 3] = 100.0
    nothing = (None,) * PHOTOS
    views = dataclasses.replace(
        room.views,
        lens_groups=tuple("other" if view == 5 else "rooms" for view in range(PHOTOS)),
        known_K=(*nothing[:2], given, *nothing[3:]),
        # The world that was given: not this one.
        known_T_world_camera=(*nothing[:2], elsewhere, *nothing[3:]),
    )
    cameras = registered_cameras(views, HELD_OUT, room.made, network, ROBUST)
    torch.testing.assert_close(cameras.K[2].double(), given, rtol=1e-6, atol=0.0)
    scene_px = float(room.made.scene.cameras.K[0, 0, 0])
    assert float(cameras.K[5, 0, 0]) != pytest.approx(scene_px, rel=1e-4)
    # It is the same lens in truth: measured 0.9 % apart.
    assert float(cameras.K[5, 0, 0]) == pytest.approx(scene_px, rel=0.03)
    assert torch.equal(cameras.K[list(KEPT)], room.made.scene.cameras.K)
    _, centre_share = errors(cameras, room)
    # Wrong focal lengths move cameras: measured 0.6 %.
    assert max(centre_share[view] for view in HELD_OUT) < 0.015


def test_where_photos_of_one_lens_differ_nothing_is_taken_over(room: Room, network: Dust3r) -> None:
    scene = room.made.scene
    K = scene.cameras.K.clone()
    K[:, [0, 1], [0, 1]] *= torch.linspace(0.998, 1.002, len(KEPT))[:, None]
    made = dataclasses.replace(
        room.made, scene=dataclasses.replace(scene, cameras=dataclasses.replace(scene.cameras, K=K))
    )
    settings = dataclasses.replace(ROBUST, alignment=dataclasses.replace(ROBUST.alignment, focal="per_image"))
    cameras = registered_cameras(room.views, HELD_OUT, made, network, settings)
    assert torch.equal(cameras.K[list(KEPT)], K)
    for view in HELD_OUT:
        assert float((cameras.K[view, 0, 0] - K[:, 0, 0]).abs().min()) > 1e-4
        # Measured 0.8 % apart at most.
        assert float(cameras.K[view, 0, 0]) == pytest.approx(float(K[:, 0, 0].mean()), rel=0.03)


def test_each_arm_registers_by_its_own_objective(network: Dust3r) -> None:
    settings = dataclasses.replace(ROBUST, arm="pretrained")
    room = photographed(network, settings)
    cameras = registered_cameras(room.views, HELD_OUT, room.made, network, settings)
    assert torch.equal(cameras.T_world_camera[list(KEPT)], room.made.scene.cameras.T_world_camera)
    rotation_deg, centre_share = errors(cameras, room)
    for view in HELD_OUT:
        # Measured 3.2 degrees and 3.1 %: point maps alone decide.
        assert rotation_deg[view] < 6.0
        assert centre_share[view] < 0.06


def test_what_the_scene_holds_already_is_not_said_again(registered: Cameras, room: Room, network: Dust3r) -> None:
    """A known distance has given the scene its unit, and an offset its principal points."""
    known = KnownDistance(first=room.views.names[0], second=room.views.names[6], distance=250.0)
    alignment = dataclasses.replace(
        ROBUST.alignment, known_distances=(known,), principal_point_offset_px=(0.5, -0.5), known_poses="prior"
    )
    settings = dataclasses.replace(ROBUST, alignment=alignment)
    cameras = registered_cameras(room.views, HELD_OUT, room.made, network, settings)
    assert torch.equal(cameras.T_world_camera, registered.T_world_camera)
    assert torch.equal(cameras.K, registered.K)


class SeenEnoughError(Exception):
    """Stops before long work."""


def test_the_scenes_adapter_is_used(room: Room, network: Dust3r, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[PairPredictions] = []

    def spied(views: Views, graph: PairGraph, used: Dust3r, settings: PredictionSettings) -> NoReturn:
        graph = PairGraph(view_count=PHOTOS, edges=graph.edges[:1])
        looked.append(predict_pairs(views, graph, used, settings))
        looked.append(predict_pairs(views, graph, with_adapter(network, adapter), settings))
        looked.append(predict_pairs(views, graph, network, settings))
        raise SeenEnoughError

    monkeypatch.setattr(registration, "predict_pairs", spied)
    adapter, before = random_adapter(network), network_fingerprint(network)
    with pytest.raises(SeenEnoughError):
        registered_cameras(room.views, HELD_OUT, dataclasses.replace(room.made, adapter=adapter), network, ROBUST)
    ours, adapted, base = (predictions.pairs[0].points_first for predictions in looked)
    assert torch.equal(ours, adapted)
    assert not torch.equal(ours, base)
    assert network_fingerprint(network) == before


def test_a_scene_of_other_photos_is_refused(room: Room, network: Dust3r) -> None:
    with pytest.raises(InvalidDataError, match="not that of the other photos"):
        registered_cameras(room.views, (2, 4), room.made, network, ROBUST)
    with pytest.raises(InvalidDataError, match="not that of the other photos"):
        registered_cameras(room.views, (), room.made, network, ROBUST)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (WindowGraph(size=1), {(1, 2), (2, 3), (4, 5), (5, 6)}),
        # The scene's third photo is the fourth of all.
        (StarGraph(centre=2), {(2, 3), (3, 5)}),
        (RetrievalGraph(neighbours=1), None),
    ],
)
def test_large_scenes_keep_their_kind_of_graph(
    room: Room,
    network: Dust3r,
    monkeypatch: pytest.MonkeyPatch,
    kind: PairGraphSettings,
    expected: set[tuple[int, int]] | None,
) -> None:
    graphs: list[PairGraph] = []

    def stop(_views: Views, graph: PairGraph, *_rest: object) -> NoReturn:
        graphs.append(graph)
        raise SeenEnoughError

    monkeypatch.setattr(registration, "_FULLY_JOINED", 0)
    monkeypatch.setattr(registration, "predict_pairs", stop)
    with pytest.raises(SeenEnoughError):
        registered_cameras(room.views, HELD_OUT, room.made, network, dataclasses.replace(ROBUST, graph=kind))
    pairs = {(min(edge), max(edge)) for edge in graphs[0].edges}
    assert len(graphs[0].edges) == 2 * len(pairs)
    assert all(set(pair) & set(HELD_OUT) for pair in pairs)
    for view in HELD_OUT:
        assert any(view in pair and set(pair) & set(KEPT) for pair in pairs)
    assert expected is None or pairs == expected


def test_photos_that_meet_none_of_the_scene_are_named(
    room: Room, network: Dust3r, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "_FULLY_JOINED", 0)
    kept = (0, 1, 5, 6)
    cameras = room.made.scene.cameras
    scene = dataclasses.replace(
        room.made.scene,
        names=tuple(room.views.names[view] for view in kept),
        cameras=Cameras(T_world_camera=cameras.T_world_camera[:4], K=cameras.K[:4], sizes=cameras.sizes[:4]),
    )
    made = dataclasses.replace(room.made, scene=scene)
    settings = dataclasses.replace(ROBUST, graph=WindowGraph(size=1))
    with pytest.raises(DisconnectedViewsError) as raised:
        registered_cameras(room.views, (2, 3, 4), made, network, settings)
    assert raised.value.groups[1] == (room.views.names[3],)
