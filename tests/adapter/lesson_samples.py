"""Small scenes to learn from: labels that a known network gives, and random ones."""

import dataclasses
from collections.abc import Sequence

import torch
from view_samples import make_views

from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.types import PseudoLabels, Views

TINY = Dust3rConfig(
    patch_size=8,
    encoder_width=32,
    encoder_depth=1,
    encoder_heads=2,
    decoder_width=32,
    decoder_depth=2,
    decoder_heads=2,
    head="linear",
)
TINY_DPT = dataclasses.replace(
    TINY, patch_size=16, decoder_depth=4, head="dpt", dpt_channels=(8, 8, 8, 8), dpt_features=8
)
SHAPE = (16, 24)
TWO_SHAPES = ((16, 24), (24, 16))


def tiny_network(config: Dust3rConfig = TINY, seed: int = 0) -> Dust3r:
    """Random weights, the same for the same seed; torch's global random numbers are as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dust3r(config).eval()


def random_lessons(
    count: int = 4, shapes: Sequence[tuple[int, int]] = (SHAPE,), *, seed: int = 0, labelled: float = 0.7
) -> tuple[Views, PseudoLabels]:
    """Random photos, with labels of smooth random depths seen from a few places; of each pair another random share."""
    views = make_views([shapes[view % len(shapes)] for view in range(count)], seed=seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    graph = build_pair_graph(CompleteGraph(), count)
    T = torch.eye(4).repeat(count, 1, 1)
    for view in range(count):
        turn = 0.2 * torch.randn(3, 3, generator=generator)
        T[view, :3, :3] = torch.linalg.matrix_exp(turn - turn.mT)
        T[view, :3, 3] = 0.3 * torch.randn(3, generator=generator)
    depths = []
    for height, width in views.shapes:
        coarse = 2.0 + torch.rand(1, 1, 3, 3, generator=generator)
        depths.append(torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0, 0])
    K = torch.stack(
        [
            torch.tensor([[20.0, 0.0, width / 2], [0.0, 20.0, height / 2], [0.0, 0.0, 1.0]])
            for height, width in views.shapes
        ]
    )
    valid = [
        tuple(torch.rand(views.shapes[edge[end]], generator=generator) < labelled for edge in graph.edges)
        for end in (0, 1)
    ]
    labels = PseudoLabels(
        graph=graph,
        T_world_camera=T,
        K_network=K,
        depths=tuple(depths),
        valid_first=valid[0],
        valid_second=valid[1],
        cutoff=1.0,
        coverage=torch.ones(count),
    )
    return views, labels


def without_labels(labels: PseudoLabels, edges: Sequence[tuple[int, int]]) -> PseudoLabels:
    """The same with no label in these pairs."""
    gone = [edge in edges for edge in labels.graph.edges]
    return dataclasses.replace(
        labels,
        valid_first=tuple(mask & ~torch.tensor(no) for mask, no in zip(labels.valid_first, gone, strict=True)),
        valid_second=tuple(mask & ~torch.tensor(no) for mask, no in zip(labels.valid_second, gone, strict=True)),
    )
