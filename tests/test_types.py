import dataclasses

import pytest
import torch

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.types import (
    AlignedScene,
    AlignmentDiagnosis,
    Cameras,
    PairGraph,
    PairPrediction,
    PairPredictions,
    PseudoLabels,
    Scene,
    Sim3,
)


def random_similarities(count: int, seed: int = 0) -> Sim3:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)).Q
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    return Sim3(
        scale=torch.rand(count, dtype=torch.float64, generator=generator) + 0.5,
        rotation=rotation,
        translation=torch.randn(count, 3, dtype=torch.float64, generator=generator),
    )


def pair_of(first: tuple[int, int], second: tuple[int, int]) -> PairPrediction:
    return PairPrediction(
        points_first=torch.rand(*first, 3),
        points_second=torch.rand(*second, 3),
        confidence_first=torch.rand(*first),
        confidence_second=torch.rand(*second),
    )


def cameras_of(count: int) -> Cameras:
    return Cameras(
        T_world_camera=torch.eye(4).repeat(count, 1, 1), K=torch.eye(3).repeat(count, 1, 1), sizes=((4, 3),) * count
    )


def test_similarities_obey_the_group_laws() -> None:
    a, b, c = (random_similarities(5, seed) for seed in range(3))
    points = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(a.compose(b).apply(points), a.apply(b.apply(points)))
    torch.testing.assert_close(a.compose(b).compose(c).apply(points), a.compose(b.compose(c)).apply(points))
    for identity in (a.compose(a.inverse()), a.inverse().compose(a)):
        torch.testing.assert_close(identity.apply(points), points)


def test_one_similarity_applies_to_a_map_of_points() -> None:
    similarity = random_similarities(1)
    single = Sim3(scale=similarity.scale[0], rotation=similarity.rotation[0], translation=similarity.translation[0])
    points = torch.randn(4, 5, 3, dtype=torch.float64)
    expected = single.scale * torch.einsum("ij,hwj->hwi", single.rotation, points) + single.translation
    torch.testing.assert_close(single.apply(points), expected)


def test_everything_is_frozen(make_views) -> None:
    views = make_views([(16, 16), (16, 32)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        views.names = ()  # pyright: ignore[reportAttributeAccessIssue]


def test_views_select_and_know_their_shapes(make_views) -> None:
    views = make_views([(16, 32), (32, 16), (16, 16)])
    assert views.shapes == ((16, 32), (32, 16), (16, 16))
    chosen = views.select([2, 0])
    assert chosen.names == ("2.png", "0.png")
    assert torch.equal(chosen.images[1], views.images[0])


def test_views_say_how_much_was_cropped(make_views) -> None:
    views = make_views([(16, 16)])
    half = dataclasses.replace(
        views,
        source_sizes=((64, 32),),
        source_from_network=(PixelAffine(scale_x=2.0, scale_y=2.0, offset_x_px=16.0, offset_y_px=0.0),),
    )
    assert half.cropped_fractions == pytest.approx((0.5,))
    padded = dataclasses.replace(
        views,
        source_sizes=((16, 8),),
        source_from_network=(PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=-4.0),),
    )
    assert padded.cropped_fractions == (0.0,)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("a", "a")},
        {"names": ("a",)},
        {"masks": (torch.ones(3, 3, dtype=torch.bool), None)},
        {"focal_exif_px": (None,)},
    ],
)
def test_contradicting_views_are_refused(make_views, change: dict) -> None:
    with pytest.raises(InvalidDataError):
        dataclasses.replace(make_views([(16, 16), (16, 16)]), **change)


@pytest.mark.parametrize("edges", [((0, 0),), ((0, 3),), ((1, 0), (0, 1)), ((0, 1), (0, 1)), ((-1, 0),)])
def test_impossible_graphs_are_refused(edges: tuple) -> None:
    with pytest.raises(InvalidDataError):
        PairGraph(view_count=3, edges=edges)


