"""Procedural furnished rooms with exact truth: the public face of the generator.

    scenes = sample_scenes(NOMINAL, seed=0, indices=64)
    cameras = sample_views(scenes, 8, size=(128, 96))
    renders = render(scenes, cameras)           # rgb, depth_m, normals_world, object_ids, K, T_world_camera

A scene depends on (seed, index, domain) alone. Domains with the same seed and index share their random numbers, so the
dark room 7 is the nominal room 7 by night: use another seed where that would leak from training into a test.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lora3d_ns.rooms.cameras import (
    RoomPairs,
    Split,
    clearance_m,
    pairwise_overlap,
    reproject,
    sample_pairs,
    sample_views,
)
from lora3d_ns.rooms.disk import PhotographedRoom, photographed_room, write_scene
from lora3d_ns.rooms.domains import (
    CLUTTER,
    DARK,
    DOMAINS,
    MOVING,
    NOMINAL,
    SPARSE,
    TELE,
    RoomDomain,
    domain_by_name,
)
from lora3d_ns.rooms.render import RoomCameras, RoomRenders, cast_depth, render
from lora3d_ns.rooms.scenes import RoomScenes, sample_scenes

__all__ = [
    "CLUTTER", "DARK", "DEMO_INDEX", "DEMO_SEED", "DOMAINS", "MOVING", "NOMINAL", "SPARSE", "TELE", "PhotographedRoom",
    "RoomCameras", "RoomDomain", "RoomPairs", "RoomRenders", "RoomScenes", "Split", "cast_depth", "clearance_m",
    "demo_room", "demo_scene", "domain_by_name", "pairwise_overlap", "photographed_room", "render", "reproject",
    "sample_pairs", "sample_scenes", "sample_views", "write_contact_sheet", "write_scene",
]  # fmt: skip

# A nominal room that shows most of what there is; see the contact sheet.
DEMO_SEED = 2025
DEMO_INDEX = 26
_PORTRAIT_VIEWS = (1, 4)


def demo_scene(device: torch.device | str = "cpu") -> RoomScenes:
    """The room of `make demo`: one nominal scene, always the same."""
    return sample_scenes(NOMINAL, seed=DEMO_SEED, indices=[DEMO_INDEX], device=device)


def demo_room(
    *,
    photo_count: int = 6,
    size: tuple[int, int] = (512, 384),
    split: Split = "calibration",
    device: torch.device | str = "cpu",
) -> PhotographedRoom:
    """The demo's photos with truth: landscape, but for the second and the fifth, for which the phone was turned.

    Args:
        photo_count: Number of photos.
        size: (width, height) of a landscape photo in pixels.
        split: `calibration`, or `test` for held-out photos from the same path.
        device: Where to render.
    """
    scene = demo_scene(device)
    landscape = sample_views(scene, photo_count, size=size, split=split)
    portrait = sample_views(scene, photo_count, size=(size[1], size[0]), split=split)
    renders = []
    for view in range(photo_count):
        cameras = portrait if view in _PORTRAIT_VIEWS else landscape
        renders.append(render(scene, cameras.select_views([view]), supersample=2))
    return photographed_room(renders)


def write_contact_sheet(
    path: Path,
    domains: Sequence[RoomDomain] = tuple(DOMAINS.values()),
    *,
    seed: int = DEMO_SEED,
    index: int = DEMO_INDEX,
    photo_count: int = 6,
    size: tuple[int, int] = (256, 192),
) -> None:
    """Write a picture with one row of photos and one of depth (near is bright) for each domain, top to bottom.

    Args:
        path: Picture to write; the ending says in which format.
        domains: Domains to show.
        seed, index: Which scene of each.
        photo_count: Photos per scene.
        size: (width, height) of each photo in pixels.
    """
    rows = []
    for domain in domains:
        scenes = sample_scenes(domain, seed=seed, indices=[index])
        renders = render(scenes, sample_views(scenes, photo_count, size=size), supersample=2)
        nearness = renders.depth_m[0].amin() / renders.depth_m[0]
        pictures = torch.cat([renders.rgb[0], nearness[..., None].expand(-1, -1, -1, 3)])
        strip = (pictures * 255.0).round().to(torch.uint8).numpy()
        rows += [np.concatenate(list(strip[:photo_count]), axis=1), np.concatenate(list(strip[photo_count:]), axis=1)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
