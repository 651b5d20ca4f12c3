"""Training cameras that move along with the Gaussians, and what that means for all others."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.lie_groups import exp_map_SO3xR3
from torch import Tensor

from lora3d_ns.conventions import opencv_from_opengl


@dataclass
class SceneCameraOptimizerConfig(CameraOptimizerConfig):
    """Cameras refined in their own frames, in units of the scene, the first one fixed."""

    _target: type = field(default_factory=lambda: SceneCameraOptimizer)
    mode: Literal["off", "SO3xR3", "SE3"] = "SO3xR3"
    """Whether and how the training cameras are refined."""
    trans_l2_penalty: float = 1e-2
    """Of the translation, as a share of the scene's typical depth."""
    rot_l2_penalty: float = 1e-3
    """Of the rotation in radians."""


class SceneCameraOptimizer(CameraOptimizer):
    """`T_world_camera <- T_world_camera exp(delta)`: rotation about the camera itself, translation in scene units.

    The first camera is the world's frame and stays. nerfstudio's own turns positions about the world's origin and
    counts translations in whatever unit the scene has.

    Attributes:
        unit: Typical depth of the scene.
    """

    unit: float = 1.0

    def __init__(
        self, config: CameraOptimizerConfig, num_cameras: int, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(config, num_cameras, device, **kwargs)

    def forward(self, indices: Int[Tensor, " cameras"]) -> Float[Tensor, "cameras 3 4"]:
        """delta of some cameras, in their own OpenGL frames."""
        if self.config.mode == "off":
            return torch.eye(4)[None, :3].repeat(len(indices), 1, 1)
        delta = self.pose_adjustment[indices.to(self.pose_adjustment.device)]
        delta = delta * (indices > 0).to(delta)[:, None]
        delta = torch.cat([delta[:, :3] * self.unit, delta[:, 3:]], dim=1)
        return exp_map_SO3xR3(delta)

    def moved(self, camera_to_worlds: Tensor, indices: Tensor) -> Tensor:
        """Poses (OpenGL, 3x4) of training cameras after refinement."""
        delta = self(indices).to(camera_to_worlds)
        rotation = camera_to_worlds[..., :3] @ delta[..., :3]
        translation = camera_to_worlds[..., :3] @ delta[..., 3:] + camera_to_worlds[..., 3:]
        return torch.cat([rotation, translation], dim=-1)

    def apply_to_camera(self, camera: Cameras) -> Tensor:
        """Pose of one training camera after refinement; any other camera's as it is."""
        if self.config.mode == "off" or camera.metadata is None or "cam_idx" not in camera.metadata:
            return camera.camera_to_worlds
        return self.moved(camera.camera_to_worlds, torch.tensor([camera.metadata["cam_idx"]]))

    def get_metrics_dict(self, metrics_dict: dict) -> None:
        """How far the cameras have moved: share of the scene's depth, and degrees."""
        if self.config.mode != "off":
            moved = self.pose_adjustment.detach()
            # Tensors: most steps' are never looked at, and a number would have to wait for the GPU.
            metrics_dict["camera_opt_translation_mean"] = moved[:, :3].norm(dim=-1).mean()
            metrics_dict["camera_opt_rotation_mean_deg"] = torch.rad2deg(moved[:, 3:].norm(dim=-1).mean())


def T_camera_world_of(camera_to_worlds: Float[Tensor, "1 3 4"]) -> Float[Tensor, "4 4"]:
    """OpenCV world-to-camera matrix of nerfstudio's pose, with its gradient."""
    R = opencv_from_opengl(_as_4x4(camera_to_worlds))[0, :3, :3].mT
    bottom = R.new_tensor([[0.0, 0.0, 0.0, 1.0]])
    return torch.cat([torch.cat([R, -R @ camera_to_worlds[0, :, 3:]], dim=1), bottom])


def _as_4x4(poses: Tensor) -> Tensor:
    bottom = poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*poses.shape[:-2], 1, 4)
    return torch.cat([poses, bottom], dim=-2)


_NEIGHBOURS = 3


def carried_along(
    before: Float[Tensor, "cameras 3 4"],
    after: Float[Tensor, "cameras 3 4"],
    others: Float[Tensor, "others 3 4"],
    *,
    unit: float,
) -> Float[Tensor, "others 3 4"]:
    """Other cameras, moved as the training cameras beside them were.

    Training moves cameras together with the Gaussians that they see, differently in different places: another camera
    that stays where it was no longer fits what it sees. It is moved by the mean of the motions `after_i before_i^-1`
    of its three nearest training cameras, weighted by 1 / distance^2; the distance is that of the centres in `unit`
    and that of the viewing directions. (The one similarity that fits all cameras best does worse: BENCHMARKS.md.)
    """
    first, last, moved = (_as_4x4(poses.double()) for poses in (before, after, others))
    motion = last @ torch.linalg.inv(first)
    distance = torch.cdist(moved[:, :3, 3], first[:, :3, 3]) / unit + torch.cdist(moved[:, :3, 2], first[:, :3, 2])
    nearest = torch.topk(distance, min(_NEIGHBOURS, len(before)), largest=False)
    weight = 1.0 / (nearest.values.square() + 1e-12)
    weight = (weight / weight.sum(dim=1, keepdim=True))[..., None, None]
    mean = (weight * (motion[nearest.indices] @ moved[:, None])).sum(dim=1)
    # The nearest rotation to a mean of rotations.
    U, _, Vh = torch.linalg.svd(mean[:, :3, :3])
    return torch.cat([U @ Vh, mean[:, :3, 3:]], dim=-1).to(others)
