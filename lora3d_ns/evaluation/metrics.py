"""Metrics of point maps, cameras, clouds and confidences against truth, as LoRA3D and its peers define them.

All are plain functions of tensors. Where a metric is free of scale or frame, its docstring says what is fitted first.
Trajectories are aligned and measured by the `evo` package.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lora3d_ns.errors import InvalidDataError

_SCALE_ITERATIONS = 50
_DISTANCE_FLOOR = 1e-12


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidDataError(problem, way_out="Give estimate and truth of the same things, in the same order")


# --- point maps -----------------------------------------------------------------------------------


def best_scale(points: Float[Tensor, "points 3"], truth: Float[Tensor, "points 3"]) -> Float[Tensor, ""]:
    """The s > 0 that minimises the mean of |s X_p - X̄_p|: iteratively re-weighted least squares (Weiszfeld).

    Raises:
        InvalidDataError: No points, or none away from the origin.
    """
    _require(
        points.shape == truth.shape and len(points) > 0, f"{tuple(points.shape)} points, {tuple(truth.shape)} true"
    )
    dot, square = (points * truth).sum(dim=1), points.square().sum(dim=1)
    _require(bool(square.sum() > 0), "all points are at the origin: no scale fits them")
    scale = dot.sum() / square.sum()
    for _ in range(_SCALE_ITERATIONS):
        weight = (scale * points - truth).norm(dim=1).clamp(min=_DISTANCE_FLOOR).reciprocal()
        scale = (weight * dot).sum() / (weight * square).sum()
    return scale.clamp(min=_DISTANCE_FLOOR)


def point_error(
    points: Sequence[Float[Tensor, "... 3"]],
    truth: Sequence[Float[Tensor, "... 3"]],
    valid: Sequence[Bool[Tensor, "..."]] | None = None,
) -> float:
    """Mean distance of a pair's point maps to the truth in the reference camera, after one scale for the pair.

    Args:
        points: The two predicted point maps, both in the first camera's frame (any unit).
        truth: The true ones, in the unit of the result.
        valid: Which pixels have a truth; all by default.

    Raises:
        InvalidDataError: Shapes differ, or no pixel is valid.
    """
    _require(len(points) == len(truth) > 0, f"{len(points)} point maps for {len(truth)} true ones")
    if valid is None:
        valid = [torch.ones(map_.shape[:-1], dtype=torch.bool) for map_ in truth]
    for estimate, true, mask in zip(points, truth, valid, strict=True):
        _require(
            estimate.shape == true.shape and mask.shape == true.shape[:-1],
            f"a point map of {tuple(estimate.shape)} for a true one of {tuple(true.shape)}",
        )
    estimated = torch.cat([map_[mask] for map_, mask in zip(points, valid, strict=True)]).double()
    true_points = torch.cat([map_[mask] for map_, mask in zip(truth, valid, strict=True)]).double()
    return float((best_scale(estimated, true_points) * estimated - true_points).norm(dim=1).mean())


# --- cameras --------------------------------------------------------------------------------------


def absolute_trajectory_error(
    T_world_camera: Float[Tensor, "views 4 4"], T_world_camera_true: Float[Tensor, "true_views 4 4"]
) -> float:
    """ATE: root mean square distance of camera centres after the best similarity (Umeyama), in the truth's unit.

    Raises:
        InvalidDataError: Fewer than three views, or centres on one line, which fix no similarity.
    """
    from evo.core.geometry import GeometryException
    from evo.core.metrics import APE, PoseRelation, StatisticsType
    from evo.core.trajectory import PosePath3D

    _require(
        T_world_camera.shape == T_world_camera_true.shape,
        f"{len(T_world_camera)} poses for {len(T_world_camera_true)} true ones",
    )
    _require(len(T_world_camera) >= 3, f"{len(T_world_camera)} views fix no similarity: at least 3 are needed")
    estimate, truth = (
        PosePath3D(poses_se3=list(poses.double().numpy())) for poses in (T_world_camera, T_world_camera_true)
    )
    try:
        estimate.align(truth, correct_scale=True)
    except GeometryException as error:
        raise InvalidDataError(
            "the camera centres lie on one line or in one point, which fixes no similarity",
            way_out="Compare relative poses instead (`relative_pose_errors_deg`)",
        ) from error
    error = APE(PoseRelation.translation_part)
    error.process_data((truth, estimate))
    return float(error.get_statistic(StatisticsType.rmse))


def absolute_focal_error_percent(K: Float[Tensor, "views 3 3"], K_true: Float[Tensor, "true_views 3 3"]) -> float:
    """AFE: mean over views of |f - f*| / f* in percent, f being the mean of both axes."""
    _require(K.shape == K_true.shape and len(K) > 0, f"{len(K)} intrinsics for {len(K_true)} true ones")
    focal, focal_true = ((k[:, 0, 0] + k[:, 1, 1]) / 2 for k in (K.double(), K_true.double()))
    return float(100.0 * ((focal - focal_true).abs() / focal_true).mean())


@dataclass(frozen=True, eq=False, kw_only=True)
class RelativePoseErrors:
    """Errors of the relative poses of all unordered pairs of views, in degrees.

    Attributes:
        rotation_deg: Angle between the relative rotations.
        translation_deg: Angle between the directions of the relative translations, 0 to 180; 0 where truth and
            estimate both do not move, 180 where only one of them moves.
    """

    rotation_deg: Float[Tensor, " pairs"]
    translation_deg: Float[Tensor, " pairs"]

    def rotation_accuracy(self, threshold_deg: float) -> float:
        """RRA@τ: share of pairs whose rotation error is below the threshold."""
        return float((self.rotation_deg < threshold_deg).double().mean())

    def translation_accuracy(self, threshold_deg: float) -> float:
        """RTA@τ: share of pairs whose translation direction error is below the threshold."""
        return float((self.translation_deg < threshold_deg).double().mean())

    def area_under_curve(self, threshold_deg: float) -> float:
        """AUC@τ: mean over t in (0, τ) of the share of pairs whose worse error of the two is below t.

        The integral of the exact step curve, `mean_p max(0, 1 - error_p / τ)`, so it depends on no bins.
        """
        worse = torch.maximum(self.rotation_deg, self.translation_deg)
        return float((1.0 - worse / threshold_deg).clamp(min=0.0).mean())


def relative_pose_errors_deg(
    T_world_camera: Float[Tensor, "views 4 4"], T_world_camera_true: Float[Tensor, "true_views 4 4"]
) -> RelativePoseErrors:
    """Errors of all unordered pairs; free of the world frame and of the scale.

    Raises:
        InvalidDataError: Fewer than two views.
    """
    _require(
        T_world_camera.shape == T_world_camera_true.shape and len(T_world_camera) >= 2,
        f"{len(T_world_camera)} poses for {len(T_world_camera_true)} true ones",
    )
    first, second = torch.triu_indices(len(T_world_camera), len(T_world_camera), offset=1)

    def relative(T: Tensor) -> Tensor:
        return torch.linalg.inv(T[first].double()) @ T[second].double()

    T_first_second, T_first_second_true = relative(T_world_camera), relative(T_world_camera_true)
    difference = T_first_second[:, :3, :3].mT @ T_first_second_true[:, :3, :3]
    return RelativePoseErrors(
        rotation_deg=rotation_angle_deg(difference),
        translation_deg=_direction_angle_deg(T_first_second[:, :3, 3], T_first_second_true[:, :3, 3]),
    )


def rotation_angle_deg(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Angle of rotation matrices, exact for small angles too: atan2 of the sine from the skew part and the cosine."""
    sine = 0.5 * torch.stack([R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]])
    cosine = 0.5 * (R.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1.0)
    return torch.rad2deg(torch.atan2(sine.norm(dim=0), cosine))


