"""The second protocol for held-out photos: their poses optimised on frozen Gaussians (InstantSplat's)."""

from typing import TYPE_CHECKING

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.lie_groups import exp_map_SO3xR3
from torch import Tensor

from lora3d_ns.plugin.cameras import T_camera_world_of
from lora3d_ns.plugin.metrics import masked_loss

if TYPE_CHECKING:
    from lora3d_ns.plugin.model import Lora3dSplatModel

_LEARNING_RATE = 3e-3


def refined_test_pose(
    model: "Lora3dSplatModel", camera: Cameras, image: Tensor, mask: Tensor | None, steps: int
) -> Tensor:
    """The rendering (height, width, 3) from the pose near the camera's that fits the photo best.

    Adam on `masked_loss` over the six numbers of `T <- T exp(delta)`, nothing else moves; of all poses passed the one
    of the smallest loss, the first included, is rendered.
    """
    K = camera.get_intrinsics_matrices().to(model.device)
    height, width = image.shape[:2]
    delta = torch.zeros(1, 6, device=model.device, requires_grad=True)
    scale = torch.tensor([float(model.unit)] * 3 + [1.0] * 3, device=model.device)
    optimizer = torch.optim.Adam([delta], lr=_LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=_LEARNING_RATE / 30)
    background = model.background_color.to(model.device)
    gaussians = [parameter for parameter in model.parameters() if parameter.requires_grad]
    best_loss, best = float("inf"), image
    for parameter in gaussians:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            for _ in range(steps + 1):
                moved = _moved(camera.camera_to_worlds, exp_map_SO3xR3(delta * scale))
                render, alpha = model.rendered(T_camera_world_of(moved), K, width, height, with_depth=False)
                rgb = (render[..., :3] + (1 - alpha) * background).clamp(0.0, 1.0)
                loss = masked_loss(
                    rgb, image, None if mask is None else mask > 0.5, ssim_share=model.config.ssim_lambda
                )
                if float(loss) < best_loss:
                    best_loss, best = float(loss), rgb.detach()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
    finally:
        for parameter in gaussians:
            parameter.requires_grad_(True)
    return best


def _moved(camera_to_worlds: Tensor, delta: Tensor) -> Tensor:
    rotation = camera_to_worlds[..., :3] @ delta[..., :3]
    return torch.cat([rotation, camera_to_worlds[..., :3] @ delta[..., 3:] + camera_to_worlds[..., 3:]], dim=-1)
