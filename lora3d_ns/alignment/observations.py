"""Pair predictions sorted by view: every point map that says something about a view's pixels, on a grid of them.

The solver works view by view, because depths belong to views: the depth of a pixel meets all point maps of that pixel
and nothing else. A view's block is built from the predictions when it is needed (a copy in another order), so memory
holds one view at a time unless the blocks are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.types import PairPredictions, Views

_KEPT_BYTES = 2**31
"""Blocks are kept between passes while all together need less; on a GPU, less than a share of what is free there."""
_KEPT_SHARE = 0.4


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewObservations:
    """What all edges of a view say about some of its pixels.

    Attributes:
        view: Index of the view.
        edges: Index of each edge that holds the view; once per edge.
        pixels: Network pixels (x, y) of the sampled pixels.
        points: Their 3D points, each in its edge's frame; component before pixel, which is the order the solver reads.
        confidence: C of the points; 0 where masked, below the cut-off or of a dropped edge.
    """

    view: int
    edges: Int64[Tensor, " observations"]
    pixels: Float32[Tensor, "2 pixels"]
    points: Float32[Tensor, "observations 3 pixels"]
    confidence: Float32[Tensor, "observations pixels"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ObservationSettings:
    """Which observations count.

    Attributes:
        cutoff: Log-confidence below which a point has no say (LoRA3D: 0.5); 0 lets all have theirs.
        dropped: Indices of edges without a say.
        uncut: Indices of edges for which the cut-off does not hold, since nothing would be left of a view.
    """

    cutoff: float
    dropped: frozenset[int] = frozenset()
    uncut: frozenset[int] = frozenset()


class ObservationGrid:
    """The observations of all views on a grid of every `stride`-th pixel.

    Args:
        views: Photos; their masks take pixels out.
        predictions: Point maps of the pairs.
        settings: Which of them count.
        stride: Distance of the grid's pixels; 1 for all pixels.
        masks: Further masks, one per view or None: pixels of moving things.
        device: Where the blocks go.
    """

    def __init__(
        self,
        views: Views,
        predictions: PairPredictions,
        settings: ObservationSettings,
        *,
        stride: int,
        masks: Sequence[Bool[Tensor, "_ _"] | None] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.stride = stride
        self.edges = predictions.graph.edges
        self.device = device or torch.device("cpu")
        self._predictions = predictions
        self._settings = settings
        self._masks = [
            _both(own, None if masks is None else masks[view], view_shape)
            for view, (own, view_shape) in enumerate(zip(views.masks, views.shapes, strict=True))
        ]
        self._shapes = views.shapes
        self._roles: list[list[tuple[int, int]]] = [[] for _ in views.names]
        for index, (i, j) in enumerate(self.edges):
            self._roles[i].append((index, 0))
            self._roles[j].append((index, 1))
        samples = sum(
            len(roles) * len(self.rows(view)) * len(self.columns(view)) for view, roles in enumerate(self._roles)
        )
        self.observation_count = samples
        self._kept: dict[int, ViewObservations] | None = {} if 16 * samples < _kept_bytes(self.device) else None

    def __len__(self) -> int:
        """Number of views."""
        return len(self._shapes)

    def __iter__(self) -> Iterator[ViewObservations]:
        for view in range(len(self)):
            yield self.block(view)

    def rows(self, view: int) -> range:
        """Rows of the view's pixels on the grid."""
        return range(min(self.stride // 2, self._shapes[view][0] - 1), self._shapes[view][0], self.stride)

    def columns(self, view: int) -> range:
        """Columns of the view's pixels on the grid."""
        return range(min(self.stride // 2, self._shapes[view][1] - 1), self._shapes[view][1], self.stride)

    def degree(self, view: int) -> int:
        """Number of edges that hold the view."""
        return len(self._roles[view])

    def edges_of(self, view: int) -> Int64[Tensor, " observations"]:
        """Indices of the edges that hold the view, in the order of its observations."""
        return torch.tensor([index for index, _ in self._roles[view]], dtype=torch.int64)

    def roles_of(self, view: int) -> tuple[tuple[int, int], ...]:
        """For each observation of the view the edge's index and whether the view is its first (0) or second (1)."""
        return tuple(self._roles[view])

    def mask(self, view: int) -> Bool[Tensor, "_ _"] | None:
        """Pixels of the view that count, at full resolution; None where all do."""
        return self._masks[view]

    def block(self, view: int) -> ViewObservations:
        """The observations of one view."""
        if self._kept is not None and view in self._kept:
            return self._kept[view]
        height, width = self._shapes[view]
        rows, columns = (slice(axis.start, axis.stop, axis.step) for axis in (self.rows(view), self.columns(view)))
        pixels = pixel_centres(height, width)[rows, columns].reshape(-1, 2).T.contiguous()
        points = torch.empty(self.degree(view), 3, pixels.shape[1])
        for row, (edge, role) in enumerate(self._roles[view]):
            pair = self._predictions.pairs[edge]
            map_ = pair.points_first if role == 0 else pair.points_second
            points[row] = map_[rows, columns].reshape(-1, 3).T
        block = ViewObservations(
            view=view,
            edges=self.edges_of(view).to(self.device),
            pixels=pixels.to(self.device),
            points=points.to(self.device),
            confidence=self.confidence(view),
        )
        if self._kept is not None:
            self._kept[view] = block
        return block

    def confidence(self, view: int) -> Float32[Tensor, "observations pixels"]:
        """The confidences of a view's block, without the rest of it."""
        rows, columns = (slice(axis.start, axis.stop, axis.step) for axis in (self.rows(view), self.columns(view)))
        confidence = torch.empty(self.degree(view), len(self.rows(view)) * len(self.columns(view)))
        for row, (edge, role) in enumerate(self._roles[view]):
            pair = self._predictions.pairs[edge]
            said = pair.confidence_first if role == 0 else pair.confidence_second
            confidence[row] = said[rows, columns].reshape(-1)
            if edge in self._settings.dropped:
                confidence[row] = 0.0
            elif self._settings.cutoff > 0 and edge not in self._settings.uncut:
                confidence[row] = torch.where(confidence[row] >= self._settings.cutoff, confidence[row], 0.0)
        mask = self._masks[view]
        if mask is not None:
            confidence *= mask[rows, columns].reshape(-1)
        return confidence.to(self.device)


def _kept_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _KEPT_BYTES
    # What is not kept is moved there anew in every pass.
    return int(_KEPT_SHARE * torch.cuda.mem_get_info(device)[0])


def stride_for(views: Views, pixels_per_view: int) -> int:
    """The smallest stride whose grid has at most so many pixels in the mean view."""
    mean_pixels = sum(height * width for height, width in views.shapes) / len(views)
    stride = 1
    while mean_pixels / stride**2 > pixels_per_view and stride < min(min(shape) for shape in views.shapes):
        stride += 1
    return stride


def _both(first: Tensor | None, second: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    if first is None and second is None:
        return None
    both = torch.ones(shape, dtype=torch.bool)
    for mask in (first, second):
        if mask is not None:
            both &= mask
    return both
