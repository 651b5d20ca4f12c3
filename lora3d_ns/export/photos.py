"""The photos of a scene as files that programs read right which know nothing of orientation and colour profiles."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lora3d_ns.errors import InvalidDataError, StorageError
from lora3d_ns.export.folders import bare_names, path_below
from lora3d_ns.images import PhotoSettings, load_source_photo
from lora3d_ns.photos.files import PhotoHeader, is_plain, read_header
from lora3d_ns.types import Scene


def photo_headers(scene: Scene, folder: Path) -> list[PhotoHeader]:
    """The scene's photos in a folder or, as `load_views` has it, in its `images`, by their names.

    Raises:
        StorageError: A photo is not there.
        InvalidDataError: One has another size than the scene's: it is another photo.
        PhotoError: One cannot be read.
    """
    headers = []
    for name, size in zip(scene.names, scene.cameras.sizes, strict=True):
        path = next((path for path in (folder / name, folder / "images" / name) if path.is_file()), None)
        if path is None:
            raise StorageError(
                "the scene's photo is not there", way_out="Give the folder the scene was made from", path=folder / name
            )
        header = read_header(path)
        if header.upright_size != size:
            raise InvalidDataError(
                f"{path} has {header.upright_size[0]}x{header.upright_size[1]} pixels, the scene's camera "
                f"{size[0]}x{size[1]}",
                way_out="Give the folder the scene was made from",
            )
        headers.append(header)
    return headers


def upright_files(
    names: Sequence[str], headers: Sequence[PhotoHeader], folder: Path, *, copy_all: bool = False
) -> tuple[Path, ...]:
    """The photos' own files where they are upright sRGB already, else PNG copies in the folder.

    A copy of `IMG_1.HEIC` is `IMG_1.png`, or `IMG_1.HEIC.png` where several photos are called `IMG_1`.

    Args:
        names: Of the photos.
        headers: Of their files.
        folder: For the copies; made if there are any.
        copy_all: Also files that could stay where they are, byte for byte under their own names.

    Raises:
        StorageError: A copy cannot be written.
        InvalidDataError: A photo's name points out of the folder.
        PhotoError: A photo cannot be read.
    """
    files = []
    for name, bare, header in zip(names, bare_names(names), headers, strict=True):
        plain = is_plain(header)
        if plain and not copy_all:
            files.append(header.path.resolve())
            continue
        copy = path_below(folder, name if plain else f"{bare}.png")
        files.append(_copied(header, copy, plain=plain))
    return tuple(files)


def _copied(header: PhotoHeader, copy: Path, *, plain: bool) -> Path:
    try:
        if plain:
            shutil.copyfile(header.path, copy)
            return copy
        color: Image.Image = load_source_photo(header, None, PhotoSettings()).color
        bare = color.copy()
        # Pillow would write the old orientation into the upright copy.
        bare.info = {}
        bare.save(copy, compress_level=1)
    except OSError as error:
        raise StorageError(
            f"the copy cannot be written ({error.strerror or error})", way_out="Choose another folder", path=copy
        ) from error
    return copy