def test_predictions_must_fit_their_graph_and_each_other() -> None:
    graph = PairGraph(view_count=2, edges=((0, 1), (1, 0)))
    good = (pair_of((4, 6), (6, 4)), pair_of((6, 4), (4, 6)))
    predictions = PairPredictions(graph=graph, pairs=good)
    assert len(predictions) == 2
    assert predictions.nbytes == 2 * 2 * 24 * 4 * 4
    with pytest.raises(InvalidDataError, match="1 predictions for 2"):
        PairPredictions(graph=graph, pairs=good[:1])
    with pytest.raises(InvalidDataError, match="view 1 has point maps"):
        PairPredictions(graph=graph, pairs=(good[0], pair_of((4, 6), (4, 6))))


def test_half_precision_predictions_come_back_as_float32() -> None:
    graph = PairGraph(view_count=2, edges=((0, 1),))
    pair = pair_of((4, 6), (4, 6))
    ((edge, again),) = PairPredictions(graph=graph, pairs=(pair.to(torch.float16),))
    assert edge == (0, 1)
    assert again.points_first.dtype == torch.float32
    torch.testing.assert_close(again.points_first, pair.points_first, rtol=2**-10, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": ((4, 3),)},
        {"T_world_camera": torch.full((2, 4, 4), float("nan"))},
        {"K": torch.eye(3).repeat(2, 1, 1) * torch.tensor([-1.0, 1.0, 1.0])},
    ],
)
def test_impossible_cameras_are_refused(change: dict) -> None:
    with pytest.raises(InvalidDataError):
        dataclasses.replace(cameras_of(2), **change)


def test_an_aligned_scene_needs_one_of_each_per_view_and_edge() -> None:
    maps = (torch.ones(3, 4), torch.ones(3, 4))
    scene = AlignedScene(
        graph=PairGraph(view_count=2, edges=((0, 1),)),
        cameras=cameras_of(2),
        depths=maps,
        world_from_edge=random_similarities(1),
        weights=(maps,),
        view_weights=maps,
        moving=(torch.zeros(3, 4, dtype=torch.bool),) * 2,
        loss_history=(1.0, 0.5),
        history_seconds=(0.1, 0.2),
        dropped_edges={},
        diagnosis=AlignmentDiagnosis(
            unit=1.0,
            edge_residuals=torch.zeros(1),
            focal_spread_percent=torch.zeros(2),
            weighted_share=torch.ones(2),
            baseline=1.0,
            near_static=False,
            uncut_views=(),
            contested_views=(),
            scale_known=False,
            match_count=0,
            match_error_px=None,
            converged=True,
            warnings=(),
        ),
    )
    for change in (
        {"moving": ()},
        {"depths": maps[:1]},
        {"weights": ()},
        {"view_weights": (torch.ones(4, 3), maps[1])},
    ):
        with pytest.raises(InvalidDataError):
            dataclasses.replace(scene, **change)


def test_pseudo_labels_need_a_mask_of_their_views_shape_for_each_edge() -> None:
    first, second = torch.ones(3, 4, dtype=torch.bool), torch.ones(5, 2, dtype=torch.bool)
    labels = PseudoLabels(
        graph=PairGraph(view_count=2, edges=((0, 1),)),
        T_world_camera=torch.eye(4).repeat(2, 1, 1),
        K_network=torch.eye(3).repeat(2, 1, 1),
        depths=(torch.ones(3, 4), torch.ones(5, 2)),
        valid_first=(first,),
        valid_second=(second,),
        cutoff=1.5,
        coverage=torch.ones(2),
    )
    for change in ({"valid_first": ()}, {"valid_second": (first,)}, {"depths": (torch.ones(3, 4),)}):
        with pytest.raises(InvalidDataError):
            dataclasses.replace(labels, **change)


def test_a_scene_needs_a_camera_for_each_name() -> None:
    scene = Scene(
        names=("a", "b"),
        cameras=cameras_of(2),
        points=torch.rand(5, 3),
        colors=torch.zeros(5, 3, dtype=torch.uint8),
        point_weights=torch.rand(5),
        point_views=torch.zeros(5, dtype=torch.int32),
        provenance={},
        format_version=1,
    )
    with pytest.raises(InvalidDataError):
        dataclasses.replace(scene, names=("a",))
