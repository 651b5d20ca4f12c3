"""Which pairs of photos the network looks at, and whether they hang together.

Each kind of graph is its own settings class with its own numbers; there is no language of strings to misspell. All
graphs are symmetric: with (i, j) comes (j, i), because the network's answer is not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.errors import DisconnectedViewsError, InvalidDataError, SettingsError
from lora3d_ns.types import PairGraph


def _check(condition: bool, problem: str, way_out: str) -> None:
    if not condition:
        raise SettingsError(problem, way_out=way_out)


@dataclass(frozen=True, kw_only=True)
class CompleteGraph:
    """Every photo with every other: N (N - 1) ordered pairs. Best up to some 20 photos."""


@dataclass(frozen=True, kw_only=True)
class WindowGraph:
    """Each photo with the next few, for photos in order of capture: about 2 N * size ordered pairs.

    Attributes:
        size: How many following photos each one is paired with.
        closed: Whether the last photos are also paired with the first (a walk around something).
    """

    size: int = 3
    closed: bool = False

    def __post_init__(self) -> None:
        _check(self.size >= 1, f"window size must be at least 1, not {self.size}", "Use a size of 3 or more")


@dataclass(frozen=True, kw_only=True)
class LogWindowGraph:
    """Each photo with those 1, 2, 4, ..., 2^(size - 1) steps ahead: near neighbours and a few long bridges.

    Attributes:
        size: How many steps, at most.
        closed: Whether steps wrap around from the last photo to the first.
    """

    size: int = 4
    closed: bool = False

    def __post_init__(self) -> None:
        _check(self.size >= 1, f"log window size must be at least 1, not {self.size}", "Use a size of 3 or more")


@dataclass(frozen=True, kw_only=True)
class StarGraph:
    """One photo with every other: 2 (N - 1) ordered pairs.

    Attributes:
        centre: Index of that photo.
    """

    centre: int = 0

    def __post_init__(self) -> None:
        _check(self.centre >= 0, f"the centre must not be negative, not {self.centre}", "Give a photo's index from 0")


@dataclass(frozen=True, kw_only=True)
class RetrievalGraph:
    """The pairs whose encoder features are most alike, within a budget, and always connected.

    The similarity of two photos is the cosine of their features after the mean over the set is taken out. A maximum
    spanning tree comes first, so that nothing falls apart; then each photo's best neighbours, the most similar pairs
    first, until the budget is spent.

    Attributes:
        neighbours: Neighbours wanted for each photo.
        budget: Most unordered pairs in all; None for no limit.
    """

    neighbours: int = 8
    budget: int | None = None

    def __post_init__(self) -> None:
        _check(self.neighbours >= 1, f"neighbours must be at least 1, not {self.neighbours}", "Use 5 or more")
        _check(self.budget is None or self.budget >= 1, f"the budget must be positive, not {self.budget}", "Raise it")


PairGraphSettings = CompleteGraph | WindowGraph | LogWindowGraph | StarGraph | RetrievalGraph


def build_pair_graph(
    settings: PairGraphSettings, view_count: int, *, features: Float[Tensor, "views channels"] | None = None
) -> PairGraph:
    """Graph of the given kind over views 0 .. view_count - 1.

    Args:
        settings: Kind and numbers.
        view_count: At least 2.
        features: One feature per view (see `lora3d_ns.predict.image_features`); needed for `RetrievalGraph`.

    Raises:
        SettingsError: The settings do not fit this number of views, or features are missing.
        InvalidDataError: Features do not match the views.
    """
    _check(view_count >= 2, f"{view_count} view(s) make no pair", "Give at least two photos")
    if isinstance(settings, CompleteGraph):
        pairs: Iterable[tuple[int, int]] = combinations(range(view_count), 2)
    elif isinstance(settings, WindowGraph):
        pairs = _window_pairs(view_count, range(1, settings.size + 1), closed=settings.closed)
    elif isinstance(settings, LogWindowGraph):
        pairs = _window_pairs(view_count, [2**k for k in range(settings.size)], closed=settings.closed)
    elif isinstance(settings, StarGraph):
        _check(
            settings.centre < view_count,
            f"the star's centre is photo {settings.centre} of only {view_count}",
            "Give an index below the number of photos",
        )
        pairs = [(settings.centre, j) for j in range(view_count) if j != settings.centre]
    else:
        if features is None:
            raise SettingsError(
                "the retrieval graph needs a feature for each photo",
                way_out="Compute them with `lora3d_ns.predict.image_features`",
            )
        pairs = _retrieval_pairs(settings, view_count, features)
    return symmetric_graph(view_count, pairs)


def symmetric_graph(view_count: int, pairs: Iterable[tuple[int, int]]) -> PairGraph:
    """Graph with both orders of every given pair."""
    edges = {edge for i, j in pairs for edge in ((i, j), (j, i))}
    return PairGraph(view_count=view_count, edges=tuple(sorted(edges)))


def connected_groups(graph: PairGraph) -> tuple[tuple[int, ...], ...]:
    """Groups of views that edges join, directly or through others; largest first, then by first view."""
    joined = nx.Graph(graph.edges)
    joined.add_nodes_from(range(graph.view_count))
    groups = [tuple(sorted(group)) for group in nx.connected_components(joined)]
    return tuple(sorted(groups, key=lambda group: (-len(group), group)))


def check_connected(graph: PairGraph, names: Sequence[str]) -> None:
    """Nothing, if edges join all views into one group.

    Raises:
        DisconnectedViewsError: They do not; the error lists the groups by name.
    """
    if len(names) != graph.view_count:
        raise InvalidDataError(
            f"{len(names)} names for {graph.view_count} views", way_out="Give the names of the graph's own views"
        )
    groups = connected_groups(graph)
    if len(groups) > 1:
        raise DisconnectedViewsError([[names[view] for view in group] for group in groups])


def _window_pairs(view_count: int, steps: Iterable[int], *, closed: bool) -> list[tuple[int, int]]:
    pairs = []
    for step in steps:
        for i in range(view_count):
            j = i + step
            if j < view_count:
                pairs.append((i, j))
            elif closed and j % view_count != i:
                pairs.append((i, j % view_count))
    return pairs


def _retrieval_pairs(settings: RetrievalGraph, view_count: int, features: Tensor) -> list[tuple[int, int]]:
    if features.shape[0] != view_count or not bool(torch.isfinite(features).all()):
        raise InvalidDataError(
            f"features of {features.shape[0]} photos for {view_count} views, or not finite",
            way_out="Compute them with `lora3d_ns.predict.image_features` from the same views",
        )
    _check(
        settings.budget is None or settings.budget >= view_count - 1,
        f"a budget of {settings.budget} pairs cannot connect {view_count} photos",
        f"Raise the budget to {view_count - 1} or more",
    )
    centred = features.double() - features.double().mean(dim=0)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
    similarity = (unit @ unit.T).tolist()
    # Ties (identical photos) are broken by index, so that the graph does not depend on how a sort is implemented.
    ranked = sorted(combinations(range(view_count), 2), key=lambda pair: (-similarity[pair[0]][pair[1]], pair))
    similar = nx.Graph()
    similar.add_edges_from((i, j, {"rank": rank}) for rank, (i, j) in enumerate(ranked))
    tree = [(min(edge), max(edge)) for edge in nx.minimum_spanning_edges(similar, weight="rank", data=False)]

    wanted: set[tuple[int, int]] = set()
    taken = [0] * view_count
    for i, j in ranked:
        if taken[i] < settings.neighbours or taken[j] < settings.neighbours:
            wanted.add((i, j))
            taken[i] += 1
            taken[j] += 1
    return (tree + [pair for pair in ranked if pair in wanted and pair not in tree])[: settings.budget]
