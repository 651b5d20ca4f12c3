import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora3d_ns.errors import DisconnectedViewsError, InvalidDataError, SettingsError
from lora3d_ns.pair_graph import (
    CompleteGraph,
    LogWindowGraph,
    PairGraphSettings,
    RetrievalGraph,
    StarGraph,
    WindowGraph,
    build_pair_graph,
    check_connected,
    connected_groups,
    symmetric_graph,
)
from lora3d_ns.types import PairGraph

ALL_SETTINGS = st.one_of(
    st.just(CompleteGraph()),
    st.builds(WindowGraph, size=st.integers(1, 5), closed=st.booleans()),
    st.builds(LogWindowGraph, size=st.integers(1, 5), closed=st.booleans()),
    st.just(StarGraph(centre=1)),
    st.builds(RetrievalGraph, neighbours=st.integers(1, 4), budget=st.just(None)),
)


def unordered(graph: PairGraph) -> set[tuple[int, int]]:
    return {(i, j) for i, j in graph.edges if i < j}


@given(settings=ALL_SETTINGS, view_count=st.integers(2, 12), seed=st.integers(0, 3))
def test_every_kind_is_symmetric_and_connected(settings: PairGraphSettings, view_count: int, seed: int) -> None:
    features = torch.randn(view_count, 5, generator=torch.Generator().manual_seed(seed))
    graph = build_pair_graph(settings, view_count, features=features)
    assert {(j, i) for i, j in graph.edges} == set(graph.edges)
    assert connected_groups(graph) == (tuple(range(view_count)),)
    check_connected(graph, [str(view) for view in range(view_count)])


def test_complete_has_every_ordered_pair() -> None:
    assert len(build_pair_graph(CompleteGraph(), 7)) == 7 * 6


def test_window_pairs_by_hand() -> None:
    assert unordered(build_pair_graph(WindowGraph(size=2), 5)) == {
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
        (2, 3),
        (2, 4),
        (3, 4),
    }
    closed = unordered(build_pair_graph(WindowGraph(size=1, closed=True), 5))
    assert closed == {(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)}


def test_log_window_pairs_by_hand() -> None:
    graph = build_pair_graph(LogWindowGraph(size=3), 6)
    assert unordered(graph) == {(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 2), (1, 3), (2, 4), (3, 5), (0, 4), (1, 5)}


def test_a_window_longer_than_the_set_is_complete_and_never_pairs_a_photo_with_itself() -> None:
    for closed in (False, True):
        assert len(build_pair_graph(WindowGraph(size=9, closed=closed), 4)) == 4 * 3


def test_star_joins_the_centre_with_all() -> None:
    assert unordered(build_pair_graph(StarGraph(centre=2), 4)) == {(0, 2), (1, 2), (2, 3)}


def test_retrieval_prefers_similar_photos_and_bridges_clusters() -> None:
    # Two places, three photos each: directions around (1, 0) and (-1, 0).
    angles = torch.tensor([0.0, 0.1, 0.2, 3.1, 3.2, 3.3])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    graph = build_pair_graph(RetrievalGraph(neighbours=1), 6, features=features)
    pairs = unordered(graph)
    assert {(0, 1), (1, 2), (3, 4), (4, 5)} <= pairs
    bridges = [pair for pair in pairs if pair[0] < 3 <= pair[1]]
    assert len(bridges) == 1


def test_retrieval_keeps_to_its_budget_and_stays_connected() -> None:
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    for budget in (19, 25, 60):
        graph = build_pair_graph(RetrievalGraph(neighbours=8, budget=budget), 20, features=features)
        assert len(unordered(graph)) == budget
        assert len(connected_groups(graph)) == 1


def test_retrieval_gives_each_photo_its_best_neighbours() -> None:
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    pairs = unordered(build_pair_graph(RetrievalGraph(neighbours=2), 9, features=features))
    centred = features - features.mean(dim=0)
    similarity = torch.nn.functional.cosine_similarity(centred[:, None], centred[None], dim=-1).fill_diagonal_(-2.0)
    for view in range(9):
        for best in similarity[view].topk(2).indices.tolist():
            assert (min(view, best), max(view, best)) in pairs


def test_retrieval_of_identical_photos_still_connects() -> None:
    graph = build_pair_graph(RetrievalGraph(neighbours=1), 5, features=torch.ones(5, 3))
    assert len(connected_groups(graph)) == 1


def test_groups_are_named_largest_first() -> None:
    graph = symmetric_graph(6, [(4, 5), (0, 2), (2, 3)])
    assert connected_groups(graph) == ((0, 2, 3), (4, 5), (1,))
    with pytest.raises(DisconnectedViewsError, match=r"3 groups.*a, c, d \| e, f \| b") as caught:
        check_connected(graph, list("abcdef"))
    assert caught.value.groups == (("a", "c", "d"), ("e", "f"), ("b",))


def test_names_of_other_views_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="2 names for 3 views"):
        check_connected(symmetric_graph(3, [(0, 1), (1, 2)]), ["a", "b"])


@pytest.mark.parametrize(
    ("settings", "view_count", "problem"),
    [
        (CompleteGraph(), 1, "make no pair"),
        (StarGraph(centre=4), 4, "photo 4 of only 4"),
        (RetrievalGraph(), 4, "needs a feature"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: PairGraphSettings, view_count: int, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        build_pair_graph(settings, view_count)


def test_a_budget_too_small_to_connect_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot connect 5"):
        build_pair_graph(RetrievalGraph(budget=3), 5, features=torch.randn(5, 3))


@pytest.mark.parametrize("features", [torch.ones(3, 2), torch.full((4, 2), float("nan"))])
def test_wrong_features_are_refused(features: torch.Tensor) -> None:
    with pytest.raises(InvalidDataError):
        build_pair_graph(RetrievalGraph(), 4, features=features)


@pytest.mark.parametrize("kind", [WindowGraph, LogWindowGraph])
def test_empty_windows_are_refused(kind: type) -> None:
    with pytest.raises(SettingsError):
        kind(size=0)


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"budget": 0}])
def test_empty_retrieval_is_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError):
        RetrievalGraph(**wrong)


def test_a_negative_centre_is_refused() -> None:
    with pytest.raises(SettingsError):
        StarGraph(centre=-1)
