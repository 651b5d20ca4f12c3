"""Numba kernels: Gaussians of the image to pixels, and the gradient back. Imports numba.

Tiles are 16 x 16 pixels; all 16 pixels of a row are computed at once, without a branch, so that the compiler turns each
loop over them into vector instructions. A tile is one thread's work, so nothing is written by two threads.

Helpers stay in the file of the kernels that use them: numba's cache looks at no other file's date.
"""

import math
from typing import no_type_check

import numba
import numpy as np
from numba.extending import overload

from lora3d_ns.splat.compiled import FAST_MATH, compiled

TILE = 16
"""Pixels of a tile's side: part of gsplat's rules, as a Gaussian reaches whole tiles."""
SHAPE_GRADIENTS = 8
"""Per entry: of the centre (2), the inverse covariance (3), the opacity, |of the centre| summed over pixels (2)."""
_ROW_PLANES = 2
_LOOK_EVERY = 32


@no_type_check
def exp_minus(x):
    """exp(-x) for x in 0 to 80, relative error below 3e-7 in float32; only for kernels."""
    raise NotImplementedError(x)


@overload(exp_minus, jit_options={"fastmath": FAST_MATH, "error_model": "numpy"})
@no_type_check
def _exp_minus(x):
    def by_library(x):
        return math.exp(-x)

    def by_polynomial(x):
        # 2^y = 2^n 2^f with |f| <= 1/2: n into the exponent's bits, Taylor's polynomial of degree 6 for 2^f.
        y = x * np.float32(-1.4426950408889634)
        n = np.int32(y - np.float32(0.5))
        f = y - np.float32(n)
        power = np.float32(1.5403530393381609e-04)
        power = power * f + np.float32(1.3333558146428443e-03)
        power = power * f + np.float32(9.6181291076284772e-03)
        power = power * f + np.float32(5.5504108664821580e-02)
        power = power * f + np.float32(2.4022650695910072e-01)
        power = power * f + np.float32(6.9314718055994531e-01)
        power = power * f + np.float32(1.0)
        return power * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)

    return by_polynomial if x == numba.types.float32 else by_library


# --- which Gaussians meet which tiles ---------------------------------------------------------------


@compiled
@no_type_check
def order_by_depth(bits, radii, order, spare):
    """Indices of the visible ones by ascending depth, equal ones by index: a radix sort. Returns how many.

    `bits`: positive float32 depths, read as integers, which have the same order.
    """
    counts = np.zeros((3, 2048), np.int64)
    seen = 0
    for i in range(len(bits)):
        if radii[i] > 0:
            key = bits[i]
            counts[0, key & 2047] += 1
            counts[1, (key >> 11) & 2047] += 1
            counts[2, (key >> 22) & 2047] += 1
            spare[seen] = i
            seen += 1
    source, target = spare, order
    for digit in range(3):
        shift, total = 11 * digit, 0
        for value in range(2048):
            count = counts[digit, value]
            counts[digit, value] = total
            total += count
        for rank in range(seen):
            i = source[rank]
            value = (bits[i] >> shift) & 2047
            target[counts[digit, value]] = i
            counts[digit, value] += 1
        source, target = target, source
    return seen


@compiled
@no_type_check
def find_tiles(first, last, means2d, radii, conics, opacities, tiles_across, tiles_down, boxes, reach, tiles_per_gauss):
    """Which tiles each Gaussian can change: `boxes` has first and last + 1 across and down, `reach` the rows in pixels.

    A Gaussian counts in the tiles of the square of its radius, as in gsplat (`tiles_per_gauss`). Of these, `boxes`
    leaves out tiles where alpha is below 1 / 255 anyway: where sigma = d^T P d / 2 > ln(255 opacity), outside of
    |d_x| = sqrt(2 sigma P_yy / det P). A margin covers the rounding of sigma.
    """
    for i in range(first, last):
        radius = radii[i]
        tiles_per_gauss[i] = 0
        boxes[i, 0] = boxes[i, 1] = boxes[i, 2] = boxes[i, 3] = 0
        if radius <= 0:
            continue
        side = means2d.dtype.type(TILE)
        x, y, r = means2d[i, 0] / side, means2d[i, 1] / side, means2d.dtype.type(radius) / side
        left, right = np.int64(max(np.floor(x - r), 0)), np.int64(min(np.ceil(x + r), tiles_across))
        top, bottom = np.int64(max(np.floor(y - r), 0)), np.int64(min(np.ceil(y + r), tiles_down))
        if left >= right or top >= bottom:
            continue
        tiles_per_gauss[i] = (right - left) * (bottom - top)
        if not opacities[i] * 1.0001 >= 1.0 / 255.0:
            continue
        a, b, c = float(conics[i, 0]), float(conics[i, 1]), float(conics[i, 2])
        determinant = a * c - b * b
        far_x = far_y = float(radius) + 1e6
        if determinant > 0.0:
            across = float(radius) + TILE
            sigma = max(0.0, math.log(255.0 * opacities[i])) + 2e-3 + 2e-6 * (a + c + 2.0 * abs(b)) * across * across
            far_x = math.sqrt(2.0 * sigma * c / determinant) + 1e-2
            far_y = math.sqrt(2.0 * sigma * a / determinant) + 1e-2
        # Centres of pixels lie half a pixel inside of their tile.
        u, v = float(means2d[i, 0]), float(means2d[i, 1])
        left = max(left, np.int64(max(math.ceil((u - far_x - 15.5) / TILE), 0.0)))
        right = min(right, np.int64(max(math.floor((u + far_x - 0.5) / TILE) + 1.0, 0.0)))
        top = max(top, np.int64(max(math.ceil((v - far_y - 15.5) / TILE), 0.0)))
        bottom = min(bottom, np.int64(max(math.floor((v + far_y - 0.5) / TILE) + 1.0, 0.0)))
        reach[i] = far_y
        if left < right and top < bottom:
            boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = left, right, top, bottom