def _direction_angle_deg(direction: Tensor, truth: Tensor) -> Tensor:
    length, length_true = direction.norm(dim=1), truth.norm(dim=1)
    angle = torch.rad2deg(torch.atan2(torch.linalg.cross(direction, truth).norm(dim=1), (direction * truth).sum(dim=1)))
    still, still_true = length < _DISTANCE_FLOOR, length_true < _DISTANCE_FLOOR
    return torch.where(still & still_true, 0.0, torch.where(still | still_true, 180.0, angle))


# --- clouds ---------------------------------------------------------------------------------------


def accuracy_completeness(
    points_world: Float[Tensor, "points 3"], truth_world: Float[Tensor, "true_points 3"]
) -> tuple[float, float]:
    """Mean distance to the nearest neighbour: of the estimate in the truth (accuracy), of the truth in the estimate.

    Both clouds must be in one frame; align the estimate with a similarity first.

    Raises:
        InvalidDataError: A cloud is empty.
    """
    from scipy.spatial import KDTree

    _require(len(points_world) > 0 and len(truth_world) > 0, "an empty cloud has no nearest neighbours")
    points, truth = points_world.double().numpy(), truth_world.double().numpy()
    accuracy, _ = KDTree(truth).query(points)
    completeness, _ = KDTree(points).query(truth)
    return float(np.mean(accuracy)), float(np.mean(completeness))


