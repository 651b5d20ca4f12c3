"""What steps consist of, and that their objective does not depend on how the work is arranged."""

import dataclasses

import pytest
import torch
from adapter_samples import relative_difference
from lesson_samples import SHAPE, TINY, TINY_DPT, TWO_SHAPES, random_lessons, tiny_network, without_labels
from torch import Tensor

from lora3d_ns.adapter import lessons as lessons_module
from lora3d_ns.adapter.lessons import Edge, Lessons, split_pairs, steps_of_epoch, triplet_disagreement
from lora3d_ns.adapter.lora import LoraSettings, adapted, trainable_parameters
from lora3d_ns.adapter.loss import LabelBatch, label_loss, mean_label_error
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.network.base import PairOutput
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.pseudo_labels import label_points
from lora3d_ns.types import PairGraph, PseudoLabels, Views

CPU = torch.device("cpu")
ALPHA = 0.2


def unordered(edges) -> set[Edge]:
    return {(min(edge), max(edge)) for edge in edges}


# --- which pairs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_held_out_pairs_are_held_out_in_both_orders(share: float) -> None:
    graph = build_pair_graph(CompleteGraph(), 6)
    learning, held_out = split_pairs(graph, share, 3)
    assert sorted(learning + held_out) == list(graph.edges)
    assert not unordered(learning) & unordered(held_out)
    assert len(held_out) == 2 * len(unordered(held_out)) == 2 * max(1, round(share * 15))
    # In the graph's order, which the seed of the steps relies on.
    assert list(learning) == sorted(learning)


def test_the_split_depends_on_the_seed_alone() -> None:
    graph = build_pair_graph(CompleteGraph(), 6)
    splits = [split_pairs(graph, 0.2, seed) for seed in range(8)]
    assert splits == [split_pairs(graph, 0.2, seed) for seed in range(8)]
    assert len({held_out for _, held_out in splits}) > 4


def test_one_pair_is_always_left_to_learn_and_none_held_out_unless_asked() -> None:
    two = build_pair_graph(CompleteGraph(), 2)
    assert split_pairs(two, 0.5, 0) == (two.edges, ())
    three = build_pair_graph(CompleteGraph(), 3)
    assert split_pairs(three, 0.0, 0) == (three.edges, ())
    assert len(split_pairs(three, 0.01, 0)[1]) == 2
    one_way = PairGraph(view_count=3, edges=((0, 1), (2, 1)))
    learning, held_out = split_pairs(one_way, 0.5, 0)
    assert len(learning) == len(held_out) == 1
    assert split_pairs(PairGraph(view_count=3, edges=()), 0.3, 0) == ((), ())