@compiled
@no_type_check
def count_entries(boxes, gaussians, tiles_across, tiles_down, starts, offsets):
    """Where each Gaussian's entries start, and each tile's; `gaussians` is their number per camera."""
    total = 0
    offsets[:] = 0
    for i in range(len(boxes)):
        starts[i] = total
        if boxes[i, 1] > boxes[i, 0]:
            base = (i // gaussians) * tiles_down
            for row in range(boxes[i, 2], boxes[i, 3]):
                for column in range(boxes[i, 0], boxes[i, 1]):
                    offsets[(base + row) * tiles_across + column + 1] += 1
            total += (boxes[i, 1] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 2])
    starts[len(boxes)] = total
    for tile in range(1, len(offsets)):
        offsets[tile] += offsets[tile - 1]


@compiled
@no_type_check
def fill_tiles(order, camera, gaussians, boxes, starts, tiles_across, tiles_down, filled, ids, slots):
    """One camera's Gaussians, near ones first, into its tiles.

    `filled`: where each tile's next entry goes. `ids`: the Gaussian of each entry. `slots`: the entries of each
    Gaussian, tile by tile.
    """
    for rank in range(len(order)):
        i = camera * gaussians + order[rank]
        slot = starts[i]
        for row in range(boxes[i, 2], boxes[i, 3]):
            for column in range(boxes[i, 0], boxes[i, 1]):
                tile = (camera * tiles_down + row) * tiles_across + column
                ids[filled[tile]] = i
                slots[slot] = filled[tile]
                filled[tile] += 1
                slot += 1


# --- pixels -----------------------------------------------------------------------------------------


