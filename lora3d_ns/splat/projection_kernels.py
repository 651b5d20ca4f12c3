"""Numba kernels: Gaussians of the world to Gaussians of the image, and the gradient back. Imports numba.

Conventions are those of gsplat 1.4.0: covariance `J W R S S R^T W^T J^T + eps2d I` with the local affine approximation
of the perspective (Zwicker et al. 2002, "EWA splatting"), whose direction is clamped to 1.3 times the field of view.

Helpers stay in the file of the kernels that use them: numba's cache looks at no other file's date.
"""

import math
from typing import no_type_check

import numpy as np

from lora3d_ns.splat.compiled import compiled

GAUSSIANS_PER_PART = 1024
"""Sums over Gaussians (for the camera) are made of parts of this size, whatever the number of threads."""


@compiled
@no_type_check
def sh_basis(degree, x, y, z, basis):
    """Real spherical harmonics of a unit vector in the order and with the signs of 3D Gaussian splatting."""
    real = basis.dtype.type
    basis[0] = real(0.28209479177387814)
    if degree >= 1:
        k1 = real(0.4886025119029199)
        basis[1] = -k1 * y
        basis[2] = k1 * z
        basis[3] = -k1 * x
    if degree >= 2:
        k2 = real(1.0925484305920792)
        basis[4] = k2 * x * y
        basis[5] = -k2 * y * z
        basis[6] = real(0.9461746957575601) * z * z - real(0.31539156525252)
        basis[7] = -k2 * x * z
        basis[8] = real(0.5) * k2 * (x * x - y * y)
    if degree >= 3:
        k9, k10 = real(0.5900435899266435), real(1.445305721320277)
        ring = real(0.4570457994644658) - real(2.2852289973223288) * z * z
        basis[9] = -k9 * y * (real(3.0) * x * x - y * y)
        basis[10] = real(2.0) * k10 * x * y * z
        basis[11] = ring * y
        basis[12] = z * (real(1.865881662950577) * z * z - real(1.1195289977703462))
        basis[13] = ring * x
        basis[14] = k10 * z * (x * x - y * y)
        basis[15] = -k9 * x * (x * x - real(3.0) * y * y)


@compiled
@no_type_check
def sh_slope(degree, x, y, z, weights):
    """Gradient of `sum_k weights_k basis_k` at (x, y, z), as if the three were free."""
    real = weights.dtype.type
    dx = dy = dz = real(0.0)
    if degree >= 1:
        k1 = real(0.4886025119029199)
        dx -= k1 * weights[3]
        dy -= k1 * weights[1]
        dz += k1 * weights[2]
    if degree >= 2:
        k2 = real(1.0925484305920792)
        dx += k2 * (y * weights[4] - z * weights[7] + x * weights[8])
        dy += k2 * (x * weights[4] - z * weights[5] - y * weights[8])
        dz += real(1.8923493915151202) * z * weights[6] - k2 * (y * weights[5] + x * weights[7])
    if degree >= 3:
        k9, k10 = real(0.5900435899266435), real(1.445305721320277)
        two, three, six = real(2.0), real(3.0), real(6.0)
        ring = real(0.4570457994644658) - real(2.2852289973223288) * z * z
        ring_z = -real(4.5704579946446576) * z
        squares = three * (x * x - y * y)
        dx += -k9 * (six * x * y * weights[9] + squares * weights[15]) + two * k10 * z * (
            y * weights[10] + x * weights[14]
        )
        dx += ring * weights[13]
        dy += -k9 * (squares * weights[9] - six * x * y * weights[15]) + two * k10 * z * (
            x * weights[10] - y * weights[14]
        )
        dy += ring * weights[11]
        dz += k10 * (two * x * y * weights[10] + (x * x - y * y) * weights[14])
        dz += ring_z * (y * weights[11] + x * weights[13])
        dz += (real(5.597644988851731) * z * z - real(1.1195289977703462)) * weights[12]
    return dx, dy, dz


@compiled
@no_type_check
def rotation_of(w, x, y, z):
    """Rows of the rotation of a quaternion of any length, and 1 / length."""
    one, two = type(w)(1.0), type(w)(2.0)
    inverse = one / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    return (
        (one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)),
        (two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)),
        (two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)),
        inverse,
    )


