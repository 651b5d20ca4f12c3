"""The first surface that each pixel's ray meets, and whether a lamp sees it.

Pixels are handled in square tiles. For each tile the solids that could be in it are found from their bounding boxes;
only those are intersected. The result is exact: a solid is left out of a tile only if it cannot be seen there.

Rays are `origin + z * (x, y, 1)` in camera axes, so their parameter is depth along the viewing axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_ns.rooms.primitives import FAR, SOLID_KINDS, intersect
from lora3d_ns.rooms.scenes import FACE_COUNT, RoomScenes

_SHADOW_MARGIN = 2.0e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewBatch:
    """Views of rooms, one row each, with all that varies from view to view.

    Attributes:
        K, R_world_camera, origin_world_m: The cameras.
        room_size_m: [views, 3].
        kind, center_world_m, R_world_object, half_size_m, taper: Surfaces as in `RoomScenes`, at each view's time.
        seen, casts_shadow: [views, surfaces] which solids exist, and which of them cast shadows.
        width, height: Size of the photos in pixels.
        tile_px: Side of a tile.
    """

    K: Tensor
    R_world_camera: Tensor
    origin_world_m: Tensor
    room_size_m: Tensor
    kind: Tensor
    center_world_m: Tensor
    R_world_object: Tensor
    half_size_m: Tensor
    taper: Tensor
    seen: Tensor
    casts_shadow: Tensor
    width: int
    height: int
    tile_px: int

    @property
    def tile_columns(self) -> int:
        """Tiles across the photo, the last one perhaps partly outside."""
        return -(-self.width // self.tile_px)

    @property
    def tile_rows(self) -> int:
        """Tiles down the photo."""
        return -(-self.height // self.tile_px)

    @property
    def tile_count(self) -> int:
        """Tiles of all views."""
        return len(self.K) * self.tile_rows * self.tile_columns

    def columns_camera(self) -> Tensor:
        """x of the rays of each column of pixels, camera axes, [views, tile columns, tile_px]."""
        u = torch.arange(self.tile_columns * self.tile_px, device=self.K.device, dtype=torch.float32) + 0.5
        x = (u - self.K[:, 0, 2, None]) / self.K[:, 0, 0, None]
        return x.reshape(len(x), self.tile_columns, self.tile_px)

    def rows_camera(self) -> Tensor:
        """y of the rays of each row of pixels, camera axes, [views, tile rows, tile_px]."""
        v = torch.arange(self.tile_rows * self.tile_px, device=self.K.device, dtype=torch.float32) + 0.5
        y = (v - self.K[:, 1, 2, None]) / self.K[:, 1, 1, None]
        return y.reshape(len(y), self.tile_rows, self.tile_px)

    def view_of_tile(self) -> Tensor:
        """Row of the view that each tile belongs to."""
        per_view = self.tile_rows * self.tile_columns
        return torch.arange(len(self.K), device=self.K.device).repeat_interleave(per_view)

    def per_ray(self, values: Tensor) -> Tensor:
        """One value per view, as a column that broadcasts against [tiles, pixels of a tile]."""
        return values[self.view_of_tile()][:, None]

    def untile(self, values: Tensor) -> Tensor:
        """Images [views, height, width] from [tiles, pixels of a tile]."""
        tile = self.tile_px
        grid = values.reshape(len(self.K), self.tile_rows, self.tile_columns, tile, tile).permute(0, 1, 3, 2, 4)
        return grid.reshape(len(self.K), self.tile_rows * tile, self.tile_columns * tile)[
            :, : self.height, : self.width
        ]


def view_batch(
    scenes: RoomScenes, scene_rows: Tensor, T_world_camera: Tensor, K: Tensor, time: Tensor, size: tuple[int, int]
) -> ViewBatch:
    """Views of rooms.

    Args:
        scenes: The rooms.
        scene_rows: [views] which room each view is of.
        T_world_camera, K: [views, 4, 4] and [views, 3, 3].
        time: [views] moment of the photo in 0 to 1; things that move are half way at 0.5.
        size: (width, height).
    """
    width, height = size
    moved = scenes.displacement_m[scene_rows] * (time - 0.5)[:, None]
    center = scenes.center_world_m[scene_rows] + moved[:, None, :] * scenes.moving[scene_rows][..., None]
    return ViewBatch(
        K=K,
        R_world_camera=T_world_camera[:, :3, :3],
        origin_world_m=T_world_camera[:, :3, 3],
        room_size_m=scenes.room_size_m[scene_rows],
        kind=scenes.kind[scene_rows],
        center_world_m=center,
        R_world_object=scenes.R_world_object[scene_rows],
        half_size_m=scenes.half_size_m[scene_rows],
        taper=scenes.taper[scene_rows],
        seen=scenes.valid[scene_rows],
        casts_shadow=(scenes.valid & scenes.casts_shadow)[scene_rows],
        width=width,
        height=height,
        tile_px=8 if min(width, height) < 192 else 16,
    )


def product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product over 3 terms, written out: a library's result may depend on the batch's size."""
    return sum(
        (left[..., :, k, None] * right[..., k, None, :] for k in (1, 2)), left[..., :, 0, None] * right[..., 0, None, :]
    )


