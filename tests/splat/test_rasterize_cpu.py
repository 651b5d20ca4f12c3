"""The CPU rasterizer against its plain twin: pictures, gradients of everything, and laws that any picture obeys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import reference.rasterize
import torch
from torch import Tensor

from lora3d_ns.splat import rasterize_cpu

rasterization: Any = rasterize_cpu.rasterization
twin: Any = reference.rasterize.rasterization
INPUTS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")
WIDTH, HEIGHT = 40, 30


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Arguments of both programs, in float64."""

    tensors: dict[str, Tensor]
    Ks: Tensor
    width: int
    height: int

    def leaves(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        return {name: tensor.detach().to(dtype, copy=True).requires_grad_() for name, tensor in self.tensors.items()}


def make_scene(
    count: int = 80,
    *,
    cameras: int = 2,
    coefficients: int | None = 16,
    per_camera: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    seed: int = 1,
) -> Scene:
    """Gaussians before slightly turned cameras; some beyond the picture's edge, where the local affine map is clamped,
    some behind or too near; a few nearly opaque ones, behind which pixels are done."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width, height = size
    means = torch.cat([(uniform(count, 2) - 0.5) * 4, 0.5 + 5 * uniform(count, 1)], dim=-1)
    beyond = slice(None, None, count // 6 + 1)
    means[beyond] = torch.tensor([1.5, 0.5, 1.5]).double() + 0.1 * normal(len(means[beyond]), 3)
    means[1 :: count // 3 + 1, 2] -= 3.0
    scales = 0.02 + 0.3 * uniform(count, 3)
    scales[beyond] = 0.25 + 0.1 * uniform(len(means[beyond]), 3)
    opacities = 0.1 + 0.89 * uniform(count)
    opacities[2::5] = 0.9995
    viewmats = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    skew = normal(cameras, 3, 3)
    viewmats[:, :3, :3] = torch.linalg.matrix_exp(0.1 * (skew - skew.mT))
    viewmats[:, :3, 3] = 0.2 * normal(cameras, 3)
    shape = (cameras,) * per_camera + (count,) + (() if coefficients is None else (coefficients,)) + (3,)
    K = torch.tensor([[0.9 * width, 0, width / 2 + 1], [0, 1.1 * height, height / 2 - 2], [0, 0, 1]]).double()
    tensors = {
        "means": means,
        "quats": normal(count, 4) * 3,
        "scales": scales,
        "opacities": opacities,
        "colors": 0.5 * normal(*shape),
        "viewmats": viewmats,
        "backgrounds": uniform(cameras, 3),
    }
    return Scene(tensors=tensors, Ks=K.repeat(cameras, 1, 1), width=width, height=height)


def rendered_with_gradients(
    program: Callable[..., Any], scene: Scene, dtype: torch.dtype = torch.float64, **settings: Any
) -> dict[str, Tensor]:
    """Picture, opacity, and the gradients of a fixed random sum of both; centres in the image among them."""
    leaves = scene.leaves(dtype)
    image, alpha, info = program(**leaves, Ks=scene.Ks.to(dtype), width=scene.width, height=scene.height, **settings)
    info["means2d"].retain_grad()
    generator = torch.Generator().manual_seed(0)
    terms = [
        (output * torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype)).sum()
        for output in (image, alpha)
    ]
    (terms[0] + terms[1]).backward()
    found = {"image": image.detach(), "alpha": alpha.detach(), "radii": info["radii"], "means2d": info["means2d"].grad}
    return found | {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def relative_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Greatest difference of each array over its greatest value."""
    assert torch.equal(found["radii"], expected["radii"])
    errors = {}
    for name in expected:
        # Where nothing depends on an input, autograd may say None or zero.
        assert name in found
        if name != "radii":
            unit = expected[name].abs().max()
            errors[name] = float((found[name].double() - expected[name]).abs().max() / unit.clamp(min=1e-12))
    return errors


CASES = {
    "degree 3": ({}, {"sh_degree": 3}),
    "degree 2 of 16 coefficients": ({}, {"sh_degree": 2}),
    "degree 1 of 4, per camera": ({"coefficients": 4, "per_camera": True}, {"sh_degree": 1}),
    "degree 0 of 1": ({"coefficients": 1}, {"sh_degree": 0}),
    "colours": ({"coefficients": None}, {}),
    "colours per camera": ({"coefficients": None, "per_camera": True}, {}),
    "colours and depth": ({"coefficients": None}, {"render_mode": "RGB+D"}),
    "degree 3 and expected depth": ({}, {"sh_degree": 3, "render_mode": "RGB+ED"}),
    "expected depth": ({}, {"sh_degree": 3, "render_mode": "ED"}),
    "depth of three cameras": ({"cameras": 3}, {"sh_degree": 1, "render_mode": "D"}),
    "planes, clip and blur": (
        {},
        {"sh_degree": 1, "near_plane": 0.8, "far_plane": 4.0, "radius_clip": 6.0, "eps2d": 0.1},
    ),
    "one column": ({"size": (1, 33)}, {"sh_degree": 1}),
}


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("case", CASES)
def test_pictures_and_gradients_are_the_twins(case: str, mode: str) -> None:
    of_scene, settings = CASES[case]
    scene = make_scene(**of_scene)
    settings = settings | {"rasterize_mode": mode}
    expected = rendered_with_gradients(twin, scene, **settings)
    assert float(expected["alpha"].mean()) > 0.05
    assert {"means", "scales", "opacities", "viewmats"} <= expected.keys()
    errors = relative_errors(rendered_with_gradients(rasterization, scene, **settings), expected)
    # The worst seen of 72 scenes are 5e-14 and, in float32, 2.5e-5 (here 7e-6).
    assert max(errors.values()) < 1e-12, errors
    errors = relative_errors(rendered_with_gradients(rasterization, scene, torch.float32, **settings), expected)
    assert max(errors.values()) < 1e-4, errors


def test_the_scenes_have_all_the_cases_in_them() -> None:
    """Clamped directions, Gaussians behind the camera, alpha at its greatest and pixels that are done early."""
    scene = make_scene()
    t = scene.tensors
    points = t["means"] @ t["viewmats"][0, :3, :3].T + t["viewmats"][0, :3, 3]
    _, _, info = rasterization(**t, Ks=scene.Ks, width=WIDTH, height=HEIGHT, sh_degree=0)
    seen = info["radii"][0] > 0
    limit = (WIDTH - scene.Ks[0, 0, 2]) / scene.Ks[0, 0, 0] + 0.15 * WIDTH / scene.Ks[0, 0, 0]
    assert int((seen & (points[:, 0] / points[:, 2] > limit)).sum()) >= 2
    assert bool((points[:, 2] < 0.01).any())
    _, alpha, _ = rasterization(**t, Ks=scene.Ks, width=WIDTH, height=HEIGHT, sh_degree=0)
    assert float(alpha.max()) > 0.999
    # The last of a pixel is left out when less than 1e-4 would pass.
    assert float(alpha.max()) < 1 - 1e-4


@pytest.mark.parametrize("program", [rasterization, twin], ids=["ours", "twin"])
@pytest.mark.parametrize("mode", ["RGB", "RGB+ED"])
def test_gradients_are_those_of_finite_differences(program: Callable[..., Any], mode: str) -> None:
    # Opacities below the greatest alpha, and few enough of them that no pixel is done.
    scene = make_scene(6, cameras=1, coefficients=4, size=(12, 10), seed=5)
    scene.tensors["opacities"].clamp_(max=0.7)
    leaves = scene.leaves()

    def render(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        arguments = dict(zip(INPUTS, tensors, strict=True))
        image, alpha, _ = program(
            **arguments, Ks=scene.Ks, width=scene.width, height=scene.height, sh_degree=1, render_mode=mode
        )
        # Where nothing is seen, expected depth is 0 / 1e-10.
        return image * (alpha > 0.01), alpha

    assert torch.autograd.gradcheck(render, [leaves[name] for name in INPUTS], eps=1e-7, atol=1e-5, rtol=1e-4)


def test_absgrad_is_the_sum_over_pixels_of_absolute_gradients() -> None:
    scene = make_scene(20, cameras=2, size=(18, 17), seed=3)
    leaves = scene.leaves()
    settings = {"Ks": scene.Ks, "width": scene.width, "height": scene.height, "sh_degree": 2}
    image, _, info = rasterization(**leaves, **settings, absgrad=True)
    means2d = info["means2d"]
    means2d.retain_grad()
    assert not hasattr(means2d, "absgrad")
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (image * weights).sum().backward()

    image, _, info = twin(**scene.leaves(), **settings)
    expected = torch.zeros_like(info["means2d"])
    for pixel in (image * weights).sum(dim=-1).flatten():
        (gradient,) = torch.autograd.grad(pixel, info["means2d"], retain_graph=True)
        expected += gradient.abs()
    assert float(expected.max()) > 0.1
    torch.testing.assert_close(means2d.absgrad, expected, rtol=1e-9, atol=1e-12)
    assert bool((means2d.absgrad >= means2d.grad.abs() - 1e-12).all())


# --- laws -------------------------------------------------------------------------------------------


def render(scene: Scene, dtype: torch.dtype = torch.float64, **changed: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    tensors = {name: tensor.to(dtype) for name, tensor in scene.tensors.items()}
    fixed: dict[str, Any] = {"Ks": scene.Ks.to(dtype), "width": scene.width, "height": scene.height, "sh_degree": 3}
    return rasterization(**(tensors | fixed | changed))


def test_scene_and_cameras_may_move_together() -> None:
    scene = make_scene(coefficients=None)
    skew = torch.tensor([[0.0, -0.9, 0.4], [0.9, 0.0, -1.3], [-0.4, 1.3, 0.0]], dtype=torch.float64)
    R, t = torch.linalg.matrix_exp(skew), torch.tensor([3.0, -2.0, 7.0], dtype=torch.float64)
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3], world[:3, 3] = R, t
    # The quaternion of R, from its axis and angle.
    axis = torch.tensor([1.3, 0.4, 0.9], dtype=torch.float64)
    half = 0.5 * axis.norm()
    turn = torch.cat([half.cos()[None], half.sin() * axis / axis.norm()])
    w, v = turn[:1], turn[1:].expand(len(scene.tensors["quats"]), 3)
    q0, q = scene.tensors["quats"][:, :1], scene.tensors["quats"][:, 1:]
    moved_quats = torch.cat(
        [w * q0 - (v * q).sum(dim=-1, keepdim=True), w * q + q0 * v + torch.linalg.cross(v, q)], dim=-1
    )
    image, alpha, _ = render(scene, sh_degree=None)
    moved = {"means": scene.tensors["means"] @ R.T + t, "quats": moved_quats}
    moved["viewmats"] = scene.tensors["viewmats"] @ torch.inverse(world)
    again, alpha_again, _ = render(scene, sh_degree=None, **moved)
    assert not torch.equal(image, again)
    torch.testing.assert_close(again, image, rtol=0, atol=1e-11)
    torch.testing.assert_close(alpha_again, alpha, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_gaussians_does_not_matter(dtype: torch.dtype) -> None:
    scene = make_scene(200)
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shuffled = {
        name: scene.tensors[name][shuffle].to(dtype) for name in ("means", "quats", "scales", "opacities", "colors")
    }
    image, alpha, info = render(scene, dtype)
    again, alpha_again, info_again = render(scene, dtype, **shuffled)
    assert torch.equal(image, again)
    assert torch.equal(alpha, alpha_again)
    assert torch.equal(info["radii"][:, shuffle], info_again["radii"])


def test_an_opaque_gaussian_hides_what_is_behind_it() -> None:
    wide = torch.full((2, 3), 50.0)
    arguments = {
        "quats": torch.tensor([[1.0, 0, 0, 0]] * 2),
        "scales": wide,
        "opacities": torch.ones(2),
        "colors": torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        "viewmats": torch.eye(4)[None],
        "Ks": torch.tensor([[[20.0, 0, 10], [0, 20, 10], [0, 0, 1]]]),
        "width": 20,
        "height": 20,
    }
    far_first, _, _ = rasterization(means=torch.tensor([[0.0, 0, 8], [0, 0, 5]]), **arguments)
    assert float(far_first[0, 10, 10, 0]) > 0.99
    assert float(far_first[0, 10, 10, 1]) < 2e-3
    near_first, alpha, _ = rasterization(means=torch.tensor([[0.0, 0, 5], [0, 0, 8]]), **arguments)
    assert float(near_first[0, 10, 10, 1]) > 0.99
    # alpha is at most 0.999, and two of them let 1e-6 pass: the second is left out.
    assert float(alpha[0, 10, 10, 0]) == pytest.approx(0.999, abs=1e-6)
    assert float(near_first[0, 10, 10, 0]) == 0.0


def test_expected_depth_of_one_gaussian_is_its_depth() -> None:
    scene = make_scene(1, cameras=1)
    scene.tensors["means"][:] = torch.tensor([0.0, 0.0, 3.0]).double()
    scene.tensors["viewmats"][:] = torch.eye(4).double()
    image, alpha, info = render(scene, render_mode="RGB+ED")
    seen = alpha[..., 0] > 0
    assert int(seen.sum()) > 20
    torch.testing.assert_close(image[..., 3][seen], torch.full_like(image[..., 3][seen], 3.0))
    assert bool((image[..., 3][~seen] == 0).all())
    assert info["depths"].tolist() == [[3.0]]


def test_backgrounds_show_where_light_passes() -> None:
    scene = make_scene()
    black, alpha, _ = render(scene, backgrounds=None)
    image, _, _ = render(scene)
    expected = black + (1 - alpha) * scene.tensors["backgrounds"][:, None, None, :]
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-14)


def test_leaving_out_what_cannot_be_seen_changes_nothing() -> None:
    """Tiles are left out by a bound on alpha; with tiles of every Gaussian's whole square the bits are the same."""
    scene = make_scene(300, cameras=1)
    scene.tensors["opacities"] *= 0.1
    scene.tensors["scales"][:, 0] *= 0.1
    expected, _, _ = twin(
        **scene.tensors, Ks=scene.Ks, width=scene.width, height=scene.height, sh_degree=3, render_mode="RGB"
    )
    image, _, info = render(scene)
    assert len(info["flatten_ids"]) < 0.8 * int(info["tiles_per_gauss"].sum())
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-12)