@compiled
@no_type_check
def camera_limits(K, width, height):
    """fx, fy, cx, cy and the least and greatest x / z and y / z that the local approximation is made for."""
    real = K.dtype.type
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    w, h, share = real(width), real(height), real(0.15)
    beyond_x, beyond_y = share * w / fx, share * h / fy
    limits = (-cx / fx - beyond_x, (w - cx) / fx + beyond_x, -cy / fy - beyond_y, (h - cy) / fy + beyond_y)
    return fx, fy, cx, cy, limits


@compiled
@no_type_check
def local_affine(view, fx, fy, limits, x, y, z):
    """The two rows of the perspective's derivative times the camera's rotation, and the clamped x / z and y / z."""
    inverse = type(z)(1.0) / z
    u = min(limits[1], max(limits[0], x * inverse))
    v = min(limits[3], max(limits[2], y * inverse))
    jx, jy = fx * inverse, fy * inverse
    row_x = (
        jx * (view[0, 0] - u * view[2, 0]),
        jx * (view[0, 1] - u * view[2, 1]),
        jx * (view[0, 2] - u * view[2, 2]),
    )
    row_y = (
        jy * (view[1, 0] - v * view[2, 0]),
        jy * (view[1, 1] - v * view[2, 1]),
        jy * (view[1, 2] - v * view[2, 2]),
    )
    return row_x, row_y, u, v


@compiled
@no_type_check
def dot(a, b):
    """Of two triples."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
@no_type_check
def mixed(a, x, b, y):
    """a x + b y of triples."""
    return a * x[0] + b * y[0], a * x[1] + b * y[1], a * x[2] + b * y[2]


@compiled
@no_type_check
def axes_in_image(row_x, row_y, rows):
    """The Gaussian's three axes in the image, were its scales 1: x components, y components."""
    (a, b, c) = rows
    columns_x = (
        row_x[0] * a[0] + row_x[1] * b[0] + row_x[2] * c[0],
        row_x[0] * a[1] + row_x[1] * b[1] + row_x[2] * c[1],
        row_x[0] * a[2] + row_x[1] * b[2] + row_x[2] * c[2],
    )
    columns_y = (
        row_y[0] * a[0] + row_y[1] * b[0] + row_y[2] * c[0],
        row_y[0] * a[1] + row_y[1] * b[1] + row_y[2] * c[1],
        row_y[0] * a[2] + row_y[1] * b[2] + row_y[2] * c[2],
    )
    return columns_x, columns_y


