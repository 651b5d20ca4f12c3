"""Photo files: finding them and reading their headers.

Headers are read first and for all photos, so that a broken or monstrous file is named before any long work begins.
Pillow's decoders are called by class, by what the file's first bytes say, never through `Image.open`: that would ask
decoders nobody wants here (PostScript among them), and its decompression-bomb limit is a global that belongs to the
caller. HEIC goes the same way, so nothing is registered in Pillow.
"""

import contextlib
import io
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from natsort import natsorted, ns
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from lora3d_ns.conventions import ExifOrientation
from lora3d_ns.errors import (
    DuplicatePhotoError,
    EmptyPhotoError,
    MissingPackageError,
    NoPhotosError,
    NotAPhotoError,
    PhotoFolderError,
    PhotoTooLargeError,
    TruncatedPhotoError,
)
from lora3d_ns.photos.exif import TAG_EXIF_IFD, TAG_ORIENTATION, ExifTags, PhotoExif, parse_exif

logger = logging.getLogger(__name__)

PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".heic", ".heif")
DEFAULT_MAX_MEGAPIXELS = 400.0

PhotoKind = Literal["jpeg", "png", "webp", "tiff", "heif"]

_PILLOW_CLASSES: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}

_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_XMP, _TIFF_ICC_PROFILE = 256, 257, 700, 34675


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """A file that is meant to be a photo.

    Attributes:
        name: Unique in its set, with forward slashes; relative to the folder the photos came from.
        path: Where it lies.
    """

    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class PhotoHeader:
    """What a photo says of itself before its pixels are decoded.

    Attributes:
        path: The file.
        kind: Format, by content; the ending may lie.
        stored_size: (width, height) of the pixels as stored. HEIC decoders turn photos upright by themselves, so
            for HEIC it is the upright size.
        orientation: EXIF orientation of the stored pixels; always 1 for HEIC.
        exif: Camera, lens and focal length.
        icc_profile: Colour profile, None where the photo has none.
    """

    path: Path
    kind: PhotoKind
    stored_size: tuple[int, int]
    orientation: ExifOrientation
    exif: PhotoExif
    icc_profile: bytes | None

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) with the orientation applied."""
        width, height = self.stored_size
        return (height, width) if self.orientation >= 5 else (width, height)


# --- finding ------------------------------------------------------------------------------------


def find_photos(source: Path | Sequence[Path]) -> tuple[PhotoFile, ...]:
    """Photo files of a folder in natural order, or those of a list in its own order.

    A folder gives its direct files with one of `PHOTO_ENDINGS`; if it has none, those of its `images` folder. Hidden
    files and other endings are passed over. In a list every file is taken at its word.

    Raises:
        PhotoFolderError: The folder is missing, is no folder or cannot be read, or a listed file is missing.
        NoPhotosError: There is no photo.
        DuplicatePhotoError: The same file twice, directly or through links.
    """
    if isinstance(source, Path):
        folder = source
        paths = _photos_in(folder)
        if not paths and (folder / "images").is_dir():
            folder = folder / "images"
            paths = _photos_in(folder)
        photos = tuple(PhotoFile(name=path.name, path=path) for path in paths)
        if not photos:
            raise NoPhotosError(
                "no photos in this folder",
                way_out=f"Give a folder with at least two files ending in {', '.join(PHOTO_ENDINGS)}",
                path=source,
            )
    else:
        photos = _named_files(source)
    first_with: dict[str, Path] = {}
    for photo in photos:
        _require_regular_file(photo.path)
        earlier = first_with.setdefault(os.path.realpath(photo.path), photo.path)
        if earlier is not photo.path:
            raise DuplicatePhotoError(
                f"the same file as {earlier}", way_out="Name each photo once, and remove links to it", path=photo.path
            )
    return photos


def _photos_in(folder: Path) -> list[Path]:
    if not folder.exists():
        raise PhotoFolderError("no such folder", way_out="Check the path", path=folder)
    if not folder.is_dir():
        raise PhotoFolderError(
            "not a folder", way_out="Give the folder that holds the photos, or a list of files", path=folder
        )
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise PhotoFolderError(
            f"the folder cannot be read ({error.strerror})", way_out="Check its permissions", path=folder
        ) from error
    photos = [
        path
        for path in entries
        if path.suffix.lower() in PHOTO_ENDINGS and not path.name.startswith(".") and not path.is_dir()
    ]
    # Names that differ in case only would otherwise come in the order of the file system.
    return natsorted(sorted(photos), key=lambda path: path.name, alg=ns.IGNORECASE)


def _named_files(paths: Sequence[Path]) -> tuple[PhotoFile, ...]:
    if not paths:
        raise NoPhotosError("the list of photos is empty", way_out="Name at least two files")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (resolve would follow links)
        root = Path(os.path.commonpath([path.parent for path in absolute]))
        names = [path.relative_to(root).as_posix() for path in absolute]
    return tuple(PhotoFile(name=name, path=path) for name, path in zip(names, paths, strict=True))


def _require_regular_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise PhotoFolderError(f"no such file ({error})", way_out="Check the path", path=path) from error
    if not stat.S_ISREG(mode):
        raise NotAPhotoError("not a regular file", way_out="Name image files only", path=path)


# --- headers ------------------------------------------------------------------------------------


def read_header(path: Path, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> PhotoHeader:
    """Format, size, orientation and EXIF of a photo; its pixels are not decoded.

    Raises:
        PhotoFolderError: The file is missing or cannot be read.
        EmptyPhotoError: Zero bytes.
        NotAPhotoError: No JPEG, PNG, WebP, TIFF or HEIC.
        TruncatedPhotoError: It begins as one and the header is damaged or ends too early.
        PhotoTooLargeError: It announces more than `max_megapixels`.
        MissingPackageError: It is a HEIC and pillow-heif is not installed.
    """
    _require_regular_file(path)
    with open_file(path) as file:
        kind = _kind_of(file, path)
        with decoder_errors_named(path):
            if kind == "tiff":
                header = _read_tiff_header(file, path)
            else:
                with open_image(file, kind) as image:
                    icc_profile = image.info.get("icc_profile")
                    if kind == "png" and "exif" not in image.info:
                        exif_bytes = _png_chunk(file, b"eXIf")
                        if exif_bytes is not None:
                            image.info["exif"] = b"Exif\0\0" + exif_bytes
                    exif, orientation = parse_exif(lambda: _pillow_exif(image), image.size, path)
                    header = PhotoHeader(
                        path=path,
                        kind=kind,
                        stored_size=image.size,
                        orientation=1 if kind == "heif" else orientation,
                        exif=exif,
                        icc_profile=icc_profile or None,
                    )
    width, height = header.stored_size
    if width < 1 or height < 1:
        raise TruncatedPhotoError(
            f"the header says {width}x{height} pixels", way_out="Export the photo again, or leave it out", path=path
        )
    if width * height > max_megapixels * 1e6:
        raise PhotoTooLargeError(
            f"the header announces {width}x{height} pixels, more than the limit of {max_megapixels:g} megapixels",
            way_out="Shrink the photo, or raise max_megapixels if it is genuine",
            path=path,
        )
    return header


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """The file, open for reading; `PhotoFolderError` where it cannot be read."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise PhotoFolderError(
            f"the file cannot be read ({error.strerror})", way_out="Check its permissions", path=path
        ) from error
    with file:
        yield file


