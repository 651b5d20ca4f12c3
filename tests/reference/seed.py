"""Which points a better view has said already, one pair of points at a time; no grid, plain numbers."""

from collections.abc import Sequence

from torch import Tensor


def naive_projection(point: Tensor, T_world_camera: Tensor, K: Tensor) -> tuple[float, float, float]:
    """Source pixel (x, y) and depth of one world point: `K R^T (X - t)`, then divided by its last row."""
    T, K = T_world_camera.double(), K.double()
    seen = K @ (T[:3, :3].T @ (point.double() - T[:3, 3]))
    depth = float(seen[2])
    return float(seen[0]) / depth, float(seen[1]) / depth, depth


def naive_redundant(
    points: Tensor,
    views: Sequence[int],
    weights: Sequence[float],
    T_world_camera: Tensor,
    K: Tensor,
    spacings_px: Sequence[float],
    *,
    tolerance: float,
    coarser_by: float,
) -> list[bool]:
    """True for a point that a point which stays, of a view of more mean weight, makes redundant.

    That point lies at most half a spacing away, in x and in y, from where the first appears in its view; their depths
    there differ by less than `tolerance` of its own; and a pixel there is at most `coarser_by` times as large.

    Args:
        points: World points, (N, 3).
        views: View each was seen in.
        weights: Their weights.
        T_world_camera: Poses of the views.
        K: Their intrinsics.
        spacings_px: Distance of neighbouring points in each view's pixels.
        tolerance: Relative difference of depth.
        coarser_by: How much larger a pixel may be.
    """
    count = len(T_world_camera)
    members = [[p for p, view in enumerate(views) if view == v] for v in range(count)]
    mean = [sum(weights[p] for p in own) / len(own) if own else 0.0 for own in members]
    own_pixel = [naive_projection(points[p], T_world_camera[v], K[v]) for p, v in enumerate(views)]
    size = [
        pixel[2] * spacings_px[v] / float(K[v, 0, 0] + K[v, 1, 1]) for pixel, v in zip(own_pixel, views, strict=True)
    ]
    order = sorted(range(count), key=lambda v: (-mean[v], v))
    redundant = [False] * len(views)
    for place, view in enumerate(order):
        for p in members[view]:
            for other in order[:place]:
                x, y, z = naive_projection(points[p], T_world_camera[other], K[other])
                half = spacings_px[other] / 2
                for q in members[other]:
                    x_q, y_q, z_q = own_pixel[q]
                    if (
                        not redundant[q]
                        and z > 0
                        and abs(x - x_q) < half
                        and abs(y - y_q) < half
                        and abs(z - z_q) < tolerance * z_q
                        and size[q] <= coarser_by * size[p]
                    ):
                        redundant[p] = True
    return redundant
