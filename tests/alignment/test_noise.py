"""The noise of photos: of known noise, and of what is none."""

import pytest
import torch

from lora3d_ns.alignment.noise import noise_share
from lora3d_ns.rooms.benchmark_scenes import make_scene


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_noise_of_a_known_size_is_found(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 6, 96)
    smooth = (0.5 + 0.2 * torch.sin(x)[None, :, None] * torch.cos(x)[None, None, :]).expand(3, -1, -1)
    grey_noise = sigma * torch.randn(1, 96, 96, generator=generator)
    noisy = smooth + grey_noise
    assert noise_share(noisy) == pytest.approx(sigma / float(noisy.std()), rel=0.05)
    assert noise_share(smooth.contiguous()) < 0.01


def test_edges_are_no_noise() -> None:
    board = torch.zeros(3, 64, 64)
    board[:, :, 32:] = 1.0
    board[:, 20:] += 0.5
    assert noise_share(board) < 0.01


def test_photos_of_one_colour_and_tiny_ones() -> None:
    assert noise_share(torch.full((3, 8, 8), 0.3)) == 0.0
    assert noise_share(torch.rand(3, 2, 9)) == 0.0


def test_dark_rooms_are_noisy_and_others_are_not() -> None:
    shares = {
        domain: [
            noise_share(image) for image in make_scene(domain, 1, size=(64, 64), seed_offset=700).test.views.images
        ]
        for domain in ("nominal", "dark")
    }
    assert min(shares["dark"]) > 0.25 > max(shares["nominal"])
