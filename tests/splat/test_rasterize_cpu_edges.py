"""The CPU rasterizer where something is missing, broken, huge or simultaneous, and in gsplat's own hands."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.splat import rasterize_cpu

rasterization: Any = rasterize_cpu.rasterization
W, H = 37, 21
LEAVES: tuple[str, ...] = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")


def arguments(
    count: int = 50, *, cameras: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """Gaussians all over a small picture, with spherical harmonics of degree 1."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(dtype)

    return {
        "means": torch.cat([(uniform(count, 2) - 0.5) * 3, 1.5 + 2 * uniform(count, 1)], dim=-1),
        "quats": uniform(count, 4) - 0.5,
        "scales": 0.05 + 0.2 * uniform(count, 3),
        "opacities": 0.1 + 0.8 * uniform(count),
        "colors": uniform(count, 4, 3) - 0.5,
        "viewmats": torch.eye(4, dtype=dtype).repeat(cameras, 1, 1),
        "Ks": torch.tensor([[30.0, 0, W / 2], [0, 30, H / 2], [0, 0, 1]], dtype=dtype).repeat(cameras, 1, 1),
        "width": W,
        "height": H,
        "sh_degree": 1,
        "backgrounds": uniform(cameras, 3),
    }


def bits(given: dict[str, Any], **settings: Any) -> list[Tensor]:
    """Picture, opacity and all gradients."""
    given = given | settings
    leaves = {name: given[name].detach().clone().requires_grad_() for name in LEAVES}
    image, alpha, info = rasterization(**(given | leaves))
    info["means2d"].retain_grad()
    (image.square().sum() + alpha.square().sum()).backward()
    return [image.detach(), alpha.detach(), info["means2d"].grad, *(leaf.grad for leaf in leaves.values())]


