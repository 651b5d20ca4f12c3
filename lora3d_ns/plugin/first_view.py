"""Where nerfstudio's viewer begins: at the photos, and upright.

The viewer begins at (3, 3, 3) and looks at the origin with z up, which is right for scenes that were moved there. Ours
keep the first photo's frame and their own unit: a viewer that begins elsewhere shows nothing.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer_elements import ViewerControl
from torch import Tensor

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer
    from viser import ClientHandle

# In typical depths of the scene.
_BEHIND, _ABOVE = 0.15, 0.06
"""From there the photo in the middle is seen from behind and above, and does not hide the scene."""
_FRUSTUM, _FRUSTUM_OF_SPACING = 0.02, 0.25
"""Size of the cameras that are drawn: in typical depths, and at most this share of the distance between them."""
_WIDER = 1.15
"""Width of what is seen beside that of the photo."""
_WIDEST = math.radians(100.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewerPose:
    """A camera of the viewer, in the scene's world and unit.

    Attributes:
        position: Its centre.
        look_at: A point that it sees in the middle.
        up: Direction that is up in the picture.
        fov: Vertical angle of view in radians.
    """

    position: Float[Tensor, "3"]
    look_at: Float[Tensor, "3"]
    up: Float[Tensor, "3"]
    fov: float


class FirstView(ViewerControl):
    """Takes every browser that connects to the scene. nerfstudio's viewer finds it as an attribute of the pipeline.

    Args:
        pipeline: A pipeline with training cameras, whose model knows its `unit`.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def _setup(self, viewer: "Viewer") -> None:
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        super()._setup(viewer)
        config = viewer.config
        if config.camera_frustum_scale == type(config)().camera_frustum_scale:
            cameras = self._pipeline.datamanager.train_dataset.cameras
            size = frustum_size(cameras, float(self._pipeline.model.unit))
            viewer.config = dataclasses.replace(config, camera_frustum_scale=size * VISER_NERFSTUDIO_SCALE_RATIO)
        viewer.viser_server.on_client_connect(self.take_there)

    def take_there(self, client: "ClientHandle") -> None:
        """Moves one browser's camera."""
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        view = first_view(self._pipeline.datamanager.train_dataset.cameras, float(self._pipeline.model.unit))
        with client.atomic():
            client.camera.up_direction = view.up.numpy()
            client.camera.position = (view.position * VISER_NERFSTUDIO_SCALE_RATIO).numpy()
            client.camera.look_at = (view.look_at * VISER_NERFSTUDIO_SCALE_RATIO).numpy()
            client.camera.fov = view.fov


def first_view(cameras: Cameras, unit: float) -> ViewerPose:
    """A little behind and above the camera in the middle of all, so wide that a square window shows all of its photo.

    Args:
        cameras: The training cameras.
        unit: The scene's typical depth.
    """
    poses = cameras.camera_to_worlds.cpu().double()
    centres = poses[:, :, 3]
    chosen = int((centres - centres.mean(dim=0)).norm(dim=1).argmin())
    forward = -poses[chosen, :, 2]
    # Of all photos together: one that was turned on its side does not turn the scene.
    up = poses[:, :, 1].mean(dim=0)
    if float(torch.linalg.cross(up, forward).norm()) < 0.1:
        up = poses[chosen, :, 1]
    up = up / up.norm()
    width, height = (
        float(size[chosen]) / float(focal[chosen])
        for size, focal in ((cameras.width, cameras.fx), (cameras.height, cameras.fy))
    )
    return ViewerPose(
        position=centres[chosen] + unit * (_ABOVE * up - _BEHIND * forward),
        look_at=centres[chosen] + unit * forward,
        up=up,
        fov=min(2.0 * math.atan(0.5 * _WIDER * max(width, height)), _WIDEST),
    )


def frustum_size(cameras: Cameras, unit: float) -> float:
    """Size at which cameras are drawn: to be seen and clicked, and not to hide each other.

    Args:
        cameras: The training cameras.
        unit: The scene's typical depth.
    """
    centres = cameras.camera_to_worlds.cpu().double()[:, :, 3]
    if len(centres) == 1:
        return _FRUSTUM * unit
    distances = torch.cdist(centres, centres)
    nearest = distances.fill_diagonal_(math.inf).amin(dim=1)
    spacing = float(nearest.median())
    return min(_FRUSTUM * unit, _FRUSTUM_OF_SPACING * spacing) if spacing > 0.0 else _FRUSTUM * unit