@compiled
@no_type_check
def project_forward(
    first, last, means, quats, scales, opacities, colors, viewmats, Ks, centres, size, limits, degree, mode,
    radii, means2d, depths, conics, blended, features,
):  # fmt: skip
    """Gaussians first to last in all cameras.

    `size`: width, height. `limits`: near, far, least radius, eps2d. `degree`: of spherical harmonics, -1 where colors
    are colours. `mode`: antialiased, with colour, with depth. The arrays after it are the results, already zero;
    Gaussians that are not seen, or not finite, keep radius 0.
    """
    real = means.dtype.type
    zero, one, half = real(0.0), real(1.0), real(0.5)
    near, far, clip, eps = real(limits[0]), real(limits[1]), real(limits[2]), real(limits[3])
    width, height = real(size[0]), real(size[1])
    antialiased, with_color, with_depth = mode
    channels = features.shape[2] - (1 if with_depth else 0)
    basis = np.empty(16, means.dtype)
    for c in range(viewmats.shape[0]):
        view = viewmats[c]
        fx, fy, cx, cy, window = camera_limits(Ks[c], size[0], size[1])
        of_colors = c if colors.shape[0] > 1 else 0
        for i in range(first, last):
            px, py, pz = means[i, 0], means[i, 1], means[i, 2]
            z = view[2, 0] * px + view[2, 1] * py + view[2, 2] * pz + view[2, 3]
            if not (z >= near and z <= far):
                continue
            x = view[0, 0] * px + view[0, 1] * py + view[0, 2] * pz + view[0, 3]
            y = view[1, 0] * px + view[1, 1] * py + view[1, 2] * pz + view[1, 3]
            row0, row1, row2, _ = rotation_of(quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3])
            row_x, row_y, _, _ = local_affine(view, fx, fy, window, x, y, z)
            unit_x, unit_y = axes_in_image(row_x, row_y, (row0, row1, row2))
            sx, sy, sz = scales[i, 0], scales[i, 1], scales[i, 2]
            ax = (sx * unit_x[0], sy * unit_x[1], sz * unit_x[2])
            ay = (sx * unit_y[0], sy * unit_y[1], sz * unit_y[2])
            xx, xy, yy = dot(ax, ax), dot(ax, ay), dot(ay, ay)
            plain = xx * yy - xy * xy
            xx, yy = xx + eps, yy + eps
            determinant = xx * yy - xy * xy
            if not (determinant > zero and math.isfinite(determinant)):
                continue
            middle = half * (xx + yy)
            widest = middle + math.sqrt(max(real(0.01), middle * middle - determinant))
            radius = np.ceil(real(3.0) * math.sqrt(widest))
            u, v = fx * x / z + cx, fy * y / z + cy
            opacity = opacities[i]
            if antialiased:
                opacity *= math.sqrt(max(zero, plain / determinant))
            if not math.isfinite(radius + u + v + opacity) or radius <= clip:
                continue
            if u + radius <= zero or u - radius >= width or v + radius <= zero or v - radius >= height:
                continue
            radii[c, i] = min(radius, real(1 << 30))
            means2d[c, i, 0], means2d[c, i, 1] = u, v
            depths[c, i] = z
            inverse = one / determinant
            conics[c, i, 0], conics[c, i, 1], conics[c, i, 2] = yy * inverse, -xy * inverse, xx * inverse
            blended[c, i] = opacity
            if with_color and degree < 0:
                for k in range(channels):
                    features[c, i, k] = colors[of_colors, i, k, 0]
            elif with_color:
                dx, dy, dz = px - centres[c, 0], py - centres[c, 1], pz - centres[c, 2]
                length = one / math.sqrt(dx * dx + dy * dy + dz * dz)
                sh_basis(degree, dx * length, dy * length, dz * length, basis)
                for k in range(channels):
                    value = half
                    for b in range((degree + 1) * (degree + 1)):
                        value += basis[b] * colors[of_colors, i, b, k]
                    # Not max(): where it is NaN it must stay so.
                    features[c, i, k] = zero if value < zero else value
            if with_depth:
                features[c, i, channels] = z


