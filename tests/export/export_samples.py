"""A finished scene with its photos as files: landscape, portrait, turned by EXIF both ways, and cropped."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import torch
from alignment.aligned_rooms import OFF, exact, room
from PIL import Image

from lora3d_ns.alignment.align import align
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.reconstruct import scene_of
from lora3d_ns.scene_io.details import DETAILS_FORMAT_VERSION, SceneDetails
from lora3d_ns.types import AlignedScene, Cameras, Scene, Views

VIEWS = 4
SHAPES = ((24, 32), (32, 24))
CUTOFF = 0.1
NAMES = ("photo_0.png", "photo_1.jpg", "photo_2.jpg", "photo_3.png")
ORIENTATIONS = (1, 6, 3, 1)
"""The second is stored on its side, the third upside down."""
CROPPED = 3
"""Of this photo the network saw no more than the middle, and not quite that: what is lost, in source pixels."""
LOST_PX = {"left": 7, "top": 5, "right": 9, "bottom": 3}


@functools.cache
def parts(source_scale: float = 2.0) -> tuple[Views, AlignedScene]:
    """Photos of a room in landscape and portrait with their true cameras and depths, and weights of all sizes."""
    photos = room(VIEWS, shapes=SHAPES, source_scale=source_scale, seed=2)
    aligned = align(photos.views, exact(VIEWS, shapes=SHAPES, seed=2), OFF)
    affines, sizes, K = (
        list(photos.views.source_from_network),
        list(photos.views.source_sizes),
        photos.cameras.K.clone(),
    )
    affine, (width, height) = affines[CROPPED], sizes[CROPPED]
    affines[CROPPED] = PixelAffine(
        scale_x=affine.scale_x,
        scale_y=affine.scale_y,
        offset_x_px=float(LOST_PX["left"]),
        offset_y_px=float(LOST_PX["top"]),
    )
    sizes[CROPPED] = (width + LOST_PX["left"] + LOST_PX["right"], height + LOST_PX["top"] + LOST_PX["bottom"])
    K[CROPPED, :2, 2] += torch.tensor([LOST_PX["left"], LOST_PX["top"]])
    views = dataclasses.replace(
        photos.views, names=NAMES, source_from_network=tuple(affines), source_sizes=tuple(sizes)
    )
    generator = torch.Generator().manual_seed(0)
    aligned = dataclasses.replace(
        aligned,
        cameras=Cameras(T_world_camera=photos.cameras.T_world_camera, K=K, sizes=tuple(sizes)),
        depths=photos.depths_m,
        view_weights=tuple(0.2 + torch.rand(depth.shape, generator=generator) for depth in photos.depths_m),
    )
    return views, aligned


@functools.cache
def made(source_scale: float = 2.0) -> Scene:
    views, aligned = parts(source_scale)
    return scene_of(views, aligned, cutoff=CUTOFF, provenance={})


@functools.cache
def made_details(source_scale: float = 2.0) -> SceneDetails:
    views, aligned = parts(source_scale)
    return SceneDetails(
        names=views.names,
        images=tuple((image.permute(1, 2, 0) * 255.0).round().to(torch.uint8) for image in views.images),
        masks=views.masks,
        source_from_network=views.source_from_network,
        focal_px=aligned.cameras.K[:, 0, 0].float(),
        depths=aligned.depths,
        weights=aligned.view_weights,
        confidences=aligned.view_weights,
        residuals=aligned.view_weights,
        moving=aligned.moving,
        edges=aligned.graph.edges,
        overlap=torch.ones(len(aligned.graph.edges)),
        dropped={},
        losses=(),
        seconds=(),
        diagnosis=aligned.diagnosis,
        learning=None,
        format_version=DETAILS_FORMAT_VERSION,
    )


def write_photos(folder: Path, scene: Scene) -> Path:
    """Files of the scene's photos: the upper half white, the rest of each another grey."""
    folder.mkdir(parents=True)
    for view, (name, (width, height)) in enumerate(zip(scene.names, scene.cameras.sizes, strict=True)):
        pixels = np.full((height, width, 3), 40 * view, dtype=np.uint8)
        pixels[: height // 2] = 255
        exif = Image.Exif()
        exif[0x0112] = ORIENTATIONS[view]
        # As a camera held that way stores it: 6 asks for a quarter turn clockwise, 3 for half a turn.
        stored = np.rot90(pixels, {1: 0, 6: 1, 3: 2}[ORIENTATIONS[view]])
        Image.fromarray(np.ascontiguousarray(stored)).save(folder / name, exif=exif, quality=95)
    return folder


def write_refined(path: Path, scene: Scene, cameras: Cameras) -> Path:
    """A file as the trainer of splats writes it."""
    entries = [
        {"name": name, "width": size[0], "height": size[1], "K": K.tolist(), "T_world_camera": T_world_camera.tolist()}
        for name, size, K, T_world_camera in zip(
            scene.names, cameras.sizes, cameras.K, cameras.T_world_camera, strict=True
        )
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"convention": "as in lora3d_ns.plugin.trainer", "cameras": entries}))
    return path
