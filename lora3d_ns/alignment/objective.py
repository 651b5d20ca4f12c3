"""What the alignment minimises, as pure functions.

LoRA3D (arXiv 2412.07746) moves point maps X of pairs e = (i, j) and the depths D of views v into one world:

    Eq. 6   sum_e sum_{v in e} sum_p  C |x_p - y_p|,    x = T_v D_p K_v^-1 (u, v, 1),    y = sigma_e T_e X_p
    Eq. 7   sum_e sum_{v in e} sum_p  w |x_p - y_p| + mu (sqrt(w) - sqrt(C))^2,  minimised over the weights w as well

For fixed geometry the best weight is closed form (Eq. 8), `w = C / (1 + |e| / mu)^2`, and with it Eq. 7 becomes the
robust loss `C mu |e| / (mu + |e|)`, whose derivative by |e| is w again: the weights are the influence of each point.
Eq. 6 is the limit of a large mu; here `mu = None`.

**Gauge.** Both sums shrink with the scene. The product of all sigma_e is fixed to one, which fixes the scale; mu then
is a length in the same unit. Where known poses fix the scale of the world instead, the sum is divided by the geometric
mean of the sigma_e and mu multiplied by it: the same objective, written for any unit, so that a known scale never pulls
the scene towards a smaller one. The world's frame is fixed to a view's camera.
"""

from jaxtyping import Float
from torch import Tensor

from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.types import Sim3


def robust_loss(
    confidence: Float[Tensor, "*batch"], distance: Float[Tensor, "*batch"], mu: float | None
) -> Float[Tensor, "*batch"]:
    """`C mu |e| / (mu + |e|)` (Eq. 7 with the best weights put in); `C |e|` (Eq. 6) where mu is None."""
    return confidence * distance if mu is None else confidence * (mu * distance / (mu + distance))


def calibrated_weight(
    confidence: Float[Tensor, "*batch"], distance: Float[Tensor, "*batch"], mu: float | None
) -> Float[Tensor, "*batch"]:
    """`C / (1 + |e| / mu)^2` (Eq. 8), which is the derivative of `robust_loss` by |e|; C where mu is None."""
    return confidence.expand_as(distance) if mu is None else confidence / (1.0 + distance / mu).square()


def weighted_loss(
    confidence: Float[Tensor, "*batch"], weight: Float[Tensor, "*batch"], distance: Float[Tensor, "*batch"], mu: float
) -> Float[Tensor, "*batch"]:
    """`w |e| + mu (sqrt(w) - sqrt(C))^2`: one term of Eq. 7 for any weight."""
    return weight * distance + mu * (weight.sqrt() - confidence.sqrt()).square()


def view_points(
    depth: Float[Tensor, "height width"], K: Float[Tensor, "3 3"], T_world_camera: Float[Tensor, "4 4"]
) -> Float[Tensor, "height width 3"]:
    """`T_v D K_v^-1 (u, v, 1)`: the world points of a view's pixels, K in the same pixels as the depth map."""
    return points_from_depth(depth, K) @ T_world_camera[:3, :3].T + T_world_camera[:3, 3]


def residuals(
    points_edge: Float[Tensor, "height width 3"],
    world_from_edge: Sim3,
    depth: Float[Tensor, "height width"],
    K: Float[Tensor, "3 3"],
    T_world_camera: Float[Tensor, "4 4"],
) -> Float[Tensor, "height width 3"]:
    """`y - x` of one point map of one edge, world frame: where the pair puts each pixel, from where the view has it."""
    return world_from_edge.apply(points_edge) - view_points(depth, K, T_world_camera)


def gauge_scale(edge_scale: Float[Tensor, " edges"]) -> Float[Tensor, ""]:
    """Geometric mean of the sigma_e, which the gauge fixes to one.

    An objective divided by it (and mu multiplied by it) is the same for the same scene in any unit.
    """
    return edge_scale.log().mean().exp()