@compiled
@no_type_check
def project_backward(
    first, last, means, quats, scales, opacities, colors, viewmats, Ks, centres, size, limits, degree, mode,
    radii, conics, g_means2d, g_depths, g_conics, g_blended, g_features,
    g_means, g_quats, g_scales, g_opacities, g_colors, g_cameras,
):  # fmt: skip
    """Gradients of Gaussians first to last, at most GAUSSIANS_PER_PART of them, from those of their projections.

    The last six arrays are the results, already zero; `g_cameras[part, c]` has this part's sums for the camera: twelve
    of the upper rows of its matrix, three of its centre.
    """
    real = means.dtype.type
    zero, one, half, two = real(0.0), real(1.0), real(0.5), real(2.0)
    eps = real(limits[3])
    antialiased, with_color, with_depth = mode
    channels = g_features.shape[2] - (1 if with_depth else 0)
    basis, weights = np.empty(16, means.dtype), np.empty(16, means.dtype)
    for c in range(viewmats.shape[0]):
        view = viewmats[c]
        fx, fy, _, _, window = camera_limits(Ks[c], size[0], size[1])
        of_colors = c if colors.shape[0] > 1 else 0
        camera = g_cameras[first // GAUSSIANS_PER_PART, c]
        for i in range(first, last):
            if radii[c, i] <= 0:
                continue
            px, py, pz = means[i, 0], means[i, 1], means[i, 2]
            x = view[0, 0] * px + view[0, 1] * py + view[0, 2] * pz + view[0, 3]
            y = view[1, 0] * px + view[1, 1] * py + view[1, 2] * pz + view[1, 3]
            z = view[2, 0] * px + view[2, 1] * py + view[2, 2] * pz + view[2, 3]
            sx, sy, sz = scales[i, 0], scales[i, 1], scales[i, 2]
            w, qx, qy, qz = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
            r0, r1, r2, shorten = rotation_of(w, qx, qy, qz)
            row_x, row_y, u, v = local_affine(view, fx, fy, window, x, y, z)
            unit_x, unit_y = axes_in_image(row_x, row_y, (r0, r1, r2))
            ax = (sx * unit_x[0], sy * unit_x[1], sz * unit_x[2])
            ay = (sx * unit_y[0], sy * unit_y[1], sz * unit_y[2])

            # Inverse covariance to covariance: -P G P, and the compensation's part.
            a, b, d = conics[c, i, 0], conics[c, i, 1], conics[c, i, 2]
            ga, gb, gd = g_conics[c, i, 0], half * g_conics[c, i, 1], g_conics[c, i, 2]
            left_a, left_b = a * ga + b * gb, a * gb + b * gd
            left_c, left_d = b * ga + d * gb, b * gb + d * gd
            g_xx, g_xy, g_yy = -(left_a * a + left_b * b), -(left_a * b + left_b * d), -(left_c * b + left_d * d)
            g_opacity = g_blended[c, i]
            if antialiased:
                sharp = a * d - b * b
                plain = dot(ax, ax) * dot(ay, ay) - dot(ax, ay) * dot(ax, ay)
                share = max(zero, plain * sharp)
                compensation = math.sqrt(share)
                g_share = g_opacity * opacities[i] * half / (compensation + real(1e-6))
                g_opacity *= compensation
                g_xx += g_share * ((one - share) * a - eps * sharp)
                g_xy += g_share * (one - share) * b
                g_yy += g_share * ((one - share) * d - eps * sharp)
            g_opacities[i] += g_opacity

            # Covariance to the axes in the image, to the affine map and to the world's axes R S.
            gx = (
                two * (g_xx * ax[0] + g_xy * ay[0]),
                two * (g_xx * ax[1] + g_xy * ay[1]),
                two * (g_xx * ax[2] + g_xy * ay[2]),
            )
            gy = (
                two * (g_xy * ax[0] + g_yy * ay[0]),
                two * (g_xy * ax[1] + g_yy * ay[1]),
                two * (g_xy * ax[2] + g_yy * ay[2]),
            )
            sgx, sgy = (sx * gx[0], sy * gx[1], sz * gx[2]), (sx * gy[0], sy * gy[1], sz * gy[2])
            g_row_x = (dot(r0, sgx), dot(r1, sgx), dot(r2, sgx))
            g_row_y = (dot(r0, sgy), dot(r1, sgy), dot(r2, sgy))
            v0 = (
                row_x[0] * sgx[0] + row_y[0] * sgy[0],
                row_x[0] * sgx[1] + row_y[0] * sgy[1],
                row_x[0] * sgx[2] + row_y[0] * sgy[2],
            )
            v1 = (
                row_x[1] * sgx[0] + row_y[1] * sgy[0],
                row_x[1] * sgx[1] + row_y[1] * sgy[1],
                row_x[1] * sgx[2] + row_y[1] * sgy[2],
            )
            v2 = (
                row_x[2] * sgx[0] + row_y[2] * sgy[0],
                row_x[2] * sgx[1] + row_y[2] * sgy[1],
                row_x[2] * sgx[2] + row_y[2] * sgy[2],
            )
            g_scales[i, 0] += unit_x[0] * gx[0] + unit_y[0] * gy[0]
            g_scales[i, 1] += unit_x[1] * gx[1] + unit_y[1] * gy[1]
            g_scales[i, 2] += unit_x[2] * gx[2] + unit_y[2] * gy[2]
            w, qx, qy, qz = w * shorten, qx * shorten, qy * shorten, qz * shorten
            gw = two * (qx * (v2[1] - v1[2]) + qy * (v0[2] - v2[0]) + qz * (v1[0] - v0[1]))
            gi = two * (qy * (v0[1] + v1[0]) + qz * (v0[2] + v2[0]) + w * (v2[1] - v1[2]) - two * qx * (v1[1] + v2[2]))
            gj = two * (qx * (v0[1] + v1[0]) + qz * (v1[2] + v2[1]) + w * (v0[2] - v2[0]) - two * qy * (v0[0] + v2[2]))
            gk = two * (qx * (v0[2] + v2[0]) + qy * (v1[2] + v2[1]) + w * (v1[0] - v0[1]) - two * qz * (v0[0] + v1[1]))
            along = gw * w + gi * qx + gj * qy + gk * qz
            g_quats[i, 0] += (gw - along * w) * shorten
            g_quats[i, 1] += (gi - along * qx) * shorten
            g_quats[i, 2] += (gj - along * qy) * shorten
            g_quats[i, 3] += (gk - along * qz) * shorten

            # The affine map's rows are j (W_0 - u W_2): to j = f / z, to u = x / z where not clamped, to W.
            inverse = one / z
            jx, jy = fx * inverse, fy * inverse
            third = (view[2, 0], view[2, 1], view[2, 2])
            g_u, g_v = -jx * dot(third, g_row_x), -jy * dot(third, g_row_y)
            g_z = -(dot(row_x, g_row_x) + dot(row_y, g_row_y)) * inverse
            hx, hy = g_means2d[c, i, 0] * jx, g_means2d[c, i, 1] * jy
            gx_c, gy_c = hx, hy
            g_z -= (hx * x + hy * y) * inverse
            if x * inverse <= window[1] and x * inverse >= window[0]:
                gx_c += g_u * inverse
                g_z -= g_u * u * inverse
            if y * inverse <= window[3] and y * inverse >= window[2]:
                gy_c += g_v * inverse
                g_z -= g_v * v * inverse
            g_z += g_depths[c, i]
            if with_depth:
                g_z += g_features[c, i, channels]

            g_means[i, 0] += view[0, 0] * gx_c + view[1, 0] * gy_c + view[2, 0] * g_z
            g_means[i, 1] += view[0, 1] * gx_c + view[1, 1] * gy_c + view[2, 1] * g_z
            g_means[i, 2] += view[0, 2] * gx_c + view[1, 2] * gy_c + view[2, 2] * g_z
            camera[0] += gx_c * px + jx * g_row_x[0]
            camera[1] += gx_c * py + jx * g_row_x[1]
            camera[2] += gx_c * pz + jx * g_row_x[2]
            camera[4] += gy_c * px + jy * g_row_y[0]
            camera[5] += gy_c * py + jy * g_row_y[1]
            camera[6] += gy_c * pz + jy * g_row_y[2]
            camera[8] += g_z * px - jx * u * g_row_x[0] - jy * v * g_row_y[0]
            camera[9] += g_z * py - jx * u * g_row_x[1] - jy * v * g_row_y[1]
            camera[10] += g_z * pz - jx * u * g_row_x[2] - jy * v * g_row_y[2]
            camera[3] += gx_c
            camera[7] += gy_c
            camera[11] += g_z

            if with_color and degree < 0:
                for k in range(channels):
                    g_colors[of_colors, i, k, 0] += g_features[c, i, k]
            elif with_color:
                dx, dy, dz = px - centres[c, 0], py - centres[c, 1], pz - centres[c, 2]
                length = one / math.sqrt(dx * dx + dy * dy + dz * dz)
                dx, dy, dz = dx * length, dy * length, dz * length
                sh_basis(degree, dx, dy, dz, basis)
                count = (degree + 1) * (degree + 1)
                for b in range(count):
                    weights[b] = zero
                for k in range(channels):
                    value = half
                    for b in range(count):
                        value += basis[b] * colors[of_colors, i, b, k]
                    if not value < zero:
                        g_value = g_features[c, i, k]
                        for b in range(count):
                            g_colors[of_colors, i, b, k] += g_value * basis[b]
                            weights[b] += g_value * colors[of_colors, i, b, k]
                sdx, sdy, sdz = sh_slope(degree, dx, dy, dz, weights)
                radial = sdx * dx + sdy * dy + sdz * dz
                sdx, sdy, sdz = (sdx - radial * dx) * length, (sdy - radial * dy) * length, (sdz - radial * dz) * length
                g_means[i, 0] += sdx
                g_means[i, 1] += sdy
                g_means[i, 2] += sdz
                camera[12] -= sdx
                camera[13] -= sdy
                camera[14] -= sdz
