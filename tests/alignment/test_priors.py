"""Further terms of the objective: their values by hand, and their gradients against differences."""

import math

import pytest
import torch
from aligned_rooms import OFF
from alignment_samples import generic_problem, random_similarity
from torch import Tensor

from lora3d_ns.alignment.known import KnownPoses
from lora3d_ns.alignment.priors import edge_scale_spring, focal_prior, pose_prior
from lora3d_ns.alignment.solve import ExtraTerm
from lora3d_ns.alignment.state import PER_VIEW, SIMILARITY, AlignmentState, rotation_from_vector


def _expect_gradient(term: ExtraTerm, state: AlignmentState) -> None:
    """The block's g against central differences of the term's value, and H positive semi-definite."""
    views, edges = len(state.T_world_camera), len(state.world_from_edge.scale)
    count = views * PER_VIEW + edges * SIMILARITY
    _, block = term(state, True)
    assert block is not None
    g = torch.zeros(count, dtype=torch.float64).index_add_(0, block.index, block.g)
    centre = state.T_world_camera[:, :3, 3].mean(dim=0)

    def value(step: Tensor) -> float:
        return term(state.stepped(step, centre), False)[0]

    for number in range(count):
        step = torch.zeros(count, dtype=torch.float64)
        step[number] = 1e-5
        measured = (value(step) - value(-step)) / 2e-5
        assert float(g[number]) == pytest.approx(measured, abs=2e-3 * float(g.abs().max()) + 1e-12)
    assert float(torch.linalg.eigvalsh(block.H).min()) > -1e-9 * float(block.H.diagonal().max())


def test_a_focal_length_off_by_65_percent_costs_one_percent() -> None:
    state = generic_problem().state
    longer = AlignmentState(
        T_world_camera=state.T_world_camera,
        focal_px=state.focal_px * math.exp(0.5),
        principal_point_px=state.principal_point_px,
        world_from_edge=state.world_from_edge,
    )
    term = focal_prior(state.focal_px, [0, 1, 2], 3.0)
    assert term(state, False)[0] == 0.0
    assert term(longer, False)[0] == pytest.approx(0.01 * 3.0)
    _expect_gradient(term, longer)


def test_focal_lengths_that_are_known_have_no_spring() -> None:
    state = generic_problem().state
    _, block = focal_prior(state.focal_px, [2], 1.0)(state, True)
    assert block is not None
    assert block.index.tolist() == [2 * PER_VIEW + 6]


def test_the_spring_of_edge_scales_leaves_their_mean_alone() -> None:
    state = generic_problem().state
    edges = list(range(len(state.world_from_edge.scale)))
    before = state.world_from_edge.scale
    assert edge_scale_spring(3.0 * before, edges, 2.0)(state, False)[0] == pytest.approx(0.0, abs=1e-12)
    other = before.clone()
    other[1] *= math.e
    # One log of six is off by one: sum of squares about the mean is 1 - 1/6.
    value, _ = edge_scale_spring(other, edges, 2.0)(state, False)
    assert value == pytest.approx(2.0 / (2 * 6) * (1.0 - 1.0 / 6.0))
    generator = torch.Generator().manual_seed(1)
    _expect_gradient(edge_scale_spring(random_similarity(6, generator).scale, edges, 2.0), state)
    _expect_gradient(edge_scale_spring(other, [0, 1, 4], 2.0), state)


def test_a_pose_off_by_one_prior_costs_half_its_weight() -> None:
    state = generic_problem().state
    T = state.T_world_camera[1].clone()
    moved = T.clone()
    moved[0, 3] += OFF.pose_prior_share * 4.0
    poses = KnownPoses(T_world_camera={1: moved}, fix_scale=False)
    assert pose_prior(poses, OFF, unit=4.0, weight=3.0)(state, False)[0] == pytest.approx(1.5)
    turned = T.clone()
    angle = torch.tensor([0.0, 0.0, math.radians(OFF.pose_prior_deg)], dtype=torch.float64)
    turned[:3, :3] = rotation_from_vector(angle) @ T[:3, :3]
    poses = KnownPoses(T_world_camera={1: turned}, fix_scale=False)
    assert pose_prior(poses, OFF, unit=4.0, weight=3.0)(state, False)[0] == pytest.approx(1.5, rel=1e-3)


def test_the_gradient_of_known_poses() -> None:
    state = generic_problem().state
    poses = {}
    for view in (0, 2):
        T = state.T_world_camera[view].clone()
        # Small turns: the term measures their sine.
        w = torch.tensor([0.004, -0.007, 0.003], dtype=torch.float64)
        T[:3, :3] = rotation_from_vector(w) @ T[:3, :3]
        T[:3, 3] += torch.tensor([0.1, 0.0, -0.2], dtype=torch.float64)
        poses[view] = T
    _expect_gradient(pose_prior(KnownPoses(T_world_camera=poses, fix_scale=True), OFF, unit=2.0, weight=0.5), state)
