"""Depth and weight maps of a scene's photos as 16-bit PNG, EXR or NPZ, with cameras in a JSON beside them.

depth.json           what a map's pixels mean, and each one's camera
depth/IMG_1.jpg.png  depth along the camera's z axis, world unit; 0 where it is unknown
weight/IMG_1.jpg.png how far it can be believed; 0 where no static geometry explains the pixel
"""

import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from PIL import Image
from torch import Tensor

from lora3d_ns.atomic_files import replace_folder
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.export.crop import CropSettings, in_box, mask_files, read_mask
from lora3d_ns.export.exr import exr_bytes
from lora3d_ns.export.folders import bare_names, path_below, write_mark
from lora3d_ns.export.resample import at_photo_size
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.photos.masks import network_mask
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Scene

logger = logging.getLogger(__name__)

DEPTH_JSON, DEPTH_FOLDER, WEIGHT_FOLDER = "depth.json", "depth", "weight"
DepthKind = Literal["png", "exr", "npz"]

_DEEPEST = 65535
"""Of a PNG: that far, or further."""
_FEWEST_STEPS = 1000
"""Of a PNG, to the typical depth: what is so much deeper that there would be fewer is written as the deepest."""

_CONVENTION = (
    "depth * depth_step is the distance along the camera's z axis (not along the ray) in the world's unit, 0 where it "
    "is unknown. weight * weight_step says how far it can be believed. K (3x3) is in pixels of the map, the first "
    "pixel covering 0 to 1, its centre at 0.5. T_world_camera (4x4) maps camera coordinates (x right, y down, z "
    "forward) to the world: pixel (column, row) shows T_world_camera @ (depth * K^-1 @ (column + 0.5, row + 0.5, 1))."
)


@dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """How maps are written.

    Attributes:
        pixels: Those of the upright "photo", or those of the "network", of which each has its own depth.
        png_step: Depth between one grey value of a PNG and the next, world unit (0.001 for millimetres in a scene in
            metres). None: one that holds the scene's depths.
        edge_share: Between network pixels whose depths differ by more than this share nothing is interpolated.
    """

    pixels: Literal["photo", "network"] = "photo"
    png_step: float | None = None
    edge_share: float = 0.05

    def __post_init__(self) -> None:
        if self.png_step is not None and not 0 < self.png_step < float("inf"):
            raise SettingsError(f"a step of {self.png_step}", way_out="Use a positive number such as 0.001")
        if not self.edge_share > 0:
            raise SettingsError(f"an edge share of {self.edge_share}", way_out="Use a positive number such as 0.05")


@dataclass(frozen=True, eq=False, kw_only=True)
class DepthMap:
    """Depth of one photo.

    Attributes:
        depth: Along the camera's z axis, world unit; 0 where it is unknown.
        weight: How far it can be believed.
        K: Intrinsics in pixels of the map.
    """

    depth: Float32[np.ndarray, "height width"]
    weight: Float32[np.ndarray, "height width"]
    K: Float64[Tensor, "3 3"]


def write_depth(
    scene: Scene,
    details: SceneDetails,
    folder: Path,
    kind: DepthKind,
    *,
    settings: DepthSettings | None = None,
    crop: CropSettings | None = None,
) -> int:
    """Writes the maps of all photos.

    Args:
        scene: Whose cameras.
        details: Of the same scene.
        folder: Replaced as a whole.
        kind: "png" with 16 bits, "exr" with one channel of 32-bit floats, or "npz" with the arrays `depth`, `weight`,
            `K` and `T_world_camera`.
        settings: In which pixels.
        crop: Which pixels are known: those whose points would be kept.

    Returns:
        The number of photos.

    Raises:
        InvalidDataError: The details belong to another scene, or nothing is left.
        MaskError: A mask does not fit its photo, or there is none.
        StorageError: The folder cannot be written.
    """
    settings, crop = settings or DepthSettings(), crop or CropSettings()
    if details.names != scene.names:
        raise InvalidDataError("the details are those of another scene", way_out="Reconstruct the scene again")
    masks = {} if crop.masks is None else mask_files(scene, crop.masks)
    png = kind == "png"
    depth_step = (settings.png_step or _png_step(details.depths)) if png else 1.0
    heaviest = max(float(weight.max()) for weight in details.weights)
    weight_step = (heaviest or 1.0) / _DEEPEST if png else 1.0
    known, too_deep, entries = 0, 0, []
    with replace_folder(folder) as new:
        for view, (name, bare) in enumerate(zip(scene.names, bare_names(scene.names), strict=True)):
            made = depth_map(scene, details, view, settings, crop, mask=masks.get(view))
            known += int((made.depth > 0).sum())
            files = _write(new, bare, made, scene, view, kind, depth_step, weight_step)
            saturated = int((made.depth > depth_step * (_DEEPEST + 0.5)).sum()) if png else 0
            too_deep += saturated
            entries.append(
                {
                    "name": name,
                    **files,
                    "width": made.depth.shape[1],
                    "height": made.depth.shape[0],
                    "K": made.K.tolist(),
                    "T_world_camera": scene.cameras.T_world_camera[view].tolist(),
                    "pixels_beyond": saturated,
                }
            )
        if known == 0:
            raise InvalidDataError("no pixel's depth is left", way_out="Lower the weight or widen the box")
        content = {"convention": _CONVENTION, "depth_step": depth_step, "weight_step": weight_step, "maps": entries}
        (new / DEPTH_JSON).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_mark(new)
    if too_deep:
        logger.warning(
            "%d pixels are deeper than a 16-bit PNG with steps of %.4g can say, and have its deepest value; "
            "EXR and NPZ hold any depth",
            too_deep,
            depth_step,
        )
    return len(scene.names)


