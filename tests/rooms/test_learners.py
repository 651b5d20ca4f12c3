"""Other ways to learn: they learn, leave the network alone, and are what they say."""

import copy

import pytest
import torch
from adapter.lesson_samples import SHAPE, TWO_SHAPES, random_lessons, tiny_network

from lora3d_ns.adapter.adapter import target_layers
from lora3d_ns.adapter.finetune import FineTuneSettings
from lora3d_ns.adapter.lessons import Lessons
from lora3d_ns.adapter.lora import LoraSettings
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pseudo_labels import label_points
from lora3d_ns.rooms.learners import (
    NormPreservingChange,
    joined,
    learnt_norm_preserving,
    learnt_with_all_weights,
)

SETTINGS = FineTuneSettings(
    lora=LoraSettings(rank=2, alpha=8.0), epochs=4, pairs_per_step=4, learning_rate=1e-2, show_progress=False
)


def mean_error(network: Dust3r, lessons) -> float:
    views, labels = lessons
    with torch.no_grad():
        found = Lessons(views, labels, torch.device("cpu"), confidence_alpha=0.2).errors(network, labels.graph.edges)
    return float(found.mean())


def test_a_norm_preserving_change_begins_as_none_and_keeps_the_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, generator=generator)
    change = NormPreservingChange(weight, LoraSettings(rank=3, alpha=6.0), generator)
    torch.testing.assert_close(change(weight), weight)
    with torch.no_grad():
        change.b.copy_(torch.randn(12, 3, generator=generator))
    changed = change(weight).detach()
    assert float((changed - weight).norm()) > 0.1
    torch.testing.assert_close(changed.norm(), weight.norm())
    # 2 = alpha / rank.
    plain = (weight + 2.0 * change.b @ change.a).detach()
    torch.testing.assert_close(changed, plain * (weight.norm() / plain.norm()))


@pytest.mark.parametrize("learn", [learnt_with_all_weights, learnt_norm_preserving])
def test_they_learn_and_leave_the_network_alone(learn) -> None:
    network, lessons = tiny_network(), random_lessons(4)
    before = copy.deepcopy(network.state_dict())
    learnt, parameters = learn(network, *lessons, SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert mean_error(learnt, lessons) < 0.98 * mean_error(network, lessons)
    assert not any(parameter.requires_grad for parameter in learnt.parameters())
    total = sum(parameter.numel() for parameter in network.parameters())
    if learn is learnt_with_all_weights:
        assert parameters == total
    else:
        # Rank 2 on qkv of one encoder and four decoder blocks, and on three projections of these four; 32 wide.
        assert parameters == 2 * (5 * (32 + 96) + 4 * 3 * (32 + 32))


def test_what_learnt_norm_preserving_has_other_layers_of_the_same_norms() -> None:
    network = tiny_network()
    learnt, _ = learnt_norm_preserving(network, *random_lessons(4), SETTINGS)
    changed = target_layers(learnt, SETTINGS.lora.targets)
    layers = target_layers(network, SETTINGS.lora.targets)
    assert list(changed) == list(layers)
    for name, layer in layers.items():
        ours, theirs = changed[name].weight.detach(), layer.weight.detach()
        assert float((ours - theirs).norm()) > 1e-3 * float(theirs.norm()), name
        torch.testing.assert_close(ours.norm(), theirs.norm())
    # And nothing else has learnt anything.
    targets = tuple(layers)
    before = dict(network.named_parameters())
    for name, parameter in learnt.named_parameters():
        if not name.startswith(targets):
            assert torch.equal(parameter, before[name]), name


def test_joined_scenes_keep_their_pairs_and_labels() -> None:
    scenes = [random_lessons(3, (SHAPE,), seed=0), random_lessons(4, TWO_SHAPES, seed=1)]
    views, labels = joined(scenes)
    assert len(views) == 7
    assert len(set(views.names)) == 7
    assert len(labels.graph) == 6 + 12
    begin = 0
    for some_views, some_labels in scenes:
        for k, (i, j) in enumerate(some_labels.graph.edges):
            edge = (i + begin, j + begin)
            index = labels.graph.edges.index(edge)
            for ours, theirs in zip(label_points(labels, edge), label_points(some_labels, (i, j)), strict=True):
                torch.testing.assert_close(ours, theirs)
            assert torch.equal(labels.valid_first[index], some_labels.valid_first[k])
            assert torch.equal(labels.valid_second[index], some_labels.valid_second[k])
            assert torch.equal(views.images[edge[0]], some_views.images[i])
        begin += len(some_views)


def test_no_scene_is_no_lesson() -> None:
    with pytest.raises(InvalidDataError):
        joined([])
