import math

import pytest
import torch

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.geometry.camera import focal_from_points, focal_from_samples, points_from_depth, project


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


def test_focal_lengths_of_a_batch_are_those_one_by_one() -> None:
    """Some pixels of one photo, its principal point off the centre, three point maps of it with noise and weights."""
    generator = torch.Generator().manual_seed(0)
    K = torch.tensor([[37.0, 0.0, 17.0], [0.0, 37.0, 18.0], [0.0, 0.0, 1.0]])
    chosen = torch.randperm(1200, generator=generator)[:200]
    depth = torch.rand(3, 30, 40, generator=generator) + 0.5
    points = torch.stack([points_from_depth(one, K).reshape(-1, 3)[chosen] for one in depth])
    points[1, :, :2] *= 0.9
    points += 0.01 * torch.randn(points.shape, generator=generator)
    weights = torch.rand(3, 200, generator=generator)
    pixels = pixel_centres(30, 40).reshape(-1, 2)[chosen] - K[:2, 2]
    together = focal_from_samples(points, pixels, weights)
    assert together.shape == (3,)
    for number, focal in enumerate(together):
        alone = focal_from_samples(points[number], pixels, weights[number])
        assert float(focal) == pytest.approx(float(alone), rel=1e-6)
    assert together.tolist() == pytest.approx([37.0, 37.0 / 0.9, 37.0], rel=0.02)
