"""The photos of a scene as files that programs read right which know nothing of orientation and colour profiles."""

from pathlib import Path

from PIL import Image

from lora3d_ns.errors import InvalidDataError, StorageError
from lora3d_ns.images import PhotoSettings, load_source_photo
from lora3d_ns.photos.files import PhotoHeader, is_plain, read_header
from lora3d_ns.types import Scene


def photo_headers(scene: Scene, folder: Path) -> list[PhotoHeader]:
    """The scene's photos in a folder, by their names.

    Raises:
        StorageError: A photo is not there.
        InvalidDataError: One has another size than the scene's: it is another photo.
        PhotoError: One cannot be read.
    """
    headers = []
    for name, size in zip(scene.names, scene.cameras.sizes, strict=True):
        path = folder / name
        if not path.is_file():
            raise StorageError(
                "the scene's photo is not there", way_out="Give the folder the scene was made from", path=path
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


def upright_files(headers: list[PhotoHeader], folder: Path) -> list[Path]:
    """The photos' own files where they are upright sRGB already, else PNG copies in the folder.

    Raises:
        StorageError: A copy cannot be written.
        PhotoError: A photo cannot be read.
    """
    files = []
    for number, header in enumerate(headers):
        if is_plain(header):
            files.append(header.path.resolve())
            continue
        copy = folder / f"{number:04d}_{header.path.stem[:50]}.png"
        color: Image.Image = load_source_photo(header, None, PhotoSettings()).color
        bare = color.copy()
        # Pillow would write the old orientation into the upright copy.
        bare.info = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            bare.save(copy, compress_level=1)
        except OSError as error:
            raise StorageError(
                f"the copy cannot be written ({error.strerror or error})", way_out="Choose another folder", path=copy
            ) from error
        files.append(copy)
    return files
