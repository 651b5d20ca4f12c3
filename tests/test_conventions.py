"""The conventions are executable: what they say holds as laws and on known answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora3d_ns.conventions import (
    K_from_integer_centres,
    K_to_integer_centres,
    PixelAffine,
    opencv_from_opengl,
    opengl_from_opencv,
    pixel_centres,
    upright_camera_from_stored,
)
from lora3d_ns.errors import InvalidDataError, KnownCameraError

law = settings(deadline=None, derandomize=True)
scales = st.floats(0.01, 100.0)
offsets = st.floats(-5000.0, 5000.0)
affines = st.builds(PixelAffine, scale_x=scales, scale_y=scales, offset_x_px=offsets, offset_y_px=offsets)
coordinates = st.floats(-10000.0, 10000.0)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def intrinsics(focal_x: float, focal_y: float, centre_x: float, centre_y: float) -> torch.Tensor:
    return tensor([[focal_x, 0.0, centre_x], [0.0, focal_y, centre_y], [0.0, 0.0, 1.0]])


def project(K: torch.Tensor, points_camera: torch.Tensor) -> torch.Tensor:
    homogeneous = points_camera @ K.T
    return homogeneous[..., :2] / homogeneous[..., 2:]


def some_pose(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation * torch.linalg.det(rotation)
    pose[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
    return pose


@law
@given(affine=affines, x=coordinates, y=coordinates)
def test_pixel_affine_round_trip(affine: PixelAffine, x: float, y: float) -> None:
    pixels = tensor([x, y])
    there_and_back = affine.source_from_network(affine.network_from_source(pixels))
    torch.testing.assert_close(there_and_back, pixels, atol=1e-8, rtol=1e-9)
    back_and_there = affine.network_from_source(affine.source_from_network(pixels))
    torch.testing.assert_close(back_and_there, pixels, atol=1e-5, rtol=1e-9)  # offset / scale costs digits


@law
@given(affine=affines, x=coordinates, y=coordinates)
def test_pixel_affine_matrix_is_the_same_map(affine: PixelAffine, x: float, y: float) -> None:
    by_matrix = affine.matrix @ tensor([x, y, 1.0])
    torch.testing.assert_close(by_matrix[:2], affine.source_from_network(tensor([x, y])), atol=1e-8, rtol=1e-12)


@law
@given(affine=affines, focal=st.floats(10.0, 10000.0), x=st.floats(-3, 3), y=st.floats(-3, 3), z=st.floats(0.1, 100))
def test_transported_K_projects_to_transported_pixels(
    affine: PixelAffine, focal: float, x: float, y: float, z: float
) -> None:
    K_network = intrinsics(focal, 1.1 * focal, 250.0, 190.0)
    point = tensor([x * z, y * z, z])
    projected = project(affine.K_source_from_network(K_network), point)
    expected = affine.source_from_network(project(K_network, point))
    torch.testing.assert_close(projected, expected, atol=1e-6, rtol=1e-9)
    K_back = affine.K_network_from_source(affine.K_source_from_network(K_network))
    torch.testing.assert_close(K_back, K_network, atol=1e-6, rtol=1e-9)


def test_corners_map_to_corners_without_half_pixel_correction() -> None:
    # A photo of 8x4 pixels shrunk to 4x2: corners stay corners, and the first centre is between four source pixels.
    affine = PixelAffine(scale_x=2.0, scale_y=2.0, offset_x_px=0.0, offset_y_px=0.0)
    assert affine.source_from_network(tensor([[0.0, 0.0], [4.0, 2.0]])).tolist() == [[0.0, 0.0], [8.0, 4.0]]
    assert affine.source_from_network(tensor([0.5, 0.5])).tolist() == [1.0, 1.0]


def test_pixel_centres_are_at_one_half() -> None:
    centres = pixel_centres(2, 3)
    assert centres.shape == (2, 3, 2)
    assert centres[0, 0].tolist() == [0.5, 0.5]
    assert centres[1, 2].tolist() == [2.5, 1.5]
    # Their mean is the middle of the image.
    assert centres.mean(dim=(0, 1)).tolist() == [1.5, 1.0]


def test_integer_centres_shift_the_principal_point_by_half_a_pixel() -> None:
    K = intrinsics(500.0, 510.0, 319.5, 239.5)
    shifted = K_from_integer_centres(K)
    assert shifted[:2, 2].tolist() == [320.0, 240.0]
    assert shifted[0, 0] == 500.0
    assert torch.equal(K_to_integer_centres(shifted), K)
    # The same point, seen in the same pixel: its index with integer centres, its centre with half.
    point = tensor([0.3, -0.2, 2.0])
    torch.testing.assert_close(project(shifted, point), project(K, point) + 0.5)
    assert K[0, 2] == 319.5, "the input stays as it was"


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scales_must_be_positive(scale: float) -> None:
    with pytest.raises(InvalidDataError, match="positive"):
        PixelAffine(scale_x=scale, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0)


def test_opengl_flip_is_an_involution_and_turns_the_axes() -> None:
    poses = torch.stack([some_pose(seed) for seed in range(5)])
    flipped = opengl_from_opencv(poses)
    assert torch.equal(opencv_from_opengl(flipped), poses)
    # Position and x axis stay, y and z axes turn over; still a rotation.
    assert torch.equal(flipped[:, :3, 3], poses[:, :3, 3])
    assert torch.equal(flipped[:, :3, 0], poses[:, :3, 0])
    assert torch.equal(flipped[:, :3, 1:3], -poses[:, :3, 1:3])
    torch.testing.assert_close(torch.linalg.det(flipped[:, :3, :3]), torch.ones(5, dtype=torch.float64))


def upright_from_stored(x: float, y: float, width: int, height: int, orientation: int) -> tuple[float, float]:
    """Where a stored pixel goes when the photo is shown as its EXIF orientation says."""
    return {1: (x, y), 3: (width - x, height - y), 6: (height - y, x), 8: (y, width - x)}[orientation]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_upright_camera_sees_the_turned_picture(orientation: int) -> None:
    width, height = 640, 480
    K = intrinsics(500.0, 520.0, 300.0, 250.0)
    T_world_camera = some_pose(3)
    points_camera = tensor([[0.4, -0.3, 2.0], [-0.2, 0.5, 3.0], [0.0, 0.0, 1.0]])
    points_world = points_camera @ T_world_camera[:3, :3].T + T_world_camera[:3, 3]

    K_upright, T_world_upright = upright_camera_from_stored(K, T_world_camera, orientation, (width, height))  # pyright: ignore[reportArgumentType]

    assert T_world_upright is not None
    points_upright = (points_world - T_world_upright[:3, 3]) @ T_world_upright[:3, :3]
    stored_pixels = project(K, points_camera)
    expected = [upright_from_stored(x, y, width, height, orientation) for x, y in stored_pixels.tolist()]
    torch.testing.assert_close(project(K_upright, points_upright), tensor(expected))
    # The turned K is a camera's: positive focal lengths, no skew; the turned pose is rigid and has not moved.
    assert K_upright[0, 0] > 0
    assert K_upright[1, 1] > 0
    assert K_upright[0, 1].abs() < 1e-9
    assert torch.equal(T_world_upright[:3, 3], T_world_camera[:3, 3])
    torch.testing.assert_close(torch.linalg.det(T_world_upright[:3, :3]), tensor(1.0))
    torch.testing.assert_close(points_upright[:, 2], points_camera[:, 2])


def test_upright_camera_without_a_pose() -> None:
    K_upright, pose = upright_camera_from_stored(intrinsics(500.0, 520.0, 300.0, 250.0), None, 6, (640, 480))
    assert pose is None
    torch.testing.assert_close(K_upright, intrinsics(520.0, 500.0, 230.0, 300.0))


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_mirrored_photos_have_no_camera(orientation: int) -> None:
    with pytest.raises(KnownCameraError, match="mirrors"):
        upright_camera_from_stored(intrinsics(500.0, 500.0, 320.0, 240.0), None, orientation, (640, 480))  # pyright: ignore[reportArgumentType]