# --- determinism and threads --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_every_time_and_with_any_number_of_threads(dtype: torch.dtype) -> None:
    # More than one part of Gaussians and of tiles.
    given: dict[str, Any] = arguments(3000, cameras=2, dtype=dtype) | {"width": 150, "height": 90}
    given["Ks"][:, :2] *= 4
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            runs.append(bits(given, render_mode="RGB+ED"))
    finally:
        torch.set_num_threads(threads)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_several_python_threads_render_and_train_at_once() -> None:
    given = [arguments(400, seed=seed) for seed in range(4)]
    expected = [bits(one) for one in given]
    wrong: list[int] = []
    threads = torch.get_num_threads()

    def work(number: int) -> None:
        for _ in range(8):
            found = bits(given[number])
            if not all(torch.equal(a, b) for a, b in zip(found, expected[number], strict=True)):
                wrong.append(number)

    try:
        torch.set_num_threads(2)
        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=60)
        assert not any(worker.is_alive() for worker in workers)
    finally:
        torch.set_num_threads(threads)
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_renders_too() -> None:
    """As data loaders' workers are made; threads do not survive a fork."""
    program = """
import os, torch
torch.set_num_threads(2)
from lora3d_ns.splat.compiled import in_parallel
seen = []
def kernel(first, last): seen.append((first, last))
in_parallel(kernel, 40, 10)
child = os.fork()
if child == 0:
    in_parallel(kernel, 40, 10)
    os._exit(0 if sorted(seen) == sorted(2 * [(0, 10), (10, 20), (20, 30), (30, 40)]) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_error_in_one_thread_reaches_the_caller() -> None:
    from lora3d_ns.splat.compiled import in_parallel

    def kernel(first: int, _last: int) -> None:
        if first == 30:
            raise ZeroDivisionError

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            in_parallel(kernel, 100, 10)
    finally:
        torch.set_num_threads(threads)


# --- nothing, too little, too much ----------------------------------------------------------------------


def test_no_gaussians_are_background() -> None:
    given = arguments(0)
    image, alpha, *gradients = bits(given, render_mode="RGB+ED")
    assert torch.equal(image[..., :3], given["backgrounds"].expand(1, H, W, 3))
    assert bool((image[..., 3] == 0).all())
    assert bool((alpha == 0).all())
    assert gradients[1].shape == (0, 3)
    assert float(gradients[-1].abs().min()) > 0


def test_gaussians_that_are_not_seen_have_no_gradients() -> None:
    given = arguments(12)
    given["means"][:4, 2] *= -1
    given["means"][4:8, 0] += 100
    given["means"][8:, 2] += 1e3
    image, alpha, means2d, *gradients = bits(given, far_plane=500.0)
    assert torch.equal(image, given["backgrounds"].expand(1, H, W, 3))
    assert bool((alpha == 0).all())
    assert all(bool((gradient == 0).all()) for gradient in (means2d, *gradients[:-1]))


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gaussian_that_is_not_finite_is_not_drawn(name: str, value: float) -> None:
    given = arguments()
    keep = torch.arange(50) != 7
    expected = bits(given | {key: given[key][keep] for key in LEAVES[:5]})
    broken = given[name].clone()
    broken.view(50, -1)[7, -1] = value
    found = bits(given | {name: broken})
    for index, (array, without) in enumerate(zip(found, expected, strict=True)):
        of_gaussians = 2 <= index <= 7
        if of_gaussians:
            dimension = 1 if index == 2 else 0
            assert bool((array.select(dimension, 7) == 0).all())
            array = array.index_select(dimension, torch.nonzero(keep)[:, 0])
        assert bool(torch.isfinite(array).all())
        # Other parts of the sum over Gaussians, other rounding: only of the camera's gradient.
        torch.testing.assert_close(array, without, rtol=1e-5 if index == 8 else 0, atol=1e-5 if index == 8 else 0)


def test_a_colour_that_is_not_a_number_is_not_hidden() -> None:
    given = arguments()
    given["means"][0] = torch.tensor([0.0, 0.0, 1.0])
    given["colors"][0, 0, 1] = float("nan")
    image, _, _ = rasterization(**given)
    assert bool(image[0, H // 2, W // 2, 1].isnan())
    assert bool(image[..., [0, 2]].isfinite().all())


def test_huge_gaussians_cover_the_picture() -> None:
    given = arguments(30)
    given["scales"][:] = 1e4
    given["opacities"][:] = 0.2
    _, alpha, info = rasterization(**given)
    seen = info["radii"] > 0
    assert int(seen.sum()) == 30
    # 0.8^n > 1e-4 ends at 41, so all 30 count.
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 - 0.8**30), rtol=0, atol=1e-6)
    assert bool((info["tiles_per_gauss"] == 3 * 2).all())
    given["scales"][:] = 1e18
    assert bool(torch.isfinite(rasterization(**given)[0]).all())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 16), (17, 15), (33, 1)])
def test_a_smaller_picture_is_the_larger_ones_corner(size: tuple[int, int]) -> None:
    width, height = size
    given: dict[str, Any] = arguments(300) | {"width": 48, "height": 48}
    # So near the axis that no direction is clamped, whose limits belong to the size; and all within the corner's reach.
    given["means"][:, :2] *= 0.01
    given["Ks"][:, 0, 2], given["Ks"][:, 1, 2] = 0.5 * width, 0.5 * height
    larger, _, _ = rasterization(**given)
    smaller, alpha, _ = rasterization(**(given | {"width": width, "height": height}))
    assert smaller.shape == (1, height, width, 3)
    assert float(alpha.max()) > 0.5
    assert torch.equal(smaller, larger[:, :height, :width])


def test_arrays_need_not_be_contiguous() -> None:
    given = arguments(cameras=2)
    expected = bits(given)
    strided = {}
    for name in LEAVES:
        tensor = given[name]
        strided[name] = torch.stack([tensor, tensor + 1], dim=-1)[..., 0]
        assert not strided[name].is_contiguous()
    strided["Ks"] = given["Ks"].mT.contiguous().mT
    leaves = {name: strided[name].detach().requires_grad_() for name in LEAVES}
    image, alpha, info = rasterization(**(given | strided | leaves))
    info["means2d"].retain_grad()
    (image.square().sum() + alpha.square().sum()).backward()
    found = [image, alpha, info["means2d"].grad, *(leaf.grad for leaf in leaves.values())]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", LEAVES)
def test_gradients_for_one_input_only(name: str) -> None:
    given = arguments()
    expected: dict[str, Tensor] = dict(zip(LEAVES, bits(given)[3:], strict=True))
    leaf = given[name].clone().requires_grad_()
    image, alpha, _ = rasterization(**(given | {name: leaf}))
    (image.square().sum() + alpha.square().sum()).backward()
    assert torch.equal(leaf.grad, expected[name])


def test_without_gradients() -> None:
    given = arguments()
    given["means"].requires_grad_()
    image, _, info = rasterization(**given)
    assert info["means2d"].requires_grad
    assert not info["radii"].requires_grad
    with torch.no_grad():
        again, _, info = rasterization(**given)
    assert torch.equal(image, again)
    assert not info["means2d"].requires_grad


def test_info_is_gsplats() -> None:
    given = arguments(cameras=2)
    _, _, info = rasterization(**given)
    shapes = {name: (tuple(info[name].shape), info[name].dtype) for name in ("radii", "means2d", "depths", "conics")}
    assert shapes == {
        "radii": ((2, 50), torch.int32),
        "means2d": ((2, 50, 2), torch.float32),
        "depths": ((2, 50), torch.float32),
        "conics": ((2, 50, 3), torch.float32),
    }
    assert {key: info[key] for key in ("width", "height", "n_cameras", "tile_size", "tile_width", "tile_height")} == {
        "width": W, "height": H, "n_cameras": 2, "tile_size": 16, "tile_width": 3, "tile_height": 2,
    }  # fmt: skip
    seen = info["radii"] > 0
    assert torch.equal(info["opacities"][seen], given["opacities"].expand(2, 50)[seen])
    # Entries of a tile are Gaussians of its camera, near ones first.
    ends = [*info["isect_offsets"].flatten().tolist()[1:], len(info["flatten_ids"])]
    for tile, (start, end) in enumerate(zip(info["isect_offsets"].flatten().tolist(), ends, strict=True)):
        ids = info["flatten_ids"][start:end].long()
        assert bool((ids // 50 == tile // 6).all())
        depths = info["depths"].flatten()[ids]
        assert bool((depths[1:] >= depths[:-1]).all())


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"tile_size": 8},
        {"sparse_grad": True},
        {"distributed": True},
        {"camera_model": "fisheye"},
        {"covars": torch.zeros(50, 3, 3)},
        {"render_mode": "BGR"},
        {"rasterize_mode": "sharp"},
        {"sh_degree": 4},
        {"width": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError, match=next(iter(settings)).split("_")[0].replace("sh", "degree").replace("width", "pixels")
    ):
        rasterization(**(arguments() | settings))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("quats", torch.zeros(50, 3)),
        ("colors", torch.zeros(50, 3, 3)),
        ("colors", torch.zeros(49, 4, 3)),
        ("viewmats", torch.zeros(4, 4)),
        ("backgrounds", torch.zeros(1, 4)),
        ("opacities", torch.zeros(50, dtype=torch.float64)),
        ("scales", torch.zeros(50, 3, device="meta")),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, tensor: Tensor) -> None:
    with pytest.raises(InvalidDataError, match=name):
        rasterization(**(arguments() | {name: tensor}))


# --- numba's cache ------------------------------------------------------------------------------------


def test_an_installation_that_cannot_be_written_to_works(tmp_path: Path) -> None:
    package = tmp_path / "lora3d_ns"
    shutil.copytree(
        Path(rasterize_cpu.__file__).parents[1] / "splat",
        package / "splat",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    # Where neither the folder nor the user's cache can be made, even by an administrator: files are in the way.
    (package / "splat" / "__pycache__").touch()
    (tmp_path / "cache").touch()
    (package / "errors.py").write_text((Path(rasterize_cpu.__file__).parents[1] / "errors.py").read_text())
    (package / "__init__.py").touch()
    program = """