def depth_map(
    scene: Scene,
    details: SceneDetails,
    view: int,
    settings: DepthSettings,
    crop: CropSettings,
    *,
    mask: Path | None = None,
) -> DepthMap:
    """Depth and weight of one photo.

    Outside of what the network saw, and of `crop`, depth is unknown. Weight is 0 where it is, and where a pixel moves.

    Args:
        scene: Whose cameras.
        details: Of the same scene.
        view: Which photo.
        settings: At which resolution.
        crop: Which pixels are known.
        mask: The photo's file of `crop.masks`.
    """
    affine, size = details.source_from_network[view], scene.cameras.sizes[view]
    K = scene.cameras.K[view].double()
    K_network = affine.K_network_from_source(K)
    T = scene.cameras.T_world_camera[view].double()
    points = points_from_depth(details.depths[view].double(), K_network) @ T[:3, :3].T + T[:3, 3]
    keep = (details.depths[view] > 0) & (details.weights[view] >= crop.least_weight) & in_box(points, crop)
    own_mask = details.masks[view]
    if own_mask is not None:
        keep &= own_mask
    depth = torch.where(keep, details.depths[view].float(), 0.0).numpy()
    weight = torch.where(keep & ~details.moving[view], details.weights[view].float(), 0.0).numpy()
    counts = None if mask is None else read_mask(mask, size, crop.mask_means)
    if settings.pixels == "network":
        if counts is not None:
            counts = network_mask(counts, size, affine, (depth.shape[1], depth.shape[0]))
    else:
        depth, weight = at_photo_size(depth, weight, affine, size, edge_share=settings.edge_share)
    if counts is not None:
        depth, weight = np.where(counts, depth, np.float32(0)), np.where(counts, weight, np.float32(0))
    return DepthMap(depth=depth, weight=weight, K=K_network if settings.pixels == "network" else K)


def _png_step(depths: Sequence[Float[Tensor, "_ _"]]) -> float:
    """So that the deepest pixel fits, unless too few steps were left for the others then."""
    deepest = max(float(depth.max()) for depth in depths)
    typical = float(torch.cat([depth[depth > 0].flatten() for depth in depths] or [torch.ones(1)]).median())
    # Interpolation may go a little beyond the network's own pixels.
    return min(1.1 * deepest / _DEEPEST, typical / _FEWEST_STEPS)


def _write(
    folder: Path,
    name: str,
    made: DepthMap,
    scene: Scene,
    view: int,
    kind: DepthKind,
    depth_step: float,
    weight_step: float,
) -> dict[str, str]:
    """Writes the maps of one photo, and says where they lie."""
    if kind == "npz":
        path = path_below(folder, f"{DEPTH_FOLDER}/{name}.npz")
        T_world_camera = scene.cameras.T_world_camera[view].double().numpy()
        np.savez_compressed(path, depth=made.depth, weight=made.weight, K=made.K.numpy(), T_world_camera=T_world_camera)
        place = path.relative_to(folder).as_posix()
        return {"depth": place, "weight": place}
    encode: Callable[[np.ndarray, float, int], bytes] = _png_bytes if kind == "png" else lambda v, _s, _l: exr_bytes(v)
    places = {}
    for what, values, step, least in (
        (DEPTH_FOLDER, made.depth, depth_step, 1),
        (WEIGHT_FOLDER, made.weight, weight_step, 0),
    ):
        path = path_below(folder, f"{what}/{name}.{kind}")
        path.write_bytes(encode(values, step, least))
        places[what] = path.relative_to(folder).as_posix()
    return places


def _png_bytes(values: np.ndarray, step: float, least: int) -> bytes:
    """Values in steps, those above 0 between `least` and the deepest."""
    grey = np.where(values > 0, np.round(values / step).clip(least, _DEEPEST), 0).astype(np.uint16)
    content = io.BytesIO()
    Image.fromarray(grey).save(content, format="PNG", compress_level=1)
    return content.getvalue()