@pytest.mark.parametrize("share", [-0.1, 0.51, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(SettingsError):
        split_pairs(build_pair_graph(CompleteGraph(), 3), share, 0)


@pytest.mark.parametrize("both_orders", [True, False])
@pytest.mark.parametrize("pairs_per_step", [1, 2, 3, 4, 5, 6, 100])
def test_an_epoch_has_every_edge_once_in_steps_of_the_size_asked_for(pairs_per_step: int, both_orders: bool) -> None:
    edges = build_pair_graph(CompleteGraph(), 5).edges
    steps = steps_of_epoch(edges, pairs_per_step, both_orders=both_orders, seed=0)
    assert sorted(edge for step in steps for edge in step) == list(edges)
    # Both orders of a pair are one step at least.
    most = max(2, pairs_per_step - pairs_per_step % 2) if both_orders else pairs_per_step
    assert all(len(step) == most for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= most
    if both_orders:
        assert all(len(step) == 2 * len(unordered(step)) for step in steps)


def test_pairs_of_one_order_only_are_not_lost() -> None:
    edges = ((0, 1), (0, 2), (1, 0), (2, 3))
    steps = steps_of_epoch(edges, 2, both_orders=True, seed=1)
    assert sorted(edge for step in steps for edge in step) == list(edges)
    assert all(len(step) <= 2 for step in steps)
    assert [(0, 1), (1, 0)] in [sorted(step) for step in steps]
    assert steps_of_epoch((), 2, both_orders=True, seed=1) == []


def test_each_epoch_has_an_order_of_its_own_and_the_same_one_again() -> None:
    edges = build_pair_graph(CompleteGraph(), 5).edges
    orders = [steps_of_epoch(edges, 4, both_orders=True, seed=seed) for seed in range(5)]
    assert orders == [steps_of_epoch(edges, 4, both_orders=True, seed=seed) for seed in range(5)]
    assert len({str(order) for order in orders}) == 5


# --- the objective --------------------------------------------------------------------------------


def naive_pair(network: Dust3r, views: Views, labels: PseudoLabels, edge: Edge) -> tuple[PairOutput, LabelBatch]:
    """One pair by itself."""
    k = labels.graph.edges.index(edge)
    first, second = label_points(labels, edge)
    output = network(views.images[edge[0]][None], views.images[edge[1]][None])
    batch = LabelBatch(
        points_first=first[None],
        points_second=second[None],
        valid_first=labels.valid_first[k][None],
        valid_second=labels.valid_second[k][None],
    )
    return output, batch


def naive_objective(network: Dust3r, views: Views, labels: PseudoLabels, edges) -> Tensor:
    losses = [label_loss(*naive_pair(network, views, labels, edge), confidence_alpha=ALPHA) for edge in edges]
    return torch.stack(losses).mean()


def learner(config=TINY) -> Dust3r:
    """A network with matrices to learn, neither of which is zero."""
    network = adapted(tiny_network(config), LoraSettings(rank=2, alpha=2.0), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable_parameters(network):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def gradient(network: Dust3r, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, trainable_parameters(network))])


def close(ours: Tensor, theirs: Tensor) -> None:
    """Batches of another size are multiplied in another order; the worst seen is 1e-6 of the largest value."""
    assert relative_difference(ours.detach(), theirs.detach()) < 1e-5


@pytest.mark.parametrize("share_encodings", [True, False])
@pytest.mark.parametrize("shapes", [(SHAPE,), TWO_SHAPES], ids=["one shape", "two shapes"])
@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY_DPT, patch_size=8)], ids=["linear", "dpt"])
def test_the_objective_and_its_gradient_are_those_of_a_loop_over_the_pairs(config, shapes, share_encodings) -> None:
    views, labels = random_lessons(4, shapes)
    # A pair with next to no labels counts as much as the others.
    labels = dataclasses.replace(
        labels, valid_first=(labels.valid_first[0] & (torch.arange(shapes[0][1]) < 3), *labels.valid_first[1:])
    )
    network = learner(config)
    lessons = Lessons(views, labels, CPU, confidence_alpha=ALPHA)
    edges = [(0, 1), (1, 0), (2, 0), (1, 3), (0, 2)]
    ours = lessons.objective(network, edges, share_encodings=share_encodings)
    theirs = naive_objective(network, views, labels, edges)
    close(ours, theirs)
    close(gradient(network, ours), gradient(network, theirs))


def naive_disagreement(network: Dust3r, views: Views, labels: PseudoLabels, edges) -> Tensor:
    """Sum over all two pairs with the same first photo, one pixel mask and one norm at a time."""
    total = torch.zeros(())
    for index, (i, j) in enumerate(edges):
        for other, k in edges[index + 1 :]:
            if other != i:
                continue
            (output, batch), (second, second_batch) = (
                naive_pair(network, views, labels, edge) for edge in ((i, j), (i, k))
            )
            both = batch.valid_first[0] & second_batch.valid_first[0]
            points, others = output.points_first[0][both], second.points_first[0][both]
            difference = points / points.norm(dim=1).mean() - others / others.norm(dim=1).mean()
            total = total + difference.norm(dim=1).mean()
    return total


@pytest.mark.parametrize("shapes", [(SHAPE,), TWO_SHAPES], ids=["one shape", "two shapes"])
def test_pairs_that_share_their_first_photo_are_drawn_together(shapes) -> None:
    views, labels = random_lessons(4, shapes)
    network = learner()
    # With two shapes, only pairs of the same two shapes are compared: here (0, 1) with (0, 3).
    edges = [(0, 1), (0, 3), (1, 0), (2, 3)]
    plain, drawn = (
        Lessons(views, labels, CPU, confidence_alpha=ALPHA, triplet_weight=weight).objective(
            network, edges, share_encodings=True
        )
        for weight in (0.0, 0.3)
    )
    naive = naive_disagreement(network, views, labels, edges)
    assert naive > 0.01
    close(drawn - plain, 0.3 * naive / len(edges))


