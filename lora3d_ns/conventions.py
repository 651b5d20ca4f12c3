"""The written conventions, and the only functions that cross them.

Cameras
    OpenCV axes everywhere: x right, y down, z forward. OpenGL axes (x right, y up, z backward) exist only inside
    `lora3d_ns.plugin`, and cross here.
Poses
    `T_world_camera` is 4x4 and maps camera coordinates to world coordinates: adjacent names cancel,
    `X_world = T_world_camera @ X_camera`. The world frame is the first photo's (natural order); the world's unit is
    arbitrary unless a scale was given.
Pixels
    Continuous coordinates: the first pixel covers [0, 1) and its centre is at 0.5. COLMAP and nerfstudio say the
    same; OpenCV and many data sets put the first centre at 0, and cross here.
Photos
    sRGB in 0 to 1. *Upright* means with the EXIF orientation applied. *Source* pixels are those of the upright
    original, *network* pixels those of the resized image that the network sees; `PixelAffine` joins the two.
    Intrinsics are in source pixels everywhere outside the network.
Confidence and weight
    *Confidence* is what the network said, *weight* is what we computed. The network's raw confidence is
    `1 + exp(x) >= 1`; we store `C = log(raw) >= 0`, which the alignment uses (LoRA3D, arXiv 2412.07746).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, KnownCameraError

ExifOrientation = Literal[1, 2, 3, 4, 5, 6, 7, 8]


@dataclass(frozen=True, kw_only=True)
class PixelAffine:
    """Where network pixels lie in the source photo: `source = scale * network + offset`, for x and y apart.

    Both sides are continuous coordinates with pixel centres at +0.5, so the map holds for corners and centres alike
    and needs no half-pixel correction.

    Attributes:
        scale_x, scale_y: Source pixels per network pixel (> 0). Equal unless a photo was stretched.
        offset_x_px, offset_y_px: Source position of the network image's top left corner; positive where the photo
            was cropped, negative where it was padded.
    """

    scale_x: float
    scale_y: float
    offset_x_px: float
    offset_y_px: float

    def __post_init__(self) -> None:
        if not (self.scale_x > 0 and self.scale_y > 0):
            raise InvalidDataError(
                f"pixel scales must be positive, not {self.scale_x}, {self.scale_y}",
                way_out="Build the affine from the source and network sizes",
            )

    @property
    def matrix(self) -> Float[Tensor, "3 3"]:
        """The same map on homogeneous pixels, float64."""
        return torch.tensor(
            [[self.scale_x, 0.0, self.offset_x_px], [0.0, self.scale_y, self.offset_y_px], [0.0, 0.0, 1.0]],
            dtype=torch.float64,
        )

    def source_from_network(self, pixels: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Source coordinates (x, y) of network coordinates (x, y)."""
        scale, offset = self._scale_and_offset(pixels)
        return pixels * scale + offset

    def network_from_source(self, pixels: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Network coordinates (x, y) of source coordinates (x, y)."""
        scale, offset = self._scale_and_offset(pixels)
        return (pixels - offset) / scale

    def K_source_from_network(self, K: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
        """Intrinsics in source pixels, `K_source = A K_network`."""
        return self.matrix.to(K) @ K

    def K_network_from_source(self, K: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
        """Intrinsics in network pixels, `K_network = A^-1 K_source`."""
        return torch.linalg.inv(self.matrix).to(K) @ K

    def _scale_and_offset(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return (
            like.new_tensor([self.scale_x, self.scale_y]),
            like.new_tensor([self.offset_x_px, self.offset_y_px]),
        )


def pixel_centres(height: int, width: int, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "height width 2"]:
    """Continuous (x, y) coordinates of all pixel centres: the first is (0.5, 0.5)."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=dtype) + 0.5, torch.arange(width, dtype=dtype) + 0.5, indexing="ij"
    )
    return torch.stack([x, y], dim=-1)


def opengl_from_opencv(T_world_camera: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The same pose with the camera's axes written as OpenGL does (y and z flipped); the world is untouched.

    The flip is its own inverse: `opencv_from_opengl` is the same map.
    """
    return T_world_camera * T_world_camera.new_tensor([1.0, -1.0, -1.0, 1.0])


def opencv_from_opengl(T_world_camera: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The same pose with the camera's axes written as OpenCV does; see `opengl_from_opencv`."""
    return opengl_from_opencv(T_world_camera)


def K_from_integer_centres(K: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics given with the first pixel's centre at 0 (OpenCV), with it at 0.5."""
    return _shift_principal_point(K, 0.5)


def K_to_integer_centres(K: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics of ours, with the first pixel's centre at 0 (OpenCV)."""
    return _shift_principal_point(K, -0.5)


def _shift_principal_point(K: Tensor, shift_px: float) -> Tensor:
    shifted = K.clone()
    shifted[..., :2, 2] += shift_px
    return shifted


# Quarter turns that make a stored photo upright; the mirrored orientations (2, 4, 5, 7) are no camera rotation.
_QUARTER_TURNS_CLOCKWISE = {1: 0, 6: 1, 3: 2, 8: 3}


def upright_camera_from_stored(
    K: Float[Tensor, "3 3"],
    T_world_camera: Float[Tensor, "4 4"] | None,
    orientation: ExifOrientation,
    stored_size: tuple[int, int],
) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "4 4"] | None]:
    """Camera of the upright photo from the camera of the photo as stored in the file.

    Programs that ignore EXIF orientation (COLMAP) give intrinsics and poses of the stored pixels. Turning the picture
    clockwise turns the camera's axes with it: `K' = A K R^T`, `T' = T R^T` with the rotation R about the viewing axis.

    Args:
        K: Intrinsics in stored pixels.
        T_world_camera: Pose of the stored photo's camera, or None.
        orientation: EXIF orientation, 1 to 8.
        stored_size: (width, height) as stored.

    Returns:
        Intrinsics in upright pixels and the pose of the upright photo's camera.

    Raises:
        KnownCameraError: The orientation is a mirrored one.
    """
    if orientation not in _QUARTER_TURNS_CLOCKWISE:
        raise KnownCameraError(
            f"EXIF orientation {orientation} mirrors the photo, so no camera pose fits it",
            way_out="Save the photo upright (for example with `mogrify -auto-orient`) and give its camera again",
        )
    width, height = float(stored_size[0]), float(stored_size[1])
    for _ in range(_QUARTER_TURNS_CLOCKWISE[orientation]):
        # A quarter turn clockwise: x' = height - y, y' = x.
        turn_pixels = K.new_tensor([[0.0, -1.0, height], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        turn_axes = K.new_tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        K = turn_pixels @ K @ turn_axes.T
        if T_world_camera is not None:
            T_stored_upright = torch.eye(4, dtype=T_world_camera.dtype, device=T_world_camera.device)
            T_stored_upright[:3, :3] = turn_axes.T.to(T_world_camera)
            T_world_camera = T_world_camera @ T_stored_upright
        width, height = height, width
    return K, T_world_camera
