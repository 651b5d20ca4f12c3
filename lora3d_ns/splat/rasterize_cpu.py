"""Gaussians to pixels without CUDA: the part of gsplat 1.4.0's `rasterization` that Splatfacto uses, number by number.

The same rules (Kerbl et al. 2023, "3D Gaussian Splatting", as gsplat has them), in code of our own, with gradients for
everything that gsplat has gradients for. Differences: tiles have 16 pixels; spherical harmonics end at degree 3; the
second derivative does not exist; a Gaussian whose position, shape or opacity is not finite is not drawn and gets zero
gradients (NaN in its colour does reach the pixels, as in gsplat).

The same input gives the same bits, whatever the number of threads (`torch.get_num_threads()`); several Python threads
may render at once. Memory beyond the inputs and results: 24 bytes and two copies of the features per Gaussian and
camera, 8 bytes per entry (a Gaussian in a tile that it can change), and while the gradient is computed another
4 (8 + channels) bytes per entry, in float32.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora3d_ns.errors import InvalidDataError, SettingsError

MAX_SH_DEGREE = 3

_GAUSSIANS_AT_ONCE = 1024
_TILES_AT_ONCE = 8


class _Projection(NamedTuple):
    """What the projection's kernels are told beside the arrays."""

    size: tuple[int, int]
    limits: tuple[float, float, float, float]
    degree: int
    mode: tuple[bool, bool, bool]
    channels: int


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    covars: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Pictures of Gaussians on the CPU, as gsplat 1.4.0's function of that name makes them.

    Args:
        means: Centres, (N, 3), float32 or float64; all others are of the same kind.
        quats: Orientations as quaternions w, x, y, z of any length, (N, 4).
        scales: Standard deviations along the axes, (N, 3).
        opacities: (N,).
        colors: (N, D) or (C, N, D); with `sh_degree` spherical harmonics, (N, K, 3) or (C, N, K, 3).
        viewmats: Camera from world (OpenCV), (C, 4, 4).
        Ks: Intrinsics, the first pixel's centre at 0.5, (C, 3, 3). They get no gradient, as in gsplat.
        width: Of the pictures in pixels.
        height: Of the pictures in pixels.
        near_plane: Gaussians nearer are not drawn.
        far_plane: Gaussians farther are not drawn.
        radius_clip: Gaussians whose radius is no greater are not drawn.
        eps2d: Added to both variances in the image, in square pixels.
        sh_degree: Up to which degree spherical harmonics count; None where colors are colours.
        packed: Does nothing: what is drawn is the same, and `info` always is that of `packed=False`.
        tile_size: Only 16.
        backgrounds: Colours behind everything, (C, D).
        render_mode: `RGB`, `D` (sum of weighted depths), `ED` (their mean), `RGB+D` or `RGB+ED` (depth comes last).
        sparse_grad: Only False.
        absgrad: Whether `info["means2d"].absgrad` is there after the backward pass.
        rasterize_mode: `classic`, or `antialiased`: opacities smaller by what `eps2d` makes Gaussians larger.
        channel_chunk: Does nothing: all channels are drawn at once.
        distributed: Only False.
        camera_model: Only `pinhole`.
        covars: Only None.

    Returns:
        Colours (C, height, width, X), opacity (C, height, width, 1), and a dictionary: `radii`, `means2d`, `depths`,
        `conics`, `opacities` (C, N, ...; zero where nothing is seen), `tiles_per_gauss`, `tile_width`, `tile_height`,
        `width`, `height`, `tile_size`, `n_cameras`; `isect_offsets` and `flatten_ids` leave out entries that fall below
        1 / 255 in their whole tile, which gsplat's have; `camera_ids`, `gaussian_ids` and `isect_ids` are None.

    Raises:
        SettingsError: Something is asked for that only gsplat can do.
        InvalidDataError: Shapes, kinds of numbers or devices do not fit together.
    """
    del packed, channel_chunk
    _check_settings(
        width=width, height=height, tile_size=tile_size, render_mode=render_mode, sparse_grad=sparse_grad,
        rasterize_mode=rasterize_mode, distributed=distributed, camera_model=camera_model, covars=covars,
    )  # fmt: skip
    tensors = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors}
    tensors |= {"viewmats": viewmats, "Ks": Ks} | ({} if backgrounds is None else {"backgrounds": backgrounds})
    _check_tensors(tensors, sh_degree)

    cameras = len(viewmats)
    with_color = render_mode in ("RGB", "RGB+D", "RGB+ED")
    with_depth = render_mode != "RGB"
    channels = (colors.shape[-1] if with_color else 0) + (1 if with_depth else 0)
    # One entry more than in gsplat's order: (1 or C, N, coefficients, D), a colour being its only coefficient.
    coefficients = colors if sh_degree is not None else colors[..., None]
    coefficients = coefficients if coefficients.dim() == 4 else coefficients[None]
    centres = torch.inverse(viewmats)[:, :3, 3] if sh_degree is not None else viewmats.new_zeros(cameras, 3)
    settings = _Projection(
        size=(width, height),
        limits=(float(near_plane), float(far_plane), float(radius_clip), float(eps2d)),
        degree=-1 if sh_degree is None else sh_degree,
        mode=(rasterize_mode == "antialiased", with_color, with_depth),
        channels=channels,
    )
    radii, means2d, depths, conics, blended, features = _Project.apply(
        means, quats, scales, opacities, coefficients, viewmats, Ks, centres, settings
    )
    tiles = _Tiles(radii, means2d.detach(), depths.detach(), conics.detach(), blended.detach(), width, height)
    if backgrounds is None:
        behind = means.new_zeros(cameras, channels)
    else:
        parts = ([backgrounds] if with_color else []) + ([backgrounds.new_zeros(cameras, 1)] if with_depth else [])
        behind = torch.cat(parts, dim=-1)
    images, alphas = _Blend.apply(means2d, conics, blended, features, behind, tiles, absgrad, (width, height))
    if render_mode in ("ED", "RGB+ED"):
        images = torch.cat([images[..., :-1], images[..., -1:] / alphas.clamp(min=1e-10)], dim=-1)
    info = {
        "camera_ids": None,
        "gaussian_ids": None,
        "radii": radii,
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": blended,
        "tile_width": tiles.across,
        "tile_height": tiles.down,
        "tiles_per_gauss": tiles.tiles_per_gauss.view(cameras, -1),
        "isect_ids": None,
        "flatten_ids": tiles.ids,
        "isect_offsets": tiles.offsets[:-1].view(cameras, tiles.down, tiles.across).int(),
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "n_cameras": cameras,
    }
    return images, alphas, info


# --- checks -----------------------------------------------------------------------------------------


def _check_settings(*, width: int, height: int, **given: Any) -> None:
    only = {"tile_size": 16, "sparse_grad": False, "distributed": False, "camera_model": "pinhole", "covars": None}
    for name, value in only.items():
        if given[name] is not value and given[name] != value:
            raise SettingsError(
                f"the CPU rasterizer has no {name}={given[name] if name != 'covars' else '...'}",
                way_out=f"Leave {name} at {value}, or use a CUDA device",
            )
    choices = {"render_mode": ("RGB", "D", "ED", "RGB+D", "RGB+ED"), "rasterize_mode": ("classic", "antialiased")}
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise SettingsError(f"{name} is {given[name]!r}", way_out=f"Use one of {', '.join(allowed)}")
    if width < 1 or height < 1:
        raise SettingsError(f"a picture of {width} x {height} pixels", way_out="Ask for at least one pixel")


def _check_tensors(tensors: dict[str, Tensor], sh_degree: int | None) -> None:
    means, colors, viewmats = tensors["means"], tensors["colors"], tensors["viewmats"]
    N, C = len(means), len(viewmats)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "means": [(N, 3)],
        "quats": [(N, 4)],
        "scales": [(N, 3)],
        "opacities": [(N,)],
        "viewmats": [(C, 4, 4)],
        "Ks": [(C, 3, 3)],
        "backgrounds": [(C, colors.shape[-1])],
    }
    end = tuple(colors.shape[-1:])
    if sh_degree is None:
        shapes["colors"] = [(N, *end), (C, N, *end)]
    else:
        if not 0 <= sh_degree <= MAX_SH_DEGREE:
            raise SettingsError(
                f"spherical harmonics of degree {sh_degree}", way_out=f"Use a degree from 0 to {MAX_SH_DEGREE}"
            )
        count = colors.shape[-2] if colors.dim() > 2 else 0
        if count < (sh_degree + 1) ** 2:
            raise InvalidDataError(
                f"colors of shape {tuple(colors.shape)} have {count} coefficients",
                way_out=f"Degree {sh_degree} needs {(sh_degree + 1) ** 2}: give (N, K, 3) or (C, N, K, 3)",
            )
        shapes["colors"] = [(N, count, 3), (C, N, count, 3)]
    for name, tensor in tensors.items():
        if tuple(tensor.shape) not in shapes[name]:
            expected = " or ".join(str(shape) for shape in shapes[name])
            raise InvalidDataError(
                f"{name} has shape {tuple(tensor.shape)}", way_out=f"With these other arrays it has to be {expected}"
            )
        if tensor.device.type != "cpu" or tensor.dtype != means.dtype or tensor.dtype not in _KINDS:
            raise InvalidDataError(
                f"{name} is {tensor.dtype} on {tensor.device}",
                way_out=f"Give float32 or float64 on the CPU, all the same (means is {means.dtype})",
            )
    if N * C >= 2**31:
        raise InvalidDataError(f"{N} Gaussians in {C} cameras", way_out="Render fewer cameras at once")


_KINDS = (torch.float32, torch.float64)


# --- the world to the image ---------------------------------------------------------------------------


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


class _Project(torch.autograd.Function):
    """Means, quats, scales, opacities, coefficients, viewmats, Ks and centres to what the image needs of them."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        from lora3d_ns.splat.compiled import in_parallel
        from lora3d_ns.splat.projection_kernels import project_forward

        *tensors, settings = arguments
        means, viewmats = tensors[0], tensors[5]
        C, N = len(viewmats), len(means)
        radii = torch.zeros(C, N, dtype=torch.int32)
        means2d, conics = means.new_zeros(C, N, 2), means.new_zeros(C, N, 3)
        depths, blended = means.new_zeros(C, N), means.new_zeros(C, N)
        features = means.new_zeros(C, N, settings.channels)
        results = (radii, means2d, depths, conics, blended, features)
        in_parallel(project_forward, N, _GAUSSIANS_AT_ONCE, *_arrays(*tensors), *settings[:4], *_arrays(*results))
        ctx.save_for_backward(*tensors, radii, conics)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(radii)
        return results

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        from lora3d_ns.splat.compiled import in_parallel
        from lora3d_ns.splat.projection_kernels import GAUSSIANS_PER_PART, project_backward

        *tensors, radii, conics = ctx.saved_tensors
        means, viewmats = tensors[0], tensors[5]
        C, N = radii.shape
        shapes = ((C, N, 2), (C, N), (C, N, 3), (C, N), (C, N, ctx.settings.channels))
        given = [
            means.new_zeros(shape) if gradient is None else gradient
            for gradient, shape in zip(gradients[1:], shapes, strict=True)
        ]
        of_gaussians = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors[:5]]
        of_cameras = torch.zeros(math.ceil(N / GAUSSIANS_PER_PART), C, 15, dtype=torch.float64)
        in_parallel(
            project_backward, N, GAUSSIANS_PER_PART, *_arrays(*tensors), *ctx.settings[:4],
            *_arrays(radii, conics, *given), *_arrays(*of_gaussians, of_cameras),
        )  # fmt: skip
        sums = of_cameras.sum(dim=0).to(means.dtype)
        of_views = torch.zeros_like(viewmats)
        of_views[:, :3] = sums[:, :12].view(C, 3, 4)
        found = (*of_gaussians, of_views, None, sums[:, 12:], None)
        return tuple(gradient if needed else None for gradient, needed in zip(found, ctx.needs_input_grad, strict=True))