import sys, torch, lora3d_ns
assert lora3d_ns.__file__.startswith(sys.argv[1])
from lora3d_ns.splat.rasterize_kernels import order_by_depth
order, spare = torch.empty(3, dtype=torch.int32).numpy(), torch.empty(3, dtype=torch.int32).numpy()
depths = torch.tensor([3.0, 1.0, 2.0]).view(torch.int32).numpy()
assert order_by_depth(depths, torch.tensor([1, 1, 0], dtype=torch.int32).numpy(), order, spare) == 2
assert order[:2].tolist() == [1, 0]
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA", "COV_"))}
    environment |= {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": "/dev/null"}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, cwd=tmp_path, timeout=120
    )


# --- gsplat's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("absgrad", [False, True])
def test_gsplats_default_strategy_densifies_with_our_info(absgrad: bool) -> None:
    pytest.importorskip("gsplat")
    from gsplat.strategy import DefaultStrategy

    given = arguments(60)
    target, _, _ = rasterization(**(arguments(60, seed=1)))
    names = ("means", "quats", "scales", "opacities", "colors")
    start = {name: given[name].clone() for name in names}
    start["scales"] = start["scales"].log()
    start["opacities"] = torch.logit(start["opacities"])
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(tensor) for name, tensor in start.items()})
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Adam([parameter], lr=1e-2) for name, parameter in params.items()
    }
    strategy = DefaultStrategy(
        refine_start_iter=2,
        refine_stop_iter=10,
        refine_every=4,
        grow_grad2d=1e-4,
        absgrad=absgrad,
        reset_every=1000,
        verbose=False,
    )
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    losses = []
    for step in range(100):
        image, _, info = rasterization(
            **(given | dict(params.items())
            | {"scales": params["scales"].exp(), "opacities": params["opacities"].sigmoid()}),
            packed=False, absgrad=absgrad,
        )  # fmt: skip
        strategy.step_pre_backward(params, optimizers, state, step, info)
        loss = (image - target).square().mean()
        loss.backward()
        losses.append(float(loss))
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        strategy.step_post_backward(params, optimizers, state, step, info, packed=False)
    assert len(params["means"]) > 60
    # Splitting makes it worse at first.
    assert losses[-1] < min(losses[0], 0.6 * losses[10])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@pytest.mark.parametrize(("render_mode", "cameras"), [("RGB", 1), ("RGB+ED", 2), ("D", 1)])
