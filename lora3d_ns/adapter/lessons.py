"""What the steps of fine-tuning consist of: which pairs belong together, their images and labels on the device."""

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lora3d_ns.adapter.loss import LabelBatch, label_loss, mean_label_error
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.network.base import Encoding, PairNetwork, PairOutput
from lora3d_ns.types import PairGraph, PseudoLabels, Views

Edge = tuple[int, int]


def split_pairs(graph: PairGraph, held_out_share: float, seed: int) -> tuple[tuple[Edge, ...], tuple[Edge, ...]]:
    """(edges to learn, edges held out): both orders of a pair fall on the same side.

    Which pairs are held out is drawn by the seed. At least one is where the share is above 0, and at least one is left
    to learn.

    Raises:
        SettingsError: The share is outside 0 to 0.5.
    """
    if not 0 <= held_out_share <= 0.5:
        raise SettingsError(f"held_out_share {held_out_share}", way_out="Use a share between 0 and 0.5")
    pairs = sorted({(min(edge), max(edge)) for edge in graph.edges})
    count = max(0, min(len(pairs) - 1, max(1, round(held_out_share * len(pairs))))) if held_out_share else 0
    chosen = set(random.Random(seed).sample(pairs, count))
    sides: tuple[list[Edge], list[Edge]] = ([], [])
    for edge in graph.edges:
        sides[(min(edge), max(edge)) in chosen].append(edge)
    return tuple(sides[0]), tuple(sides[1])


def steps_of_epoch(edges: Sequence[Edge], pairs_per_step: int, *, both_orders: bool, seed: int) -> list[list[Edge]]:
    """All edges once, in random order, divided into steps.

    Args:
        edges: Ordered pairs.
        pairs_per_step: Ordered pairs of a step.
        both_orders: Whether (i, j) and (j, i) stay together: their step encodes two images for two pairs.
        seed: Of the order.
    """
    grouped: dict[Edge, list[Edge]] = {}
    for edge in edges:
        grouped.setdefault((min(edge), max(edge)) if both_orders else edge, []).append(edge)
    groups = list(grouped.values())
    random.Random(seed).shuffle(groups)
    steps: list[list[Edge]] = []
    for group in groups:
        if not steps or len(steps[-1]) + len(group) > max(pairs_per_step, len(group)):
            steps.append([])
        steps[-1] += group
    return steps