def first_hits(views: ViewBatch) -> tuple[Tensor, Tensor]:
    """Depth along z in metres and surface number of each pixel, both [tiles, pixels of a tile].

    Exact up to float32 rounding; always finite for a camera inside the room.
    """
    depth, surface = _room_hits(views)
    solids = slice(FACE_COUNT, None)
    half = views.half_size_m[:, solids]
    R_object_world = views.R_world_object[:, solids].mT
    R_object_camera = product(R_object_world, views.R_world_camera[:, None])
    center_to_origin = (views.origin_world_m[:, None] - views.center_world_m[:, solids])[..., None]
    origin_unit = product(R_object_world, center_to_origin)[..., 0] / half
    unit_from_camera = R_object_camera / half[..., None]
    visible = _tiles_of_solids(views, R_object_camera, origin_unit * half, half) & views.seen[:, None, solids]
    visible = visible.reshape(views.tile_count, -1)

    x, y = views.columns_camera(), views.rows_camera()
    x = x[:, None].expand(-1, views.tile_rows, -1, -1).reshape(views.tile_count, 1, views.tile_px)
    y = y[:, :, None].expand(-1, -1, views.tile_columns, -1).reshape(views.tile_count, views.tile_px, 1)
    view_of_tile = views.view_of_tile()
    for kind, tiles, numbers in _pairs_by_rank(visible, views.kind[:, solids], view_of_tile):
        view = view_of_tile[tiles]
        matrix, origin = unit_from_camera[view, numbers], origin_unit[view, numbers]
        x_pair, y_pair = x[tiles], y[tiles]
        directions = [
            (
                (matrix[:, axis, 0, None, None] * x_pair + matrix[:, axis, 2, None, None])
                + matrix[:, axis, 1, None, None] * y_pair
            ).reshape(len(tiles), -1)
            for axis in range(3)
        ]
        origins = [origin[:, axis, None] for axis in range(3)]
        taper = views.taper[:, solids][view, numbers][:, None]
        enter, leave = intersect(
            kind, (origins[0], origins[1], origins[2]), (directions[0], directions[1], directions[2]), taper
        )
        enter = enter + ((enter > leave) | (enter <= 0)) * FAR
        nearest, nearest_surface = depth[tiles], surface[tiles]
        closer = (enter < nearest).to(surface.dtype)
        depth[tiles] = torch.minimum(enter, nearest)
        surface[tiles] = nearest_surface + closer * (
            (numbers + FACE_COUNT).to(surface.dtype)[:, None] - nearest_surface
        )
    return depth, surface