# --- confidence -----------------------------------------------------------------------------------


def rank_correlation(confidence: Float[Tensor, " pixels"], error: Float[Tensor, " pixels"]) -> float:
    """Spearman's rank correlation of confidence and true error: -1 where confidence orders the errors perfectly.

    Raises:
        InvalidDataError: Lengths differ, or one of the two is constant and has no ranks.
    """
    from scipy.stats import spearmanr

    _require(confidence.shape == error.shape and len(error) >= 2, f"{len(confidence)} confidences, {len(error)} errors")
    for name, values in (("confidence", confidence), ("error", error)):
        _require(bool(values.max() > values.min()), f"the {name} is constant: it has no ranks")
    return float(spearmanr(confidence.double().numpy(), error.double().numpy())[0])  # pyright: ignore[reportArgumentType]


def sparsification_error(
    confidence: Float[Tensor, " pixels"], error: Float[Tensor, " pixels"], steps: int = 100
) -> float:
    """AUSE: how much worse than the true errors the confidence chooses what to leave out, 0 at best.

    Leave out the least confident share x of the pixels and take the mean error of the rest, relative to the mean over
    all: the sparsification curve. The same with the true errors as order is the oracle. AUSE is the mean of their
    difference over x = 0, 1/steps, ..., (steps - 1)/steps. Ties in confidence count with their mean error.

    Raises:
        InvalidDataError: Lengths differ, fewer than two pixels, or no error at all.
    """
    _require(confidence.shape == error.shape and len(error) >= 2, f"{len(confidence)} confidences, {len(error)} errors")
    errors = error.double()
    _require(bool(errors.mean() > 0), "the error is zero everywhere: there is nothing to sort out")
    # Equal confidences are one group, whose members stand for their mean: no order among them is claimed.
    _, group, counts = torch.unique(confidence, return_inverse=True, return_counts=True)
    means = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, group, errors) / counts
    by_confidence = means[group][torch.argsort(confidence, descending=True)]
    oracle = errors.sort().values
    kept = torch.tensor([len(errors) - (step * len(errors)) // steps for step in range(steps)])
    curves = [ordered.cumsum(dim=0)[kept - 1] / kept for ordered in (by_confidence, oracle)]
    return float(((curves[0] - curves[1]) / errors.mean()).mean())


# --- self-calibration -----------------------------------------------------------------------------


def gap_closure(pretrained: float, self_calibrated: float, gt_finetuned: float) -> float:
    """(pretrained - self-calibrated) / (pretrained - fine-tuned on truth): 1 where labels as good as truth were found.

    Raises:
        InvalidDataError: Fine-tuning on truth did not help, so there is no gap to close.
    """
    _require(pretrained > gt_finetuned, f"no gap: pretrained {pretrained}, fine-tuned on truth {gt_finetuned}")
    return (pretrained - self_calibrated) / (pretrained - gt_finetuned)
