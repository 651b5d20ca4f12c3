"""The comparison of rasterizers: it accepts rounding, and finds what is wrong."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_cuda import CudaTensor, simulated_cuda
from torch import Tensor

from lora3d_ns.benchmark_rasterizer import Cloud, make_cloud
from lora3d_ns.errors import InvalidDataError, RasterizerError
from lora3d_ns.gpu_check import part_build, part_rasterizer
from lora3d_ns.gpu_check.part_rasterizer import (
    GRADIENTS_GOAL,
    RADII_GOAL,
    WORST_GOAL,
    compared,
    differences_of,
    median_pass_ms,
    outcome,
    row_of,
    run,
    with_sloping_colours,
)
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row
from lora3d_ns.splat.rasterize_cpu import rasterization


@pytest.fixture(scope="module")
def cloud() -> Cloud:
    return with_sloping_colours(make_cloud(400, (48, 32)))


def in_float64(cloud: Cloud, given: dict[str, Any]) -> dict[str, Tensor]:
    return outcome(rasterization, cloud, given, "cpu", torch.float64)


def rows_with(cloud: Cloud, change: Callable[[dict[str, Tensor]], None]) -> dict[str, Row]:
    """Rows of one picture, after something was done to the other program's arrays."""

    def other(cloud: Cloud, given: dict[str, Any]) -> dict[str, Tensor]:
        arrays = in_float64(cloud, given)
        change(arrays)
        return arrays

    rows = compared(cloud, other, modes=("RGB+ED",), rasterize_modes=("classic",), degrees=(1,))
    return {row.name: row for row in rows}


def test_every_kind_of_picture_has_its_rows(tmp_path: Path) -> None:
    rows = {row.name: row for row in run(PartSettings(device="cpu", tiny=True, folder=tmp_path))}
    kinds = [f"{mode}, {how}" for how in ("classic", "antialiased") for mode in ("RGB", "RGB+ED", "D")]
    expected = [f"{kind}: {what}" for kind in kinds for what in ("values", "gradients")]
    expected += ["worst of all values", "worst of all gradients", "radii that differ, share"]
    assert list(rows) == [*expected, "600 Gaussians, 64x48, forward and backward"]
    for name in expected:
        assert rows[name].met, rows[name]
        assert "float64" in rows[name].note
    # They really are two programs.
    assert all(1e-9 < (rows[name].value or 0.0) < 1e-3 for name in expected[:12])
    speed = rows["600 Gaussians, 64x48, forward and backward"]
    assert speed.value is not None
    assert speed.value > 0
    assert speed.peer is None


def test_rounding_is_accepted(cloud: Cloud) -> None:
    rows = rows_with(cloud, lambda _arrays: None)
    assert len(rows) == 5
    assert all(row.met for row in rows.values())


@pytest.mark.parametrize(
    ("name", "missed"),
    [
        ("colour", "RGB+ED, classic: values"),
        ("depth", "RGB+ED, classic: values"),
        ("alpha", "RGB+ED, classic: values"),
        *((name, "RGB+ED, classic: gradients") for name in ("means", "quats", "scales", "opacities", "colors")),
        *((name, "RGB+ED, classic: gradients") for name in ("viewmats", "means2d", "absgrad")),
    ],
)
def test_an_array_that_is_off_misses_its_goal(cloud: Cloud, name: str, missed: str) -> None:
    def disturb(arrays: dict[str, Tensor]) -> None:
        arrays[name] = arrays[name] + 5e-3 * arrays[name].abs().max()

    rows = rows_with(cloud, disturb)
    assert [row.name for row in rows.values() if not row.met] == [missed]
    value = rows[missed].value
    assert value is not None
    assert 2e-3 < value < 1e-2
    assert rows[missed].note.startswith(name)
    assert "worst 0.005" in rows[missed].note


def test_a_few_pixels_may_be_off_but_not_by_much(cloud: Cloud) -> None:
    def one_pixel(by: float) -> Callable[[dict[str, Tensor]], None]:
        def disturb(arrays: dict[str, Tensor]) -> None:
            arrays["alpha"][0, 5, 5] += by

        return disturb

    rows = rows_with(cloud, one_pixel(4e-3))
    assert all(row.met for row in rows.values())
    worst = rows["worst of all values"].value
    assert worst == pytest.approx(4e-3, rel=0.1)
    assert "0.00065 of them beyond the goal" in rows["RGB+ED, classic: values"].note
    rows = rows_with(cloud, one_pixel(0.1))
    assert [row.name for row in rows.values() if not row.met] == ["worst of all values"]