def _room_hits(views: ViewBatch) -> tuple[Tensor, Tensor]:
    """Where the rays leave the room, [tiles, pixels of a tile]."""
    # Both broadcast to [views, tile rows, tile columns, rows of a tile, columns of a tile].
    x = views.columns_camera()[:, None, :, None, :]
    y = views.rows_camera()[:, :, None, :, None]
    depth: Tensor | None = None
    surface: Tensor | None = None
    for axis in range(3):
        row = views.R_world_camera[:, axis, :, None, None, None, None]
        direction = row[:, 0] * x + row[:, 2] + row[:, 1] * y
        middle = 0.5 * views.room_size_m[:, 2] if axis == 2 else torch.zeros_like(views.room_size_m[:, 2])
        origin = (views.origin_world_m[:, axis] - middle)[:, None, None, None, None]
        half = 0.5 * views.room_size_m[:, axis, None, None, None, None]
        inverse = 1.0 / (direction + (direction == 0) * 1e-20)
        leave = half * inverse.abs() - origin * inverse
        face = 2 * axis + (direction > 0).to(torch.int32)
        if depth is None or surface is None:
            depth, surface = leave, face
        else:
            surface = surface + (leave < depth).to(torch.int32) * (face - surface)
            depth = torch.minimum(leave, depth)
    assert depth is not None
    assert surface is not None
    return depth.reshape(views.tile_count, -1), surface.reshape(views.tile_count, -1)


def _tiles_of_solids(views: ViewBatch, R_object_camera: Tensor, origin_object: Tensor, half: Tensor) -> Tensor:
    """Which solids may be seen in which tile, by their bounding boxes: bool [views, rows x columns, solids].

    A box lies wholly left of the plane through the camera and the left border of a tile, or not; likewise for the
    other borders. Rows and columns are independent of each other.
    """
    R_camera_object = R_object_camera.mT
    center_camera = -product(R_camera_object, origin_object[..., None])[..., 0]
    # A margin for rounding, and for rays at the very border.
    half = half * 1.001 + 1e-4

    nearest_reach = sum(
        (R_camera_object[..., 2, k].abs() * half[..., k] for k in range(3)), torch.zeros_like(center_camera[..., 2])
    )
    in_front = center_camera[..., 2] + nearest_reach > 0
    in_columns = _between_borders(R_camera_object, center_camera, half, 0, _borders(views, views.tile_columns, 0))
    in_columns = in_columns & in_front[..., None]
    in_rows = _between_borders(R_camera_object, center_camera, half, 1, _borders(views, views.tile_rows, 1))
    both = in_rows[..., :, None] & in_columns[..., None, :]
    return both.flatten(2).transpose(1, 2)


def _borders(views: ViewBatch, count: int, axis: int) -> Tensor:
    """x (axis 0) or y (axis 1) of the rays at the tiles' borders, [views, tiles + 1]."""
    pixels = torch.arange(count + 1, device=views.K.device, dtype=torch.float32) * views.tile_px
    return (pixels[None] - views.K[:, axis, 2, None]) / views.K[:, axis, axis, None]


def _between_borders(
    R_camera_object: Tensor, center_camera: Tensor, half: Tensor, axis: int, borders: Tensor
) -> Tensor:
    """Which boxes reach into the wedge between consecutive borders, [views, solids, tiles]."""
    # Signed "beyond the border" of p is p[axis] - border * p[2].
    value = center_camera[..., axis, None] - borders[:, None, :] * center_camera[..., 2, None]
    reach = sum(
        (
            (R_camera_object[..., axis, k, None] - borders[:, None, :] * R_camera_object[..., 2, k, None]).abs()
            * half[..., k, None]
            for k in range(3)
        ),
        torch.zeros_like(value),
    )
    return (value + reach >= 0)[..., :-1] & (value - reach <= 0)[..., 1:]


def _pairs_by_rank(candidates: Tensor, kinds: Tensor, view_of_tile: Tensor):
    """Split (tile, solid) pairs into groups of one kind in which no tile occurs twice.

    Args:
        candidates: [tiles, solids] which pairs there are.
        kinds: [views, solids].
        view_of_tile: [tiles].

    Yields:
        The kind, and the tiles and solids of a group.
    """
    for kind in SOLID_KINDS:
        of_kind = candidates & (kinds == kind)[view_of_tile]
        tiles, numbers = of_kind.nonzero(as_tuple=True)
        if len(tiles) == 0:
            continue
        rank = (of_kind.cumsum(dim=1) - 1)[tiles, numbers]
        order = rank.argsort(stable=True)
        tiles, numbers = tiles[order], numbers[order]
        start = 0
        for count in torch.bincount(rank).tolist():
            yield kind, tiles[start : start + count], numbers[start : start + count]
            start += count