@compiled
@no_type_check
def blend_forward(
    first, last, order, offsets, tiles_across, tiles_down, ids, means2d, conics, opacities, features, reach,
    backgrounds, images, alphas, transmittances, last_entries,
):  # fmt: skip
    """Tiles `order[first:last]` to pixels, front to back.

    `last_entries` has for each pixel the last entry that counts, -1 where none does: the gradient starts there.
    """
    real = means2d.dtype.type
    zero, one, half = real(0.0), real(1.0), real(0.5)
    most, least, stop, far = real(0.999), one / real(255.0), real(1e-4), real(80.0)
    height, width, channels = images.shape[1], images.shape[2], images.shape[3]
    # Per row of pixels: light that still passes (0 where the pixel is done), light that passed in the end, colours.
    planes = _ROW_PLANES + channels
    state = np.empty((TILE, planes, TILE), means2d.dtype)
    weight = np.empty(TILE, means2d.dtype)
    newest = np.empty((TILE, TILE), np.int32)
    alive = np.empty(TILE, np.bool_)
    for number in range(first, last):
        tile = order[number]
        camera, place = tile // (tiles_across * tiles_down), tile % (tiles_across * tiles_down)
        top, left = (place // tiles_across) * TILE, (place % tiles_across) * TILE
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        state[:] = zero
        newest[:] = -1
        alive[:] = True
        for row in range(rows):
            state[row, :_ROW_PLANES] = one
        for entry in range(offsets[tile], offsets[tile + 1]):
            if (entry - offsets[tile]) % _LOOK_EVERY == _LOOK_EVERY - 1:
                any_alive = False
                for row in range(rows):
                    light = zero
                    for x in range(TILE):
                        light += state[row, 0, x]
                    alive[row] = light > zero
                    any_alive = any_alive or alive[row]
                if not any_alive:
                    break
            i, mark = ids[entry], np.int32(entry)
            u, v = means2d[i, 0] - real(left) - half, means2d[i, 1] - real(top) - half
            a, b, c, opacity = half * conics[i, 0], conics[i, 1], half * conics[i, 2], opacities[i]
            begin = np.int64(max(np.ceil(v - reach[i]), zero))
            end = np.int64(min(np.floor(v + reach[i]) + one, real(rows)))
            for row in range(begin, end):
                if not alive[row]:
                    continue
                dy = v - real(row)
                cyy, by = c * dy * dy, b * dy
                r = np.uint64(row)
                for x in range(TILE):
                    dx = u - real(x)
                    sigma = (a * dx * dx + cyy) + by * dx
                    alpha = min(most, opacity * exp_minus(min(max(sigma, zero), far)))
                    light = state[r, 0, x]
                    rest = light * (one - alpha)
                    hits = (sigma >= zero) & (alpha >= least)
                    counts = hits & (rest > stop)
                    weight[x] = alpha * light if counts else zero
                    state[r, 1, x] = rest if counts else state[r, 1, x]
                    newest[r, x] = mark if counts else newest[r, x]
                    state[r, 0, x] = (rest if counts else zero) if hits else light
                for k in range(channels):
                    value, plane = features[i, k], np.uint64(_ROW_PLANES + k)
                    for x in range(TILE):
                        state[r, plane, x] += weight[x] * value
        for row in range(rows):
            for x in range(columns):
                rest = state[row, 1, x]
                transmittances[camera, top + row, left + x] = rest
                alphas[camera, top + row, left + x, 0] = one - rest
                last_entries[camera, top + row, left + x] = newest[row, x]
                for k in range(channels):
                    images[camera, top + row, left + x, k] = (
                        state[row, _ROW_PLANES + k, x] + rest * backgrounds[camera, k]
                    )


@compiled
@no_type_check
def blend_backward(
    first, last, order, offsets, tiles_across, tiles_down, ids, means2d, conics, opacities, features, reach,
    backgrounds, transmittances, last_entries, g_images, g_alphas, absolute, g_entries,
):  # fmt: skip
    """Gradients of all entries of tiles `order[first:last]`, back to front.

    With v the gradient of a pixel's colour, T_i the light that reaches entry i and w_j its neighbours' weights, the
    gradient of alpha_i is `T_i c_i v - (sum_{j behind i} w_j c_j v + T_end (background v - v_alpha)) / (1 - alpha_i)`.
    """
    real = means2d.dtype.type
    zero, one, half = real(0.0), real(1.0), real(0.5)
    most, least, far = real(0.999), one / real(255.0), real(80.0)
    height, width, channels = g_images.shape[1], g_images.shape[2], g_images.shape[3]
    # Per row of pixels: light in front of what is done, light behind times its colours' gradient, v.
    planes = _ROW_PLANES + channels
    state = np.empty((TILE, planes, TILE), means2d.dtype)
    newest = np.empty((TILE, TILE), np.int32)
    newest_of_row = np.empty(TILE, np.int64)
    # Sums over rows, per column: of g, g dy, g dy^2, |.| twice, and of the colours.
    sums = np.empty((5 + channels, TILE), means2d.dtype)
    pull, weight = np.empty(TILE, means2d.dtype), np.empty(TILE, means2d.dtype)
    for number in range(first, last):
        tile = order[number]
        camera, place = tile // (tiles_across * tiles_down), tile % (tiles_across * tiles_down)
        top, left = (place // tiles_across) * TILE, (place % tiles_across) * TILE
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        state[:] = zero
        newest[:] = -1
        newest_of_tile = -1
        for row in range(rows):
            newest_of_row[row] = -1
            for x in range(columns):
                rest = transmittances[camera, top + row, left + x]
                behind = -g_alphas[camera, top + row, left + x, 0]
                for k in range(channels):
                    g = g_images[camera, top + row, left + x, k]
                    behind += backgrounds[camera, k] * g
                    state[row, _ROW_PLANES + k, x] = g
                state[row, 0, x] = rest
                state[row, 1, x] = rest * behind
                newest[row, x] = last_entries[camera, top + row, left + x]
                newest_of_row[row] = max(newest_of_row[row], last_entries[camera, top + row, left + x])
            newest_of_tile = max(newest_of_tile, newest_of_row[row])
        for entry in range(offsets[tile + 1] - 1, offsets[tile] - 1, -1):
            if entry > newest_of_tile:
                g_entries[entry, :] = zero
                continue
            i, mark = ids[entry], np.int32(entry)
            u, v = means2d[i, 0] - real(left) - half, means2d[i, 1] - real(top) - half
            a, b, c, opacity = half * conics[i, 0], conics[i, 1], half * conics[i, 2], opacities[i]
            begin = np.int64(max(np.ceil(v - reach[i]), zero))
            end = np.int64(min(np.floor(v + reach[i]) + one, real(rows)))
            sums[:] = zero
            for row in range(begin, end):
                if newest_of_row[row] < entry:
                    continue
                dy = v - real(row)
                cyy, by = c * dy * dy, b * dy
                r = np.uint64(row)
                for x in range(TILE):
                    pull[x] = zero
                for k in range(channels):
                    value, plane = features[i, k], np.uint64(_ROW_PLANES + k)
                    for x in range(TILE):
                        pull[x] += value * state[r, plane, x]
                for x in range(TILE):
                    dx = u - real(x)
                    sigma = (a * dx * dx + cyy) + by * dx
                    shape = exp_minus(min(max(sigma, zero), far))
                    raw = opacity * shape
                    alpha = min(most, raw)
                    counts = (sigma >= zero) & (alpha >= least) & (newest[r, x] >= mark)
                    thinning = one / (one - alpha)
                    light = state[r, 0, x]
                    light = light * thinning if counts else light
                    state[r, 0, x] = light
                    w = alpha * light if counts else zero
                    behind = state[r, 1, x]
                    g_alpha = pull[x] * light - behind * thinning
                    state[r, 1, x] = behind + w * pull[x]
                    weight[x] = w
                    g = shape * g_alpha if counts & (raw <= most) else zero
                    pull[x] = g
                    sums[0, x] += g
                    sums[1, x] += g * dy
                    sums[2, x] += g * dy * dy
                if absolute:
                    for x in range(TILE):
                        dx = u - real(x)
                        sums[3, x] += abs(pull[x] * (a * dx + a * dx + by))
                        sums[4, x] += abs(pull[x] * (b * dx + c * dy + c * dy))
                for k in range(channels):
                    plane, of_color = np.uint64(_ROW_PLANES + k), np.uint64(5 + k)
                    for x in range(TILE):
                        sums[of_color, x] += weight[x] * state[r, plane, x]
            g0 = gx = gy = gxx = gxy = gyy = ax = ay = zero
            for x in range(TILE):
                dx = u - real(x)
                g0 += sums[0, x]
                gx += dx * sums[0, x]
                gxx += dx * dx * sums[0, x]
                gy += sums[1, x]
                gxy += dx * sums[1, x]
                gyy += sums[2, x]
            if absolute:
                for x in range(TILE):
                    ax += sums[3, x]
                    ay += sums[4, x]
            g_entries[entry, 0] = -opacity * (a * gx + a * gx + b * gy)
            g_entries[entry, 1] = -opacity * (b * gx + c * gy + c * gy)
            g_entries[entry, 2] = -opacity * half * gxx
            g_entries[entry, 3] = -opacity * gxy
            g_entries[entry, 4] = -opacity * half * gyy
            g_entries[entry, 5] = g0
            g_entries[entry, 6] = opacity * ax
            g_entries[entry, 7] = opacity * ay
            for k in range(channels):
                total = zero
                for x in range(TILE):
                    total += sums[5 + k, x]
                g_entries[entry, SHAPE_GRADIENTS + k] = total


@compiled
@no_type_check
def gather_gradients(first, last, starts, slots, g_entries, g_means2d, g_conics, g_opacities, g_absolute, g_features):
    """Adds up each Gaussian's entries, in the order of its tiles."""
    for i in range(first, last):
        for slot in range(starts[i], starts[i + 1]):
            entry = slots[slot]
            g_means2d[i, 0] += g_entries[entry, 0]
            g_means2d[i, 1] += g_entries[entry, 1]
            g_conics[i, 0] += g_entries[entry, 2]
            g_conics[i, 1] += g_entries[entry, 3]
            g_conics[i, 2] += g_entries[entry, 4]
            g_opacities[i] += g_entries[entry, 5]
            g_absolute[i, 0] += g_entries[entry, 6]
            g_absolute[i, 1] += g_entries[entry, 7]
            for k in range(g_features.shape[1]):
                g_features[i, k] += g_entries[entry, SHAPE_GRADIENTS + k]