def test_of_three_pairs_that_share_a_photo_every_two_are_compared_and_the_gradient_is_that_of_the_loop() -> None:
    views, labels = random_lessons(4)
    network = learner()
    edges = [(0, 1), (0, 2), (0, 3)]
    by_two = [naive_disagreement(network, views, labels, two) for two in (edges[:2], edges[1:], edges[::2])]
    assert min(by_two) > 0.01
    drawn, plain = (
        Lessons(views, labels, CPU, confidence_alpha=ALPHA, triplet_weight=weight).objective(
            network, edges, share_encodings=True
        )
        for weight in (2.0, 0.0)
    )
    close(drawn - plain, 2.0 * torch.stack(by_two).sum() / 3)
    naive = naive_objective(network, views, labels, edges) + 2.0 * torch.stack(by_two).sum() / 3
    close(gradient(network, drawn), gradient(network, naive))


def test_only_pairs_of_the_same_part_of_a_step_are_compared() -> None:
    lessons = Lessons(*random_lessons(3), CPU, confidence_alpha=ALPHA, triplet_weight=1.0)
    network = learner()
    plain = Lessons(*random_lessons(3), CPU, confidence_alpha=ALPHA)
    apart = [lessons.objective(network, [edge], share_encodings=True) for edge in ((0, 1), (0, 2))]
    close(torch.stack(apart).mean(), plain.objective(network, [(0, 1), (0, 2)], share_encodings=True))


def test_without_a_triplet_weight_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    views, labels = random_lessons(3)
    network, edges = learner(), [(0, 1), (0, 2)]
    given = Lessons(views, labels, CPU, confidence_alpha=ALPHA, triplet_weight=0.0)
    expected = given.objective(network, edges, share_encodings=True)

    def never(*_: object) -> Tensor:
        raise AssertionError("compared")

    monkeypatch.setattr(lessons_module, "triplet_disagreement", never)
    usual = Lessons(views, labels, CPU, confidence_alpha=ALPHA)
    assert torch.equal(usual.objective(network, edges, share_encodings=True), expected)
    with pytest.raises(AssertionError, match="compared"):
        Lessons(views, labels, CPU, confidence_alpha=ALPHA, triplet_weight=1e-9).objective(
            network, edges, share_encodings=True
        )


def test_pairs_that_agree_already_have_a_gradient() -> None:
    _, batch = naive_pair(learner(), *random_lessons(3), (0, 1))
    twice = LabelBatch(
        **{field.name: torch.cat([getattr(batch, field.name)] * 2) for field in dataclasses.fields(LabelBatch)}
    )
    points = twice.points_first.clone().requires_grad_()
    output = PairOutput(
        points_first=points,
        points_second=twice.points_second,
        confidence_first=torch.ones(points.shape[:-1]),
        confidence_second=torch.ones(twice.points_second.shape[:-1]),
    )
    found = triplet_disagreement([(0, 1), (0, 2)], output, twice)
    # The square root of what keeps its derivative finite.
    assert found.item() == pytest.approx(1e-6, rel=1e-3)
    assert bool(torch.isfinite(torch.autograd.grad(found, points)[0]).all())


def test_what_a_photo_is_paired_with_may_have_any_unit_and_photos_apart_have_nothing_to_agree_on() -> None:
    views, labels = random_lessons(3)
    pairs = [naive_pair(learner(), views, labels, edge) for edge in ((0, 1), (0, 2))]
    names = ("points_first", "points_second", "confidence_first", "confidence_second")
    output = PairOutput(**{name: torch.cat([getattr(pair[0], name) for pair in pairs]) for name in names})
    batch = LabelBatch(
        **{
            field.name: torch.cat([getattr(pair[1], field.name) for pair in pairs])
            for field in dataclasses.fields(LabelBatch)
        }
    )
    found = triplet_disagreement([(0, 1), (0, 2)], output, batch)
    scaled = dataclasses.replace(
        output, points_first=output.points_first * torch.tensor([3.0, 0.5])[:, None, None, None]
    )
    close(triplet_disagreement([(0, 1), (0, 2)], scaled, batch), found)
    assert found > 0.01
    assert triplet_disagreement([(0, 1), (2, 1)], output, batch) == 0.0
    apart = batch.valid_first.clone()
    apart[1] = ~apart[0]
    assert triplet_disagreement([(0, 1), (0, 2)], output, dataclasses.replace(batch, valid_first=apart)) == 0.0