def lit_by(views: ViewBatch, points_world_m: tuple[Tensor, Tensor, Tensor], light_m: Tensor) -> Tensor:
    """1.0 where nothing stands between a lamp and a point, else 0.0; [tiles, pixels of a tile].

    Args:
        views: The views that the points were seen in.
        points_world_m: x, y, z of the points, [tiles, pixels of a tile] each.
        light_m: [views, 3] the lamp.
    """
    view_of_tile = views.view_of_tile()
    solids = slice(FACE_COUNT, None)
    half = views.half_size_m[:, solids]
    R_object_world = views.R_world_object[:, solids].mT
    origin_unit = (
        product(R_object_world, (light_m[:, None] - views.center_world_m[:, solids])[..., None])[..., 0] / half
    )
    unit_from_world = R_object_world / half[..., None]

    # A solid can shade a tile only if its box meets the box around the lamp and the tile's points ...
    low = torch.stack([component.amin(dim=1) for component in points_world_m], dim=-1)
    high = torch.stack([component.amax(dim=1) for component in points_world_m], dim=-1)
    middle, spread = 0.5 * (low + high), 0.5 * (high - low)
    reach = sum(
        (views.R_world_object[:, solids, :, k].abs() * half[..., k, None] for k in range(3)),
        torch.zeros_like(views.center_world_m[:, solids]),
    )
    center = views.center_world_m[:, solids]
    light = light_m[view_of_tile]
    shades = views.casts_shadow[:, solids][view_of_tile]
    hull_low, hull_high = torch.minimum(low, light), torch.maximum(high, light)
    for axis in range(3):
        low_end, high_end = (center - reach)[..., axis][view_of_tile], (center + reach)[..., axis][view_of_tile]
        shades = shades & (low_end <= hull_high[:, axis, None]) & (high_end >= hull_low[:, axis, None])
    # ... and reaches into the tube about the line from the lamp to the tile's points.
    tiles, numbers = shades.nonzero(as_tuple=True)
    views_of_pairs = view_of_tile[tiles]
    line = (middle - light)[tiles]
    to_center = center[views_of_pairs, numbers] - light[tiles]
    along = ((to_center * line).sum(dim=-1) / line.square().sum(dim=-1).clamp_min(1e-12)).clamp(0.0, 1.0)
    away = to_center - along[:, None] * line
    gap = away.square().sum(dim=-1).sqrt()
    axes = views.R_world_object[:, solids][views_of_pairs, numbers]
    towards = product(axes.mT, away[..., None])[..., 0].abs() / gap.clamp_min(1e-6)[:, None]
    box_reach = (towards * half[views_of_pairs, numbers]).sum(dim=-1)
    tube = spread.square().sum(dim=-1).sqrt()[tiles] + 1e-3
    shades[tiles, numbers] = gap <= box_reach + tube

    lit = torch.ones_like(points_world_m[0])
    for kind, tiles, numbers in _pairs_by_rank(shades, views.kind[:, solids], view_of_tile):
        view = view_of_tile[tiles]
        matrix, origin = unit_from_world[view, numbers], origin_unit[view, numbers]
        offsets = [component[tiles] - light[tiles, axis, None] for axis, component in enumerate(points_world_m)]
        directions = [
            matrix[:, axis, 0, None] * offsets[0]
            + matrix[:, axis, 1, None] * offsets[1]
            + matrix[:, axis, 2, None] * offsets[2]
            for axis in range(3)
        ]
        origins = [origin[:, axis, None] for axis in range(3)]
        taper = views.taper[:, solids][view, numbers][:, None]
        enter, leave = intersect(
            kind, (origins[0], origins[1], origins[2]), (directions[0], directions[1], directions[2]), taper
        )
        shaded = (enter <= leave) & (enter < 1.0 - _SHADOW_MARGIN) & (leave > 0)
        lit[tiles] = lit[tiles] * (~shaded).to(lit.dtype)
    return lit
