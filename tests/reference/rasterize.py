"""gsplat 1.4.0's `rasterization` as plain as it can be: matrices, one Gaussian after the other over all pixels.

Autograd makes the gradients. Everything is float64; the rules are those of the CUDA kernels, thresholds included.
"""

import math

import torch
from torch import Tensor

TILE = 16


def rotation_matrix(quats: Tensor) -> Tensor:
    """Of quaternions w, x, y, z of any length, (N, 4) to (N, 3, 3)."""
    w, v = torch.nn.functional.normalize(quats, dim=-1).split([1, 3], dim=-1)
    x, y, z = v.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)
    # Rodrigues' formula for half angles: R = I + 2 w [v] + 2 [v]^2.
    return torch.eye(3).to(quats) + 2 * w[..., None] * cross + 2 * cross @ cross


def spherical_harmonics(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    """Colours (N, 3) of directions (N, 3) and coefficients (N, K, 3)."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(dim=-1)
    pi = math.pi
    basis = [torch.full_like(x, math.sqrt(1 / (4 * pi)))]
    if degree >= 1:
        k = math.sqrt(3 / (4 * pi))
        basis += [-k * y, k * z, -k * x]
    if degree >= 2:
        k = math.sqrt(15 / (4 * pi))
        basis += [k * x * y, -k * y * z, math.sqrt(5 / (16 * pi)) * (3 * z * z - 1), -k * x * z]
        basis += [0.5 * k * (x * x - y * y)]
    if degree >= 3:
        outer, inner, ring = math.sqrt(35 / (32 * pi)), math.sqrt(105 / (4 * pi)), math.sqrt(21 / (32 * pi))
        basis += [-outer * y * (3 * x * x - y * y), inner * x * y * z, -ring * y * (5 * z * z - 1)]
        basis += [math.sqrt(7 / (16 * pi)) * z * (5 * z * z - 3), -ring * x * (5 * z * z - 1)]
        basis += [0.5 * inner * z * (x * x - y * y), -outer * x * (x * x - 3 * y * y)]
    weights = torch.stack(basis, dim=-1)
    return (weights[..., None] * coefficients[:, : weights.shape[-1]]).sum(dim=1)


def project(
    means: Tensor, quats: Tensor, scales: Tensor, viewmat: Tensor, K: Tensor, width: int, height: int, eps2d: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one camera: centres (N, 2), depths (N,), covariances with blur (N, 2, 2) and compensations (N,)."""
    R, t = viewmat[:3, :3], viewmat[:3, 3]
    points = means @ R.T + t
    x, y, z = points.unbind(dim=-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    extra_x, extra_y = 0.3 * (0.5 * width / fx), 0.3 * (0.5 * height / fy)
    u = (x / z).clamp(min=-(cx / fx + extra_x), max=(width - cx) / fx + extra_x)
    v = (y / z).clamp(min=-(cy / fy + extra_y), max=(height - cy) / fy + extra_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], dim=-1).reshape(-1, 2, 3)
    M = rotation_matrix(quats) * scales[:, None, :]
    covariance = J @ R @ M @ M.mT @ R.T @ J.mT
    blurred = covariance + eps2d * torch.eye(2).to(means)
    ratio = torch.linalg.det(covariance) / torch.linalg.det(blurred)
    centres = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)
    # The derivative of the root as gsplat has it, 1e-6 beside the truth.
    compensation = ratio.detach().clamp(min=0).sqrt()
    compensation = compensation + (ratio - ratio.detach()) * 0.5 / (compensation + 1e-6)
    return centres, z, blurred, compensation


def radii_of(
    centres: Tensor, depths: Tensor, blurred: Tensor, width: int, height: int, near: float, far: float, clip: float
) -> Tensor:
    """Radii (N,), 0 where a Gaussian is left out."""
    with torch.no_grad():
        determinant = torch.linalg.det(blurred)
        mean = 0.5 * (blurred[:, 0, 0] + blurred[:, 1, 1])
        radius = (3 * (mean + (mean * mean - determinant).clamp(min=0.01).sqrt()).sqrt()).ceil()
        kept = (depths >= near) & (depths <= far) & (determinant > 0) & (radius > clip)
        for axis, size in enumerate((width, height)):
            kept &= (centres[:, axis] + radius > 0) & (centres[:, axis] - radius < size)
        return torch.where(kept, radius, torch.zeros_like(radius)).int()


