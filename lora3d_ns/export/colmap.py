"""A scene as a COLMAP model: cameras, poses, points, and which pixels show them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lora3d_ns.atomic_files import replace_folder
from lora3d_ns.errors import InvalidDataError, MissingPackageError
from lora3d_ns.export.folders import write_mark
from lora3d_ns.export.photos import photo_headers, upright_files
from lora3d_ns.export.tracks import Tracks, TrackSettings, tracks_of
from lora3d_ns.types import Cameras, Scene

if TYPE_CHECKING:
    import pycolmap

ModelFormat = Literal["binary", "text"]

IMAGES_FOLDER = "images"
SPARSE_FOLDER = "sparse"


def write_colmap(
    scene: Scene,
    folder: Path,
    *,
    model_format: ModelFormat = "binary",
    tracks: TrackSettings | None = None,
    cameras: Cameras | None = None,
    photos: Path | None = None,
) -> int:
    """Writes `cameras`, `images` and `points3D` (and, by COLMAP's newer versions, `rigs` and `frames`).

    Photos of the same size and intrinsics share a PINHOLE camera. World, unit and pixels are ours: COLMAP counts pixels
    the same way. Cameras are those of upright photos. Without `photos` the names are the photos' own; a photo that EXIF
    turns has then to be stored upright before COLMAP reads it.

    Args:
        scene: What to write.
        folder: Replaced as a whole.
        model_format: Of the files.
        tracks: Which pixels belong to one point, and how many points there are.
        cameras: Instead of the scene's own. Points and the pixels that show them stay.
        photos: Folder of the photos: the model goes to `sparse/0` and copies of them to `images`, which is how COLMAP
            and trainers of splats want them.

    Returns:
        The number of points.

    Raises:
        InvalidDataError: A photo's name has a space, which text models cannot hold; no point is in two photos; or a
            photo is not the one the scene was made from.
        MissingPackageError: pycolmap is not installed, or older than 3.12.
        StorageError: The folder cannot be written, or a photo is not there.
        PhotoError: A photo cannot be read.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise MissingPackageError("COLMAP models need pycolmap", way_out="Run `pip install pycolmap`") from error
    if not hasattr(pycolmap.Reconstruction, "add_image_with_trivial_frame"):
        raise MissingPackageError(
            f"pycolmap {pycolmap.__version__} is too old to write models", way_out="Run `pip install -U pycolmap`"
        )
    headers = None if photos is None else photo_headers(scene, photos)
    found = tracks_of(scene, tracks)
    with replace_folder(folder) as new:
        names, place = scene.names, new
        if headers is not None:
            images, place = new / IMAGES_FOLDER, new / SPARSE_FOLDER / "0"
            place.mkdir(parents=True)
            copies = upright_files(scene.names, headers, images, copy_all=True)
            names = tuple(copy.relative_to(images).as_posix() for copy in copies)
            write_mark(place)
        write_mark(new)
        spaced = [name for name in names if model_format == "text" and len(name.split()) != 1]
        if spaced:
            raise InvalidDataError(
                f"COLMAP's text models cannot hold the name {spaced[0]!r}",
                way_out="Export a binary model (colmap), or rename the photo",
            )
        model = _model(names, cameras or scene.cameras, found)
        (model.write_binary if model_format == "binary" else model.write_text)(str(place))
    return len(found.points)


def _model(names: Sequence[str], cameras: Cameras, found: Tracks) -> "pycolmap.Reconstruction":
    import pycolmap

    model = pycolmap.Reconstruction()
    # Where each observation stands among those of its photo, whose order is that of the points.
    places = np.zeros(len(found.views), dtype=np.int64)
    lenses: dict[tuple[object, ...], int] = {}
    views, pixels = found.views.numpy(), found.pixels.numpy()
    for view, name in enumerate(names):
        K = cameras.K[view].double().numpy()
        width, height = cameras.sizes[view]
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
        T_camera_world = np.linalg.inv(cameras.T_world_camera[view].double().numpy())
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(T_camera_world[:3]))
    begins = np.searchsorted(found.of_point.numpy(), np.arange(len(found.points) + 1))
    for point, (position, color) in enumerate(zip(found.points.numpy(), found.colors.numpy(), strict=True)):
        track = pycolmap.Track()
        for observation in range(begins[point], begins[point + 1]):
            track.add_element(int(views[observation]) + 1, int(places[observation]))
        model.add_point3D(position, track, color)
    model.update_point_3d_errors()
    return model
