"""The paper's solver, as the reference: Adam on every unknown at once, depths included.

LoRA3D (arXiv 2412.07746) minimises Eq. 7 by several hundred steps of Adam in which the weights are held, and puts them
to their best values (Eq. 8) every ten steps. It needs many passes where `solve` needs few; it is kept to be compared
with, and because it is obvious.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from lora3d_ns.alignment.normal_equations import pass_over_view
from lora3d_ns.alignment.objective import calibrated_weight, gauge_scale, robust_loss
from lora3d_ns.alignment.observations import ObservationGrid
from lora3d_ns.alignment.solve import ExtraTerm, Solution, SolverSettings
from lora3d_ns.alignment.state import PER_VIEW, SIMILARITY, AlignmentState, Freedom, rotation_from_vector
from lora3d_ns.errors import SettingsError
from lora3d_ns.types import Sim3

_STEPS = 300
_LEARNING_RATE, _LAST_LEARNING_RATE = 0.01, 1e-6
_WEIGHTS_EVERY = 10


def minimise_with_adam(
    grid: ObservationGrid,
    state: AlignmentState,
    freedom: Freedom,
    settings: SolverSettings,
    *,
    mu: float | None,
    unit: float,
    distances: Sequence[Float32[Tensor, " _"]] | None = None,
    extra: Sequence[ExtraTerm] = (),
    on_step: Callable[[AlignmentState, float], None] = lambda _state, _objective: None,
) -> Solution:
    """The same as `solve.minimise`, by 300 steps of Adam with a cosine schedule from 1e-2 to 1e-6.

    The history holds the objective before the first and after every step; it may rise.

    Raises:
        SettingsError: There are further terms, which this solver does not know.
    """
    if extra:
        raise SettingsError(
            "the solver adam knows point maps only", way_out="Use solver fast, or matches off and known poses fixed"
        )
    begun = time.perf_counter()
    blocks = list(grid)
    scale = 1.0 if freedom.scale_is_gauge else freedom.gauge(state)
    if distances is None:
        distances = [
            pass_over_view(
                block,
                state,
                None,
                mu=None if mu is None else mu * unit * scale,
                smoothing=settings.smoothing * unit * scale,
            ).distances
            for block in blocks
        ]
    logs = [distance.log().requires_grad_() for distance in distances]
    free = torch.zeros(freedom.count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([free, *logs], lr=_LEARNING_RATE, betas=(0.9, 0.9))
    weights: list[Tensor] = []
    history, seconds = [], []
    for step in range(_STEPS + 1):
        rate = 0.5 * (1.0 + math.cos(math.pi * step / _STEPS))
        for group in optimizer.param_groups:
            group["lr"] = _LAST_LEARNING_RATE + (_LEARNING_RATE - _LAST_LEARNING_RATE) * rate
        now = _stepped(state, free, freedom, unit * scale)
        size = torch.ones(()) if freedom.scale_is_gauge else gauge_scale(now.world_from_edge.scale[freedom.edges])
        width = None if mu is None else mu * unit * float(size)
        lengths = [
            _distances(block, now, log, settings.smoothing * unit * scale)
            for block, log in zip(blocks, logs, strict=True)
        ]
        losses = [
            robust_loss(block.confidence, length.detach(), width).sum(dtype=torch.float64)
            for block, length in zip(blocks, lengths, strict=True)
        ]
        history.append(float(torch.stack(losses).sum() / size.detach()) / grid.observation_count)
        seconds.append(time.perf_counter() - begun)
        if step > 0:
            on_step(_detached(now), history[-1])
        if step == _STEPS:
            break
        if step % _WEIGHTS_EVERY == 0:
            weights = [
                calibrated_weight(block.confidence, length.detach(), width)
                for block, length in zip(blocks, lengths, strict=True)
            ]
        loss = torch.stack([(w * length).sum() for w, length in zip(weights, lengths, strict=True)]).sum() / size
        optimizer.zero_grad()
        (loss / grid.observation_count).backward()
        optimizer.step()
    final = _detached(_stepped(state, free, freedom, unit * scale))
    return Solution(
        state=final,
        distances=tuple(log.detach().exp() for log in logs),
        objective=history[-1],
        history=tuple(history),
        seconds=tuple(seconds),
        converged=abs(history[-1] - history[-_WEIGHTS_EVERY - 1]) < settings.tolerance * _WEIGHTS_EVERY * history[-1],
    )


def _stepped(state: AlignmentState, free: Tensor, freedom: Freedom, length: float) -> AlignmentState:
    """`AlignmentState.stepped` about each camera and each edge's own origin, which Adam's equal steps suit better."""
    step = torch.cat([free, free.new_zeros(1)])[freedom.index]
    views = len(state.T_world_camera)
    of_views = step[: views * PER_VIEW].view(views, PER_VIEW)
    of_edges = step[views * PER_VIEW :].view(-1, SIMILARITY)
    log_scale = of_edges[:, 6]
    if freedom.scale_is_gauge:
        taking_part = torch.zeros_like(log_scale).index_fill(0, freedom.edges, 1.0)
        log_scale = log_scale - taking_part * log_scale[freedom.edges].mean()
    R = rotation_from_vector(of_views[:, :3]) @ state.T_world_camera[:, :3, :3]
    t = state.T_world_camera[:, :3, 3] + length * of_views[:, 3:6]
    last = state.T_world_camera[:, 3:]
    edge = state.world_from_edge
    return AlignmentState(
        T_world_camera=torch.cat([torch.cat([R, t[..., None]], dim=2), last], dim=1),
        focal_px=state.focal_px * of_views[:, 6:7].exp(),
        principal_point_px=state.principal_point_px + of_views[:, 7:9],
        world_from_edge=Sim3(
            scale=edge.scale * log_scale.exp(),
            rotation=rotation_from_vector(of_edges[:, :3]) @ edge.rotation,
            translation=edge.translation + length * of_edges[:, 3:6],
        ),
    )


def _distances(block, state: AlignmentState, log: Tensor, smoothing: float) -> Tensor:
    view, at, device = block.view, block.edges.cpu(), block.points.device
    R, c = state.T_world_camera[view, :3, :3], state.T_world_camera[view, :3, 3]
    edge = state.world_from_edge
    A = (R.mT @ (edge.scale[at, None, None] * edge.rotation[at])).float().to(device)
    b = ((edge.translation[at] - c) @ R).float().to(device)
    centre, focal = (values[view, :, None].float().to(device) for values in (state.principal_point_px, state.focal_px))
    slopes = (block.pixels - centre) / focal
    rays = torch.cat([slopes, torch.ones_like(slopes[:1])])
    x = log.exp() * rays / rays.norm(dim=0)
    e = torch.baddbmm(b[:, :, None], A, block.points) - x
    return (e.square().sum(dim=1) + smoothing**2).sqrt()


def _detached(state: AlignmentState) -> AlignmentState:
    edge = state.world_from_edge
    return AlignmentState(
        T_world_camera=state.T_world_camera.detach(),
        focal_px=state.focal_px.detach(),
        principal_point_px=state.principal_point_px.detach(),
        world_from_edge=Sim3(
            scale=edge.scale.detach(), rotation=edge.rotation.detach(), translation=edge.translation.detach()
        ),
    )