class Lessons:
    """Images and labels of a scene on the network's device, and the objective of any of its pairs.

    A view's own points are computed once; those in another camera's frame when a step needs them.

    Args:
        views: The photos.
        labels: Of these photos.
        device: Where the network is.
        confidence_alpha: Of the objective.
        triplet_weight: Of the agreement between pairs that share their first photo.

    Raises:
        InvalidDataError: The labels are of other photos.
    """

    def __init__(
        self,
        views: Views,
        labels: PseudoLabels,
        device: torch.device,
        *,
        confidence_alpha: float,
        triplet_weight: float = 0.0,
    ) -> None:
        shapes = tuple((depth.shape[0], depth.shape[1]) for depth in labels.depths)
        if shapes != views.shapes:
            raise InvalidDataError("the labels are not of these photos", way_out="Make them from the same views")
        self.shapes = shapes
        self.confidence_alpha = confidence_alpha
        self.triplet_weight = triplet_weight
        self._images = [image.to(device) for image in views.images]
        self._points = [
            points_from_depth(depth, K).to(device) for depth, K in zip(labels.depths, labels.K_network, strict=True)
        ]
        T = labels.T_world_camera.double()
        first, second = torch.tensor(labels.graph.edges, dtype=torch.int64).reshape(-1, 2).T
        T_first_second = (torch.linalg.inv(T)[first] @ T[second]).float().to(device)
        # Masks are shared between pairs; so are their copies.
        on_device: dict[int, Tensor] = {}
        for mask in (*labels.valid_first, *labels.valid_second):
            if id(mask) not in on_device:
                on_device[id(mask)] = mask.to(device)
        self._of_edge = {
            edge: (T_first_second[k], on_device[id(labels.valid_first[k])], on_device[id(labels.valid_second[k])])
            for k, edge in enumerate(labels.graph.edges)
        }
        self._has_labels = {
            edge: bool(first.any() or second.any())
            for edge, first, second in zip(labels.graph.edges, labels.valid_first, labels.valid_second, strict=True)
        }

    def with_labels(self, edges: Iterable[Edge]) -> list[Edge]:
        """Those of the edges that have any label."""
        return [edge for edge in edges if self._has_labels[edge]]

    def objective(self, network: PairNetwork, edges: Sequence[Edge], *, share_encodings: bool) -> Tensor:
        """Mean of `label_loss` over the pairs, each pair for itself: the objective of one step.

        So a step can be divided into parts, which add up to it, and what a pair counts does not depend on the others.
        With a triplet weight, `triplet_disagreement` is added as a share of the pairs too; it is only of pairs in the
        same part whose two photos have the same two shapes.

        Args:
            network: Predicts; with gradients where they are on.
            edges: The step's pairs, of any shapes.
            share_encodings: Whether each image is encoded once, else once for each pair it belongs to.
        """
        total = torch.zeros((), device=self._images[0].device)
        for group, output in self._outputs(network, edges, share_encodings=share_encodings):
            with self._full_precision():
                labels = self._batch(group)
                for row in range(len(group)):
                    loss = label_loss(
                        _row_of_output(output, row), _row_of_labels(labels, row), confidence_alpha=self.confidence_alpha
                    )
                    total = total + loss / len(edges)
                if self.triplet_weight:
                    total = total + self.triplet_weight * triplet_disagreement(group, output, labels) / len(edges)
        return total

    def errors(self, network: PairNetwork, edges: Sequence[Edge]) -> Tensor:
        """`mean_label_error` of each of the pairs, in their order, on the host."""
        found: dict[Edge, Tensor] = {}
        for group, output in self._outputs(network, edges, share_encodings=True):
            with self._full_precision():
                found.update(zip(group, mean_label_error(output, self._batch(group)).float().cpu(), strict=True))
        return torch.stack([found[edge] for edge in edges])

    def _outputs(
        self, network: PairNetwork, edges: Sequence[Edge], *, share_encodings: bool
    ) -> Iterable[tuple[list[Edge], PairOutput]]:
        """Predictions, one batch for each combination of shapes."""
        groups: dict[tuple[tuple[int, int], tuple[int, int]], list[Edge]] = {}
        for i, j in edges:
            groups.setdefault((self.shapes[i], self.shapes[j]), []).append((i, j))
        if not share_encodings:
            for group in groups.values():
                first, second = (torch.stack([self._images[edge[end]] for edge in group]) for end in (0, 1))
                yield group, network.decode(network.encode(first), network.encode(second))
            return
        encodings, rows = self._encoded(network, sorted({view for edge in edges for view in edge}))
        for (shape_first, shape_second), group in groups.items():
            chosen = [
                encodings[shape].select(
                    torch.tensor([rows[edge[end]] for edge in group], device=self._images[0].device)
                )
                for end, shape in ((0, shape_first), (1, shape_second))
            ]
            yield group, network.decode(*chosen)

    def _encoded(
        self, network: PairNetwork, chosen: Sequence[int]
    ) -> tuple[dict[tuple[int, int], Encoding], dict[int, int]]:
        """One encoding per shape, and the row of each view in that of its shape."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for view in chosen:
            by_shape.setdefault(self.shapes[view], []).append(view)
        encodings = {
            shape: network.encode(torch.stack([self._images[view] for view in same]))
            for shape, same in by_shape.items()
        }
        return encodings, {view: row for same in by_shape.values() for row, view in enumerate(same)}

    def _full_precision(self) -> torch.autocast:
        """Labels are not to be rounded to what is enough for the network."""
        return torch.autocast(self._images[0].device.type, enabled=False)

    def _batch(self, group: Sequence[Edge]) -> LabelBatch:
        T = torch.stack([self._of_edge[edge][0] for edge in group])
        second = torch.stack([self._points[j] for _, j in group])
        return LabelBatch(
            points_first=torch.stack([self._points[i] for i, _ in group]),
            points_second=second @ T[:, None, :3, :3].mT + T[:, None, None, :3, 3],
            valid_first=torch.stack([self._of_edge[edge][1] for edge in group]),
            valid_second=torch.stack([self._of_edge[edge][2] for edge in group]),
        )


def triplet_disagreement(group: Sequence[Edge], output: PairOutput, labels: LabelBatch) -> Tensor:
    """Sum, over all two pairs (i, j) and (i, k), of the mean distance between their points of photo i.

    `mean_p |X^{i,i}_j / z_j - X^{i,i}_k / z_k|` over the pixels that have a label in both, z being the mean distance of
    these points: a photo's own shape does not depend on what it is paired with (Test3R, arXiv 2506.13750).
    """
    total = output.points_first.new_zeros(())
    for first in range(len(group)):
        for second in range(first + 1, len(group)):
            both = labels.valid_first[first] & labels.valid_first[second]
            if group[first][0] != group[second][0] or not bool(both.any()):
                continue
            points = [output.points_first[row][both] for row in (first, second)]
            units = [points_of.norm(dim=-1).mean().clamp_min(1e-8) for points_of in points]
            difference = points[0] / units[0] - points[1] / units[1]
            total = total + (difference.square().sum(dim=-1) + 1e-12).sqrt().mean()
    return total


def _row_of_output(output: PairOutput, row: int) -> PairOutput:
    return PairOutput(
        points_first=output.points_first[row : row + 1],
        points_second=output.points_second[row : row + 1],
        confidence_first=output.confidence_first[row : row + 1],
        confidence_second=output.confidence_second[row : row + 1],
    )


def _row_of_labels(labels: LabelBatch, row: int) -> LabelBatch:
    return LabelBatch(
        points_first=labels.points_first[row : row + 1],
        points_second=labels.points_second[row : row + 1],
        valid_first=labels.valid_first[row : row + 1],
        valid_second=labels.valid_second[row : row + 1],
    )