@contextlib.contextmanager
def decoder_errors_named(path: Path) -> Iterator[None]:
    """Third-party decoders raise nearly anything on damaged data; callers get one kind of error."""
    way_out = "Copy or export the photo again, or leave it out"
    try:
        yield
    except (NotAPhotoError, TruncatedPhotoError, PhotoTooLargeError, MissingPackageError):
        raise
    except Image.DecompressionBombError as error:
        raise PhotoTooLargeError(
            f"too many pixels for its decoder ({error})", way_out="Save it as JPEG or PNG, or shrink it", path=path
        ) from error
    except Exception as error:
        raise TruncatedPhotoError(
            f"the image is damaged or ends too early ({error or type(error).__name__})", way_out=way_out, path=path
        ) from error


def _kind_of(file: IO[bytes], path: Path) -> PhotoKind:
    start = file.read(16)
    file.seek(0)
    if not start:
        raise EmptyPhotoError("the file has zero bytes", way_out="Copy the photo again, or leave it out", path=path)
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if start[4:8] == b"ftyp":
        return "heif"
    raise NotAPhotoError(
        "the content is no JPEG, PNG, WebP, TIFF or HEIC image, whatever the ending says",
        way_out="Convert it to JPEG or PNG, or leave it out",
        path=path,
    )