def test_parts_of_a_step_add_up_to_it() -> None:
    views, labels = random_lessons(4, TWO_SHAPES)
    network = learner()
    lessons = Lessons(views, labels, CPU, confidence_alpha=ALPHA)
    edges = list(labels.graph.edges)
    parts = [edges[:5], edges[5:6], edges[6:]]
    whole = lessons.objective(network, edges, share_encodings=True)
    added = sum(lessons.objective(network, part, share_encodings=True) * (len(part) / len(edges)) for part in parts)
    assert isinstance(added, Tensor)
    close(added, whole)
    close(gradient(network, added), gradient(network, whole))


@pytest.mark.parametrize("shapes", [(SHAPE,), TWO_SHAPES], ids=["one shape", "two shapes"])
def test_errors_are_in_the_order_of_the_pairs(shapes) -> None:
    views, labels = random_lessons(4, shapes)
    network = tiny_network()
    lessons = Lessons(views, labels, CPU, confidence_alpha=ALPHA)
    edges = [(3, 0), (0, 1), (2, 0), (1, 2), (1, 3)]
    with torch.no_grad():
        ours = lessons.errors(network, edges)
        theirs = torch.cat([mean_label_error(*naive_pair(network, views, labels, edge)) for edge in edges])
    close(ours, theirs)
    # So a wrong order would show.
    assert float((theirs[:, None] - theirs).abs().fill_diagonal_(1.0).min()) > 1e-3


def test_labels_are_not_rounded_in_mixed_precision() -> None:
    views, labels = random_lessons(3)
    edges = list(labels.graph.edges)
    network = _Answering(labels, edges)
    lessons = Lessons(views, labels, CPU, confidence_alpha=ALPHA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = lessons.errors(network, edges)
    # With labels in bfloat16 it would be 2e-3.
    assert float(errors.max()) < 1e-5


class _Answering(Dust3r):
    """A network that says exactly the labels of these edges, whatever it is shown."""

    def __init__(self, labels: PseudoLabels, edges: list[Edge]) -> None:
        super().__init__(TINY)
        self.points = [label_points(labels, edge) for edge in edges]

    def decode(self, first, second) -> PairOutput:
        del first, second
        together = [torch.stack([of_pair[end] for of_pair in self.points]) for end in (0, 1)]
        return PairOutput(
            points_first=together[0],
            points_second=together[1],
            confidence_first=torch.zeros(together[0].shape[:-1]),
            confidence_second=torch.zeros(together[1].shape[:-1]),
        )


def test_each_image_of_a_step_is_encoded_once_if_encodings_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    views, labels = random_lessons(4)
    network = learner()
    lessons = Lessons(views, labels, CPU, confidence_alpha=ALPHA)
    encoded = []
    encode = Dust3r.encode
    monkeypatch.setattr(Dust3r, "encode", lambda self, images: (encoded.append(len(images)), encode(self, images))[1])
    edges = [(0, 1), (1, 0), (0, 2), (2, 0)]
    lessons.objective(network, edges, share_encodings=True)
    assert sum(encoded) == 3
    encoded.clear()
    lessons.objective(network, edges, share_encodings=False)
    assert sum(encoded) == 8


def test_pairs_without_a_label_are_known() -> None:
    views, labels = random_lessons(3)
    lessons = Lessons(views, without_labels(labels, [(0, 1), (2, 0)]), CPU, confidence_alpha=ALPHA)
    assert lessons.with_labels(labels.graph.edges) == [(0, 2), (1, 0), (1, 2), (2, 1)]
    nothing = dataclasses.replace(labels, graph=PairGraph(view_count=3, edges=()), valid_first=(), valid_second=())
    assert Lessons(views, nothing, CPU, confidence_alpha=ALPHA).with_labels([]) == []


def test_labels_of_other_photos_are_refused() -> None:
    views, labels = random_lessons(4, TWO_SHAPES)
    for others in (views.select([0, 1, 2]), views.select([1, 0, 3, 2])):
        with pytest.raises(InvalidDataError, match="not of these photos"):
            Lessons(others, labels, CPU, confidence_alpha=ALPHA)