def test_what_is_no_number_is_never_accepted(cloud: Cloud) -> None:
    def disturb(arrays: dict[str, Tensor]) -> None:
        arrays["means"][3, 1] = math.nan

    rows = rows_with(cloud, disturb)
    assert rows["worst of all gradients"].met is False


def test_radii_that_differ_are_counted(cloud: Cloud) -> None:
    def disturb(arrays: dict[str, Tensor]) -> None:
        arrays["radii"][0, :8] += 1

    rows = rows_with(cloud, disturb)
    assert [(row.name, row.value) for row in rows.values() if not row.met] == [("radii that differ, share", 8 / 400)]


def test_programs_that_return_other_arrays_are_no_comparison(cloud: Cloud) -> None:
    def disturb(arrays: dict[str, Tensor]) -> None:
        del arrays["quats"]

    with pytest.raises(InvalidDataError, match="other arrays"):
        differences_of({"image": torch.zeros(3)}, {"image": torch.zeros(4)})
    with pytest.raises(InvalidDataError, match="other arrays"):
        rows_with(cloud, disturb)


def test_the_row_names_the_array_that_is_farthest_off() -> None:
    ours = {"means": torch.zeros(2000), "quats": torch.zeros(2000)}
    theirs = {"means": torch.full((2000,), 2.0), "quats": torch.ones(2000)}
    ours = {"means": theirs["means"] * 1.01, "quats": theirs["quats"] * 1.0}
    ours["quats"][0] = 1.5
    row = row_of("gradients", differences_of(ours, theirs), GRADIENTS_GOAL)
    assert row.value == pytest.approx(0.01, rel=1e-4)
    assert row.note == "means, 99.9% of the numbers; 1 of them beyond the goal; worst 0.5 (quats)"


def test_a_gsplat_that_cannot_be_built_ends_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_folder: Path) -> None:
        raise RasterizerError("no compiler", way_out="Get one")

    monkeypatch.setattr(part_build, "ensure_gsplat", refused)
    rows = list(run(PartSettings(device="cuda", tiny=True, folder=tmp_path)))
    assert [(row.name, row.failed) for row in rows] == [("gsplat", True)]


def on_cuda(**given: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Our program in gsplat's place on the simulated device."""
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    assert all(isinstance(value, CudaTensor) for value in tensors.values())
    here: dict[str, Any] = {name: value.cpu() if name in tensors else value for name, value in given.items()}
    image, alpha, info = rasterization(**here)
    there = {name: value.to("cuda") if isinstance(value, Tensor) else value for name, value in info.items()}
    return image.to("cuda"), alpha.to("cuda"), there


@pytest.mark.parametrize("degree", [None, 2])
def test_on_a_simulated_device(cloud: Cloud, degree: int | None) -> None:
    given = {"render_mode": "RGB+ED", "rasterize_mode": "classic", "sh_degree": degree}
    with simulated_cuda():
        theirs = outcome(on_cuda, cloud, given, "cuda", torch.float32)
        seconds = median_pass_ms(on_cuda, cloud, "cuda", warm_up=1, repeats=1)
    assert all(type(array) is Tensor for array in theirs.values())
    assert seconds > 0
    ours = outcome(rasterization, cloud, given, "cpu", torch.float32)
    # Copies of the centres, which the picture does not depend on, are what the stand-in hands out.
    for arrays in (ours, theirs):
        del arrays["means2d"], arrays["absgrad"]
    assert ours.pop("radii").equal(theirs.pop("radii"))
    assert max(found.worst for found in differences_of(ours, theirs)) < 1e-6


def test_the_goals_are_the_issues() -> None:
    assert (part_rasterizer.VALUES_GOAL.limit, GRADIENTS_GOAL.limit) == (1e-4, 1e-3)
    assert max(WORST_GOAL.limit, RADII_GOAL.limit) <= 2e-2
