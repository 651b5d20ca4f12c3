"""Losses and metrics over the pixels that count."""

import logging
import math
import socket
import sys
import types

import pytest
import torch
from torch import Tensor

from lora3d_ns.plugin.metrics import PerceptualMetric, image_metrics, masked_loss, structural_similarity


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(40, 50, 3, generator=generator)
    return (image + 0.1 * torch.randn(40, 50, 3, generator=generator)).clamp(0, 1), image


def test_a_mask_that_keeps_all_changes_nothing(pictures: tuple[Tensor, Tensor]) -> None:
    rendered, image = pictures
    everything = torch.ones(40, 50, 1, dtype=torch.bool)
    plain = masked_loss(rendered, image, None, ssim_share=0.2)
    assert float(masked_loss(rendered, image, everything, ssim_share=0.2)) == pytest.approx(float(plain), rel=1e-6)
    expected = 0.8 * (rendered - image).abs().mean() + 0.2 * (1 - structural_similarity(rendered, image))
    assert float(plain) == pytest.approx(float(expected), rel=1e-6)


def test_what_is_masked_has_no_say_and_no_gradient(pictures: tuple[Tensor, Tensor]) -> None:
    rendered, image = pictures
    mask = torch.ones(40, 50, 1, dtype=torch.bool)
    mask[:20] = False
    other = rendered.clone()
    other[:20] = 0.0
    assert float(masked_loss(other, image, mask, ssim_share=0.2)) == pytest.approx(
        float(masked_loss(rendered, image, mask, ssim_share=0.2)), rel=1e-6
    )
    assert image_metrics(other, image, mask, None) == pytest.approx(image_metrics(rendered, image, mask, None))
    leaf = rendered.clone().requires_grad_()
    masked_loss(leaf, image, mask, ssim_share=0.2).backward()
    assert leaf.grad is not None
    assert bool((leaf.grad[:20] == 0).all())
    assert bool((leaf.grad[20:] != 0).any())


def test_the_l1_part_is_the_mean_over_the_rest(pictures: tuple[Tensor, Tensor]) -> None:
    rendered, image = pictures
    mask = torch.rand(40, 50, 1, generator=torch.Generator().manual_seed(1)) > 0.4
    expected = (rendered - image).abs()[mask[..., 0]].mean()
    assert float(masked_loss(rendered, image, mask, ssim_share=0.0)) == pytest.approx(float(expected), rel=1e-5)
    psnr = -10 * math.log10(float((rendered - image).square()[mask[..., 0]].mean()))
    assert image_metrics(rendered, image, mask, None)["psnr"] == pytest.approx(psnr, rel=1e-5)


def test_nothing_counts(pictures: tuple[Tensor, Tensor]) -> None:
    rendered, image = pictures
    nothing = torch.zeros(40, 50, 1, dtype=torch.bool)
    leaf = rendered.clone().requires_grad_()
    loss = masked_loss(leaf, image, nothing, ssim_share=0.2)
    loss.backward()
    assert float(loss) == 0.0
    assert leaf.grad is not None
    assert not bool(leaf.grad.any())


def test_equal_pictures(pictures: tuple[Tensor, Tensor]) -> None:
    metrics = image_metrics(pictures[1], pictures[1], None, None)
    assert metrics == {"psnr": pytest.approx(120.0), "ssim": pytest.approx(1.0)}


class _Stub(torch.nn.Module):
    def __init__(self, normalize: bool) -> None:
        super().__init__()
        assert normalize

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        assert first.shape == (1, 3, 40, 50)
        return (first - second).abs().mean()


def put_lpips(monkeypatch: pytest.MonkeyPatch, kind: object) -> None:
    module = types.ModuleType("torchmetrics.image.lpip")
    module.LearnedPerceptualImagePatchSimilarity = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", module)


def test_lpips_where_its_weights_are_there(monkeypatch: pytest.MonkeyPatch, pictures: tuple[Tensor, Tensor]) -> None:
    put_lpips(monkeypatch, _Stub)
    metrics = image_metrics(*pictures, None, PerceptualMetric())
    assert metrics["lpips"] == pytest.approx(float((pictures[0] - pictures[1]).abs().mean()), rel=1e-5)


def test_lpips_is_left_out_with_a_word_where_they_are_not(
    monkeypatch: pytest.MonkeyPatch, pictures: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def missing(normalize: bool) -> None:
        calls.append((normalize, socket.getdefaulttimeout()))
        raise OSError("no network")

    put_lpips(monkeypatch, missing)
    perceptual = PerceptualMetric()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert "lpips" not in image_metrics(*pictures, None, perceptual)
    # Asked for once, with a limit to the waiting, and said once.
    assert calls == [(True, 10.0)]
    assert [record.getMessage() for record in caplog.records if "LPIPS" in record.getMessage()] == [
        "LPIPS is left out of the metrics: its weights cannot be had (OSError: no network). `lora3d doctor` says where "
        "to put them"
    ]
    assert socket.getdefaulttimeout() is None
