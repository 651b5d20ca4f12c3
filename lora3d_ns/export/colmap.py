"""A scene as a COLMAP model: cameras, poses, points, and which pixels show them."""

from pathlib import Path
from typing import Literal

import numpy as np

from lora3d_ns.atomic_files import replace_folder
from lora3d_ns.errors import InvalidDataError, MissingPackageError
from lora3d_ns.export.tracks import TrackSettings, tracks_of
from lora3d_ns.types import Scene

ModelFormat = Literal["binary", "text"]


def write_colmap(
    scene: Scene, folder: Path, *, model_format: ModelFormat = "binary", tracks: TrackSettings | None = None
) -> int:
    """Writes `cameras`, `images` and `points3D` (and, by COLMAP's newer versions, `rigs` and `frames`).

    Photos of the same size and intrinsics share a PINHOLE camera. Names are the photos' own, so COLMAP's image path is
    the folder they came from. World, unit and pixels are ours: COLMAP counts pixels the same way.

    Args:
        scene: What to write.
        folder: Replaced as a whole.
        model_format: Of the files.
        tracks: Which pixels belong to one point, and how many points there are.

    Returns:
        The number of points.

    Raises:
        InvalidDataError: A photo's name has a space, which text models cannot hold; or no point is in two photos.
        MissingPackageError: pycolmap is not installed, or older than 3.12.
        StorageError: The folder cannot be written.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise MissingPackageError("COLMAP models need pycolmap", way_out="Run `pip install pycolmap`") from error
    model = pycolmap.Reconstruction()
    if not hasattr(model, "add_image_with_trivial_frame"):
        raise MissingPackageError(
            f"pycolmap {pycolmap.__version__} is too old to write models", way_out="Run `pip install -U pycolmap`"
        )
    spaced = [name for name in scene.names if model_format == "text" and len(name.split()) != 1]
    if spaced:
        raise InvalidDataError(
            f"COLMAP's text models cannot hold the name {spaced[0]!r}",
            way_out="Export a binary model (colmap), or rename the photo",
        )
    found = tracks_of(scene, tracks)
    # Where each observation stands among those of its photo, whose order is that of the points.
    places = np.zeros(len(found.views), dtype=np.int64)
    lenses: dict[tuple[object, ...], int] = {}
    views, pixels = found.views.numpy(), found.pixels.numpy()
    for view, name in enumerate(scene.names):
        K = scene.cameras.K[view].double().numpy()
        width, height = scene.cameras.sizes[view]
        lens = (width, height, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        if lens not in lenses:
            lenses[lens] = len(lenses) + 1
            camera = pycolmap.Camera(
                model="PINHOLE", width=width, height=height, params=list(lens[2:]), camera_id=lenses[lens]
            )
            model.add_camera_with_trivial_rig(camera)
        own = np.flatnonzero(views == view)
        places[own] = np.arange(len(own))
        image = pycolmap.Image(
            name=name,
            camera_id=lenses[lens],
            image_id=view + 1,
            points2D=pycolmap.Point2DList([pycolmap.Point2D(pixel) for pixel in pixels[own]]),
        )
        T_camera_world = np.linalg.inv(scene.cameras.T_world_camera[view].double().numpy())
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(T_camera_world[:3]))
    begins = np.searchsorted(found.of_point.numpy(), np.arange(len(found.points) + 1))
    for point, (position, color) in enumerate(zip(found.points.numpy(), found.colors.numpy(), strict=True)):
        track = pycolmap.Track()
        for observation in range(begins[point], begins[point + 1]):
            track.add_element(int(views[observation]) + 1, int(places[observation]))
        model.add_point3D(position, track, color)
    model.update_point_3d_errors()
    with replace_folder(folder) as new:
        (model.write_binary if model_format == "binary" else model.write_text)(str(new))
    return len(found.points)