# --- the image to pixels -----------------------------------------------------------------------------


class _Tiles:
    """Which Gaussians meet which tiles, near ones first.

    Attributes:
        across, down: Tiles per picture.
        offsets: Where each tile's entries begin, cameras one after the other, and where the last one's end.
        ids: The Gaussian of each entry, counted through all cameras.
        slots: The entries of each Gaussian; those of Gaussian i are `slots[starts[i]:starts[i + 1]]`.
        reach: Rows above and below its centre that a Gaussian can change.
        order: Tiles, those with the most entries first: threads end at about the same time.
        tiles_per_gauss: Tiles in the square of each Gaussian's radius.
    """

    def __init__(
        self, radii: Tensor, means2d: Tensor, depths: Tensor, conics: Tensor, blended: Tensor, width: int, height: int
    ) -> None:
        from lora3d_ns.splat.compiled import in_parallel
        from lora3d_ns.splat.rasterize_kernels import TILE, count_entries, fill_tiles, find_tiles

        C, N = radii.shape
        self.across, self.down = math.ceil(width / TILE), math.ceil(height / TILE)
        grid = (self.across, self.down)
        boxes = torch.empty(C * N, 4, dtype=torch.int32)
        self.reach = means2d.new_zeros(C * N)
        self.tiles_per_gauss = torch.empty(C * N, dtype=torch.int32)
        per_gaussian = (means2d.view(-1, 2), radii.view(-1), conics.view(-1, 3), blended.view(-1))
        in_parallel(
            find_tiles, C * N, _GAUSSIANS_AT_ONCE, *_arrays(*per_gaussian), *grid,
            *_arrays(boxes, self.reach, self.tiles_per_gauss),
        )  # fmt: skip
        self.starts = torch.empty(C * N + 1, dtype=torch.int64)
        self.offsets = torch.empty(C * self.down * self.across + 1, dtype=torch.int64)
        count_entries(boxes.numpy(), N, *grid, self.starts.numpy(), self.offsets.numpy())
        entries = int(self.offsets[-1])
        if entries >= 2**31:
            raise InvalidDataError(
                f"{entries} Gaussians in tiles", way_out="Render smaller pictures or fewer cameras at once"
            )
        self.ids, self.slots = torch.empty(entries, dtype=torch.int32), torch.empty(entries, dtype=torch.int32)
        filled = self.offsets.clone().numpy()
        for camera in range(C):
            order = _near_first(depths[camera], radii[camera])
            fill_tiles(
                order.numpy(), camera, N, boxes.numpy(), self.starts.numpy(), *grid, filled,
                self.ids.numpy(), self.slots.numpy(),
            )  # fmt: skip
        self.order = torch.argsort(self.offsets[:-1] - self.offsets[1:], stable=True)