def open_image(file: IO[bytes], kind: PhotoKind) -> ImageFile.ImageFile:
    """Pillow's image of this format, not decoded yet; raises whatever its decoder does."""
    if kind != "heif":
        return _PILLOW_CLASSES[kind](file)
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise MissingPackageError(
            "HEIC photos need the package pillow-heif", way_out="Install it with `pip install pillow-heif`"
        ) from error
    return HeifImageFile(file)


def is_plain(header: PhotoHeader) -> bool:
    """Whether programs that know nothing of orientation, profiles or transparency read the file as we do."""
    if header.kind not in ("jpeg", "png") or header.orientation != 1 or header.icc_profile is not None:
        return False
    # Not through Image.open, which refuses large photos that we take.
    with open_file(header.path) as file, decoder_errors_named(header.path), open_image(file, header.kind) as image:
        return image.mode in ("RGB", "L") and "transparency" not in image.info


def _png_chunk(file: IO[bytes], wanted: bytes) -> bytes | None:
    """Content of a PNG's first chunk of this type, wherever it lies: EXIF may follow the pixels."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length = int.from_bytes(start[:4], "big")
        if start[4:] == wanted:
            return file.read(length)
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _pillow_exif(image: Image.Image) -> ExifTags:
    # The base class's method, because PngImageFile.getexif decodes the whole photo.
    exif = Image.Image.getexif(image)
    if "exif" in image.info and not dict(exif):
        # The JPEG decoder has tried to read it already, and swallowed the error.
        raise SyntaxError("there is EXIF, and no tag in it")
    return ExifTags(main=dict(exif), details=exif.get_ifd(TAG_EXIF_IFD))


def _read_tiff_header(file: IO[bytes], path: Path) -> PhotoHeader:
    """Header of a TIFF from its tags, which works for those too that Pillow cannot decode."""
    start = file.read(8)
    if start[2:4] in (b"+\0", b"\0+"):
        start += file.read(8)

    def read_directory(offset: int) -> dict:
        directory = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(offset)
        directory.load(file)
        return dict(directory)

    tags = read_directory(TiffImagePlugin.ImageFileDirectory_v2(start).next)
    stored_size = int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])
    icc_profile = tags.get(_TIFF_ICC_PROFILE)

    def read_exif() -> ExifTags:
        main = dict(tags)
        xmp = main.get(_TIFF_XMP)
        if TAG_ORIENTATION not in main and isinstance(xmp, bytes):
            # Pillow obeys this one too when it turns a TIFF upright.
            match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
            if match:
                main[TAG_ORIENTATION] = int(match[1])
        return ExifTags(main=main, details=read_directory(main[TAG_EXIF_IFD]) if TAG_EXIF_IFD in main else {})

    exif, orientation = parse_exif(read_exif, stored_size, path)
    return PhotoHeader(
        path=path,
        kind="tiff",
        stored_size=stored_size,
        orientation=orientation,
        exif=exif,
        icc_profile=icc_profile if isinstance(icc_profile, bytes) else None,
    )
