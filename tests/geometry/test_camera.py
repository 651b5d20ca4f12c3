import math

import pytest
import torch

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.geometry.camera import focal_from_points, points_from_depth, project


def intrinsics(focal_px: float, height: int, width: int) -> torch.Tensor:
    return torch.tensor([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])


def test_points_from_depth_project_onto_their_own_pixels() -> None:
    K = torch.tensor([[50.0, 0.0, 21.0], [0.0, 60.0, 17.0], [0.0, 0.0, 1.0]])
    points = points_from_depth(torch.rand(30, 40) + 0.5, K)
    torch.testing.assert_close(project(points, K), pixel_centres(30, 40), rtol=0, atol=1e-4)


def test_a_point_on_the_axis_is_at_the_principal_point() -> None:
    K = intrinsics(50.0, 30, 40)
    assert project(torch.tensor([0.0, 0.0, 7.0]), K).tolist() == [20.0, 15.0]


@pytest.mark.parametrize("shape", [(30, 40), (41, 23)])
def test_focal_comes_back_from_exact_points(shape: tuple[int, int]) -> None:
    points = points_from_depth(torch.rand(*shape) + 0.5, intrinsics(37.0, *shape))
    assert float(focal_from_points(points, torch.ones(shape))) == pytest.approx(37.0, rel=1e-5)


def test_focal_is_robust_and_ignores_points_behind() -> None:
    points = points_from_depth(torch.rand(30, 40) + 0.5, intrinsics(37.0, 30, 40))
    points[:6] = torch.randn(6, 40, 3, generator=torch.Generator().manual_seed(0))
    assert float(focal_from_points(points, torch.ones(30, 40))) == pytest.approx(37.0, rel=0.02)


def test_focal_of_points_behind_the_camera_is_not_a_number() -> None:
    assert math.isnan(float(focal_from_points(-torch.ones(4, 5, 3), torch.ones(4, 5))))