def _near_first(depths: Tensor, radii: Tensor) -> Tensor:
    """Indices of the Gaussians that are seen, by depth, equal ones by index."""
    from lora3d_ns.splat.rasterize_kernels import order_by_depth

    if depths.dtype == torch.float32:
        order, spare = torch.empty(len(depths), dtype=torch.int32), torch.empty(len(depths), dtype=torch.int32)
        seen = order_by_depth(depths.view(torch.int32).numpy(), radii.numpy(), order.numpy(), spare.numpy())
        return order[:seen]
    visible = torch.nonzero(radii > 0)[:, 0]
    return visible[torch.argsort(depths[visible], stable=True)].int()


class _Blend(torch.autograd.Function):
    """Gaussians of the image to colours and opacities of pixels."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        from lora3d_ns.splat.compiled import in_parallel
        from lora3d_ns.splat.rasterize_kernels import blend_forward

        *tensors, tiles, absgrad, (width, height) = arguments
        means2d, features = tensors[0], tensors[3]
        C, channels = len(means2d), features.shape[-1]
        images, alphas = means2d.new_empty(C, height, width, channels), means2d.new_empty(C, height, width, 1)
        transmittances = means2d.new_empty(C, height, width)
        last_entries = torch.empty(C, height, width, dtype=torch.int32)
        in_parallel(
            blend_forward, len(tiles.order), _TILES_AT_ONCE, *_tile_arrays(tiles, tensors),
            *_arrays(images, alphas, transmittances, last_entries),
        )  # fmt: skip
        ctx.save_for_backward(*tensors, transmittances, last_entries)
        ctx.tiles, ctx.absgrad = tiles, absgrad
        return images, alphas

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        from lora3d_ns.splat.compiled import in_parallel
        from lora3d_ns.splat.rasterize_kernels import SHAPE_GRADIENTS, blend_backward, gather_gradients

        *tensors, transmittances, last_entries = ctx.saved_tensors
        means2d, conics, blended, features = tensors[:4]
        tiles = ctx.tiles
        g_images, g_alphas = gradients
        entries = means2d.new_empty(len(tiles.ids), SHAPE_GRADIENTS + features.shape[-1])
        in_parallel(
            blend_backward, len(tiles.order), _TILES_AT_ONCE, *_tile_arrays(tiles, tensors),
            *_arrays(transmittances, last_entries, g_images, g_alphas), ctx.absgrad, entries.numpy(),
        )  # fmt: skip
        found = [torch.zeros_like(tensor) for tensor in (means2d, conics, blended, means2d, features)]
        in_parallel(
            gather_gradients, blended.numel(), _GAUSSIANS_AT_ONCE, *_arrays(tiles.starts, tiles.slots, entries),
            *(array.reshape(blended.numel(), *array.shape[2:]) for array in _arrays(*found)),
        )  # fmt: skip
        g_means2d, g_conics, g_blended, absolute, g_features = found
        if ctx.absgrad:
            means2d.absgrad = absolute
        g_behind = None
        if ctx.needs_input_grad[4]:
            g_behind = (g_images * transmittances[..., None]).sum(dim=(1, 2))
        return g_means2d, g_conics, g_blended, g_features, g_behind, None, None, None


def _tile_arrays(tiles: _Tiles, tensors: list[Tensor]) -> list[Any]:
    means2d, conics, blended, features, behind = tensors
    arrays = _arrays(tiles.order, tiles.offsets), _arrays(tiles.ids, means2d.view(-1, 2), conics.view(-1, 3))
    rest = _arrays(blended.view(-1), features.view(-1, features.shape[-1]), tiles.reach, behind)
    return [*arrays[0], tiles.across, tiles.down, *arrays[1], *rest]