def test_gsplat_on_cuda_gives_the_same(render_mode: str, cameras: int, rasterize_mode: str) -> None:
    import gsplat.rendering

    gsplats: Any = gsplat.rendering.rasterization

    given: dict[str, Any] = arguments(2000, cameras=cameras) | {"width": 150, "height": 90, "backgrounds": None}
    given["Ks"][:, :2] *= 4
    settings = {"render_mode": render_mode, "rasterize_mode": rasterize_mode, "packed": False, "absgrad": True}
    weights: Tensor | None = None
    results = []
    for program, device in ((rasterization, "cpu"), (gsplats, "cuda")):
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in given.items()}
        leaves = {name: moved[name].detach().clone().requires_grad_() for name in LEAVES[:-1]}
        image, alpha, info = program(**(moved | leaves | settings))
        info["means2d"].retain_grad()
        if weights is None:
            weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        (image * weights.to(device)).sum().backward()
        arrays = {"image": image.detach(), "alpha": alpha.detach(), "means2d": info["means2d"].grad}
        arrays |= {"absgrad": info["means2d"].absgrad, "radii": info["radii"].float()}
        arrays |= {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        results.append({name: array.cpu() for name, array in arrays.items()})
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    # A radius may round up on one side only, where 3 sigma is whole.
    assert float((ours["radii"] != theirs["radii"]).float().mean()) < 1e-3
    for name in ours:
        if name == "radii":
            continue
        difference = (ours[name] - theirs[name]).abs()
        unit = theirs[name].abs().max().clamp(min=1e-12)
        # Where alpha is 1 / 255 up to rounding one counts it and the other does not: that is allowed in few places.
        limit = 1e-4 if name in ("image", "alpha") else 1e-3
        assert float((difference > limit * unit).float().mean()) < 1e-3, name
        assert float(difference.max() / unit) < 2e-2, name
