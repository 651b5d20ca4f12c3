"""A room's photos as files, its scene, and a short training of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora3d_ns.commands import Source
from lora3d_ns.pair_graph import CompleteGraph, WindowGraph
from lora3d_ns.photo_scene import PhotoScene, make_photo_scene
from lora3d_ns.plugin.training import TrainedSplats, train_splats
from lora3d_ns.reconstruct import ReconstructSettings
from lora3d_ns.rooms.benchmark_scenes import make_scene
from lora3d_ns.rooms.generator import domain_by_name, render, sample_scenes, sample_views


def write_photos(folder: Path, count: int, *, mask: int | None = None) -> Path:
    """Photos of a room as files of 96x64 pixels; the left third of one masked."""
    (folder / "masks").mkdir(parents=True)
    views = make_scene("tele", 1, size=(96, 64), seed_offset=700).calibration.views
    for view in range(count):
        pixels = (views.images[view].permute(1, 2, 0) * 255.0).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{view}.png")
    if mask is not None:
        values = np.full((64, 96), 255, dtype=np.uint8)
        values[:, :30] = 0
        Image.fromarray(values).save(folder / "masks" / f"{mask}.png")
    return folder


def robust_settings() -> ReconstructSettings:
    """The network as it is: what these tests are about comes after it."""
    return ReconstructSettings(arm="robust").silent()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of a room, one of them with a mask; the third is held out."""
    return write_photos(tmp_path_factory.mktemp("room") / "photos", 5, mask=3)


@pytest.fixture(scope="session")
def scene(photos: Path) -> PhotoScene:
    source = Source(photos=photos, network="rooms", device="cpu")
    return make_photo_scene(source, photos.parent / "scene", robust_settings())


@pytest.fixture
def photos_and_scene() -> Callable[..., tuple[Path, PhotoScene]]:
    """So many photos of a room along one path, some of them portrait, and their scene."""

    def make(folder: Path, count: int, *, portrait: tuple[int, ...] = ()) -> tuple[Path, PhotoScene]:
        room = sample_scenes(domain_by_name("tele"), seed=700, indices=[1])
        (folder / "photos").mkdir()
        for size, chosen in (((96, 64), set(range(count)) - set(portrait)), ((64, 96), set(portrait))):
            cameras = sample_views(room, count, size=size)
            for view in sorted(chosen):
                rgb = render(room, cameras.select_views([view])).rgb[0, 0]
                Image.fromarray((rgb * 255.0).round().byte().numpy()).save(folder / "photos" / f"{view:02d}.png")
        settings = robust_settings()
        # Point maps alone: quick, and good enough for pictures that are not looked at.
        settings = dataclasses.replace(
            settings,
            graph=CompleteGraph() if count < 9 else WindowGraph(size=2),
            alignment=dataclasses.replace(settings.alignment, matches="off"),
        )
        source = Source(photos=folder / "photos", network="rooms", device="cpu")
        return folder / "photos", make_photo_scene(source, folder / "scene", settings)

    return make


@pytest.fixture(scope="session")
def train(scene: PhotoScene, photos: Path) -> Callable[..., TrainedSplats]:
    """Trains a few steps of small pictures in a folder."""

    def run(output: Path, iterations: int = 12, change: Callable[[Any], None] | None = None, **options: Any) -> Any:
        def all_changes(config: Any) -> None:
            config.pipeline.datamanager.longest_side_px = 48
            config.pipeline.model.test_pose_steps = 3
            config.pipeline.model.lpips = False
            if change is not None:
                change(config)

        return train_splats(
            options.pop("scene", scene), options.pop("photos", photos), output,
            iterations=iterations, change=all_changes, quiet=True, **options,
        )  # fmt: skip

    return run