def tile_mask(centre: Tensor, radius: int, width: int, height: int) -> Tensor:
    """Pixels (height, width) of all tiles that the square of the radius meets."""
    inside = []
    for axis, size in enumerate((width, height)):
        count = math.ceil(size / TILE)
        first = min(max(0, math.floor((float(centre[axis]) - radius) / TILE)), count)
        last = min(max(0, math.ceil((float(centre[axis]) + radius) / TILE)), count)
        tile = torch.arange(size) // TILE
        inside.append((tile >= first) & (tile < last))
    return inside[1][:, None] & inside[0][None, :]


def blend(
    centres: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, depths: Tensor, radii: Tensor,
    width: int, height: int, background: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Pictures (height, width, X) and opacity (height, width) of one camera; conics are (N, 2, 2)."""
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([u, v], dim=-1).to(centres)
    transmittance = torch.ones(height, width, dtype=centres.dtype)
    picture = torch.zeros(height, width, features.shape[-1], dtype=centres.dtype)
    going_on = torch.ones(height, width, dtype=torch.bool)
    for i in torch.argsort(depths.detach(), stable=True).tolist():
        if radii[i] <= 0:
            continue
        offset = centres[i] - pixels
        sigma = 0.5 * (offset @ conics[i] * offset).sum(dim=-1)
        alpha = (opacities[i] * torch.exp(-sigma)).clamp(max=0.999)
        hit = tile_mask(centres[i].detach(), int(radii[i]), width, height) & (sigma >= 0) & (alpha >= 1 / 255)
        rest = transmittance * (1 - alpha)
        going_on &= ~hit | (rest > 1e-4)
        counts = hit & going_on
        weight = torch.where(counts, alpha * transmittance, torch.zeros_like(alpha))
        picture = picture + weight[..., None] * features[i]
        transmittance = torch.where(counts, rest, transmittance)
    return picture + transmittance[..., None] * background, 1 - transmittance


def rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, *, near_plane: float = 0.01, far_plane: float = 1e10, radius_clip: float = 0.0,
    eps2d: float = 0.3, sh_degree: int | None = None, backgrounds: Tensor | None = None, render_mode: str = "RGB",
    rasterize_mode: str = "classic",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    """Pictures (C, height, width, X), opacities (C, height, width, 1); radii and centres that the gradient is for."""
    pictures, alphas, all_radii = [], [], []
    projected = [
        project(means, quats, scales, viewmat, K, width, height, eps2d) for viewmat, K in zip(viewmats, Ks, strict=True)
    ]
    # In one array before they are used, so that its gradient is theirs.
    all_centres = torch.stack([centres for centres, *_ in projected])
    for camera, viewmat in enumerate(viewmats):
        centres = all_centres[camera]
        _, depths, blurred, compensation = projected[camera]
        radii = radii_of(centres, depths, blurred, width, height, near_plane, far_plane, radius_clip)
        shown = opacities * compensation if rasterize_mode == "antialiased" else opacities
        of_camera = colors[camera] if colors.dim() == (3 if sh_degree is None else 4) else colors
        if sh_degree is not None:
            directions = means - torch.inverse(viewmat)[:3, 3]
            of_camera = (spherical_harmonics(sh_degree, directions, of_camera) + 0.5).clamp(min=0)
        background = None if backgrounds is None else backgrounds[camera]
        parts = [of_camera] if "RGB" in render_mode else []
        behind = [] if background is None or "RGB" not in render_mode else [background]
        if render_mode.endswith("D"):
            parts.append(depths[:, None])
            behind.append(depths.new_zeros(1))
        features = torch.cat(parts, dim=-1)
        end = torch.cat(behind) if sum(map(len, behind)) == features.shape[-1] else features.new_zeros(())
        picture, alpha = blend(
            centres, torch.linalg.inv(blurred), shown, features, depths, radii, width, height, end
        )  # fmt: skip
        if render_mode.endswith("ED"):
            expected = picture[..., -1:] / alpha[..., None].clamp(min=1e-10)
            picture = torch.cat([picture[..., :-1], expected], dim=-1)
        pictures.append(picture)
        alphas.append(alpha[..., None])
        all_radii.append(radii)
    info = {"radii": torch.stack(all_radii), "means2d": all_centres}
    return torch.stack(pictures), torch.stack(alphas), info
