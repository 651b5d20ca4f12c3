"""The damped Gauss-Newton step from the blocks of its equations."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.alignment.normal_equations import Block
from lora3d_ns.alignment.state import PER_VIEW, SIMILARITY, Freedom

_DENSE_LIMIT = 1200
"""Free numbers up to which a dense factorisation is faster than conjugate gradients (2 cores: about 0.1 s there)."""
_LEAST_SHARE = 0.05
_CG_ITERATIONS = 80
_CG_TOLERANCE = 1e-4


def damped_step(
    blocks: Sequence[Block], freedom: Freedom, *, damping: float, view_count: int
) -> Float64[Tensor, " numbers"]:
    """`(H + damping diag(H)) step = -g` over the free numbers, zero for the fixed ones.

    Where the scale is a gauge, the steps of all log sigma_e sum to zero. Small systems are factorised; large ones,
    whose blocks couple only the edges of one view, are solved by conjugate gradients at a cost linear in the blocks.
    """
    rows = [freedom.index[block.index] for block in blocks]
    g = _gather([(row, block.g) for row, block in zip(rows, blocks, strict=True)], freedom.count)
    diagonal = _gather(
        [(row, block.H.diagonal().contiguous()) for row, block in zip(rows, blocks, strict=True)], freedom.count
    )
    first_edge = view_count * PER_VIEW
    edges = freedom.index[first_edge:].view(-1, SIMILARITY)[freedom.edges]
    diagonal = _floored(diagonal, edges)
    scales = freedom.index[first_edge + SIMILARITY - 1 :: SIMILARITY]
    held = scales[scales >= 0] if freedom.scale_is_gauge else None
    if freedom.count <= _DENSE_LIMIT:
        step = _factorised(blocks, rows, g, damping * diagonal, held)
    else:
        step = _conjugate_gradients(blocks, rows, g, damping * diagonal, diagonal, freedom, edges, held)
    padded = torch.cat([step, step.new_zeros(1)])
    return padded[freedom.index]


def _floored(diagonal: Tensor, edges: Tensor) -> Tensor:
    """The curvatures, none below a share of what is usual: an edge with hardly a point counted shall not run away."""
    floored = diagonal.clamp(min=1e-9 * float(diagonal.max().clamp(min=1e-300)))
    floored[edges] = torch.maximum(floored[edges], _LEAST_SHARE * diagonal[edges].mean(dim=0))
    return floored


def _gather(parts: Sequence[tuple[Tensor, Tensor]], count: int) -> Tensor:
    total = torch.zeros(count + 1, dtype=torch.float64)
    for row, values in parts:
        total.index_add_(0, torch.where(row < 0, count, row), values)
    return total[:count]


def _without_mean(values: Tensor, held: Tensor | None) -> Tensor:
    if held is None:
        return values
    values = values.clone()
    values[held] -= values[held].mean()
    return values


def _factorised(
    blocks: Sequence[Block], rows: Sequence[Tensor], g: Tensor, damping: Tensor, held: Tensor | None
) -> Tensor:
    count = len(g)
    H = torch.zeros((count + 1) ** 2, dtype=torch.float64)
    for row, block in zip(rows, blocks, strict=True):
        place = torch.where(row < 0, count, row)
        H.index_add_(0, (place[:, None] * (count + 1) + place).flatten(), block.H.flatten())
    H = H.view(count + 1, count + 1)[:count, :count].clone()
    H.diagonal().add_(damping)
    if held is not None:
        # The mean of the log scales is taken out of all equations, and what that leaves undetermined is set to zero.
        H[held] -= H[held].mean(dim=0)
        H[:, held] -= H[:, held].mean(dim=1, keepdim=True)
        H[held[:, None], held] += H.diagonal()[held].mean() / len(held)
    factor, failed = torch.linalg.cholesky_ex(H)
    if int(failed):
        H.diagonal().add_(1e-9 * float(H.diagonal().max()))
        factor, failed = torch.linalg.cholesky_ex(H)
    if int(failed):
        return -_without_mean(g / H.diagonal(), held)
    return _without_mean(-torch.cholesky_solve(_without_mean(g, held)[:, None], factor)[:, 0], held)


def _conjugate_gradients(
    blocks: Sequence[Block],
    rows: Sequence[Tensor],
    g: Tensor,
    damping: Tensor,
    diagonal: Tensor,
    freedom: Freedom,
    edges: Tensor,
    held: Tensor | None,
) -> Tensor:
    count = len(g)
    places = [torch.where(row < 0, count, row) for row in rows]

    def product(v: Tensor) -> Tensor:
        padded = torch.cat([v, v.new_zeros(1)])
        total = torch.zeros_like(padded)
        for place, block in zip(places, blocks, strict=True):
            total.index_add_(0, place, block.H @ padded[place])
        return total[:count] + damping * v

    precondition = _edge_preconditioner(blocks, damping, diagonal, freedom, edges)
    step = torch.zeros_like(g)
    residual = _without_mean(-g, held)
    towards = _without_mean(precondition(residual), held)
    direction, fit = towards, residual @ towards
    enough = _CG_TOLERANCE**2 * float(fit)
    for _ in range(_CG_ITERATIONS):
        if float(fit) <= enough:
            break
        moved = _without_mean(product(direction), held)
        length = fit / (direction @ moved)
        step, residual = step + length * direction, residual - length * moved
        towards = _without_mean(precondition(residual), held)
        before, fit = fit, residual @ towards
        direction = towards + fit / before * direction
    return step


def _edge_preconditioner(
    blocks: Sequence[Block], damping: Tensor, diagonal: Tensor, freedom: Freedom, edges: Tensor
) -> Callable[[Tensor], Tensor]:
    """Inverts the 7 x 7 block of each edge and divides by the diagonal elsewhere."""
    edge_count = max(int(block.edges.max()) + 1 if len(block.edges) else 0 for block in blocks)
    own = torch.zeros(edge_count, SIMILARITY, SIMILARITY, dtype=torch.float64)
    for block in blocks:
        count = len(block.edges)
        first = len(block.index) - count * SIMILARITY
        each = torch.arange(count)
        of_edges = block.H[first:, first:].reshape(count, SIMILARITY, count, SIMILARITY)
        own[block.edges] += of_edges[each, :, each, :]
    own = own[freedom.edges]
    own.diagonal(dim1=1, dim2=2).add_(damping[edges] + 1e-9 * diagonal[edges])
    inverse = torch.linalg.inv(own)
    rest = (diagonal + damping).clone()

    def apply(v: Tensor) -> Tensor:
        out = v / rest
        out[edges] = (inverse @ v[edges][..., None])[..., 0]
        return out

    return apply
