"""A scene together with its photos, as files: what training of splats starts from.

Photos are split first; what is held out is seen by neither network, fine-tuning nor alignment, and only registered to
the finished scene in the end. The folder is written as a whole and never made twice:

    photos.json        every photo: file, mask, camera, whether it was held out
    scene/             the scene of all others, see `lora3d_ns.scene_io.scenes`
    images/, masks/    upright copies where a photo's own file is not plain upright sRGB; masks where there are any
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lora3d_ns import __version__
from lora3d_ns.atomic_files import replace_folder, settle_folder
from lora3d_ns.commands import CACHE_FOLDER, Source, open_source, photo_settings
from lora3d_ns.errors import DamagedFileError, StorageError, TooFewLabelsError
from lora3d_ns.images import PhotoSettings, chosen_photos, load_source_photo
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.photos.files import (
    PhotoFile,
    PhotoHeader,
    is_plain,
    read_header,
)
from lora3d_ns.photos.masks import find_masks
from lora3d_ns.progress import progress_bar
from lora3d_ns.reconstruct import Reconstruction, ReconstructSettings, reconstruct
from lora3d_ns.registration import registered_cameras
from lora3d_ns.scene_details import first_view_alone, scene_details
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.scene_io.scenes import load_scene, save_scene
from lora3d_ns.scene_io.stage_cache import StageCache, fingerprint
from lora3d_ns.scene_picture import draw_scene
from lora3d_ns.splits import FEWEST_TO_SPLIT, SplitSettings, held_out_photos
from lora3d_ns.types import Cameras, Scene, Views

logger = logging.getLogger(__name__)

PHOTOS_FILE = "photos.json"
SCENE_SUBFOLDER = "scene"
_FORMAT_VERSION = 1
_KEY_DIGITS = 10
_NAME_LETTERS = 50


@dataclass(frozen=True, eq=False, kw_only=True)
class ScenePhoto:
    """One photo of a scene.

    Attributes:
        name: As in the folder it came from.
        image: A file with upright sRGB pixels that any program reads right.
        mask: A file, white where pixels count; None where no photo has a mask.
        size: (width, height) in pixels.
        K: Intrinsics in these pixels.
        T_world_camera: Its pose; of a held-out photo the one registered to the scene.
        held_out: Whether the scene was made without it.
    """

    name: str
    image: Path
    mask: Path | None
    size: tuple[int, int]
    K: Float[Tensor, "3 3"]
    T_world_camera: Float[Tensor, "4 4"]
    held_out: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class PhotoScene:
    """A scene and its photos.

    Attributes:
        folder: Where it lies.
        scene: Made from all photos that are not held out.
        photos: All of them, in natural order.
    """

    folder: Path
    scene: Scene
    photos: tuple[ScenePhoto, ...]

    @property
    def training(self) -> tuple[ScenePhoto, ...]:
        """The photos the scene was made from."""
        return tuple(photo for photo in self.photos if not photo.held_out)

    @property
    def held_out(self) -> tuple[ScenePhoto, ...]:
        """The others; none where there were fewer than three, or where the split says so."""
        return tuple(photo for photo in self.photos if photo.held_out)


def photo_scene_key(source: Source, settings: ReconstructSettings, split: SplitSettings) -> str:
    """Digits that name a scene by all it depends on: contents of photos, masks and known cameras, and all settings.

    The network counts with its name: what lies behind the name is not opened.

    Raises:
        PhotoError: The folder is missing, or holds no photos.
    """
    photos = chosen_photos(source.photos, photo_settings(source))
    headers = [read_header(photo.path) for photo in photos]
    masks = find_masks(photos, headers, max_megapixels=photo_settings(source).max_megapixels)
    contents = [
        (photo.name, _content(photo.path), None if mask is None else _content(mask.header.path))
        for photo, mask in zip(photos, masks, strict=True)
    ]
    known = source.known_cameras
    files = [] if known is None else sorted(known.rglob("*") if known.is_dir() else [known])
    known_contents = [_content(path) for path in files if path.is_file()]
    return fingerprint(_FORMAT_VERSION, contents, known_contents, source.network, settings, split)[:_KEY_DIGITS]


def make_photo_scene(
    source: Source, folder: Path, settings: ReconstructSettings | None = None, split: SplitSettings | None = None
) -> PhotoScene:
    """The scene of some photos in a folder: loaded if it is there, otherwise made and left there.

    Stages are cached beside the folder, so that an interrupted call goes on where it was. Of one photo alone a scene
    is made from the pair of it with itself: depth without any parallax. Where the alignment believes too little to
    learn from, the scene is that of the network as it is, with a warning.

    Raises:
        Lora3dError: Photos, network, or a stage's own errors.
        StorageError: The folder holds other files, or cannot be written.
    """
    settle_folder(folder)
    if (folder / PHOTOS_FILE).exists():
        return load_photo_scene(folder, source.photos)
    _require_empty(folder)
    settings, split = settings or ReconstructSettings(), split or SplitSettings()
    views, network = open_source(source, at_least=1)
    held_out = held_out_photos(views.names, split)
    _say_what_is_held_out(views, held_out, split)
    cache = StageCache(folder.resolve().parent / CACHE_FOLDER if source.cache is None else source.cache)
    if len(views) == 1:
        made, cameras, details = _single(views, network, settings, source.network, cache)
    else:
        kept = [view for view in range(len(views)) if view not in held_out]
        used = views.select(kept)
        made = _reconstructed(used, network, settings, source.network, cache)
        cameras, details = made.scene.cameras, scene_details(used, made)
        if held_out:
            cameras = registered_cameras(views, held_out, made, network, settings)
    shown = settings.prediction.show_progress
    return save_photo_scene(
        folder,
        made.scene,
        views,
        cameras,
        held_out,
        photos=source.photos,
        details=details,
        show_progress=shown,
    )


def save_photo_scene(
    folder: Path,
    scene: Scene,
    views: Views,
    cameras: Cameras,
    held_out: Sequence[int],
    *,
    photos: Path,
    details: SceneDetails | None = None,
    show_progress: bool = True,
) -> PhotoScene:
    """Writes a scene with its photos.

    Args:
        folder: Where to; what is there is replaced.
        scene: Made from the photos that are not held out.
        views: All photos; they must be files.
        cameras: Of all photos, in source pixels.
        held_out: Indices of those held out.
        photos: The folder they came from: files below it are named relative to it.
        details: Of the scene, for those who look at it.
        show_progress: Whether to draw a bar.

    Raises:
        StorageError: The folder cannot be written.
        PhotoError: A photo's file can no longer be read.
    """
    files = [PhotoFile(name=name, path=_file_of(views, view)) for view, name in enumerate(views.names)]
    headers = [read_header(file.path) for file in files]
    with replace_folder(folder) as new:
        title = f"{photos.name}: {len(scene.names)} photos, {len(scene.points)} points"
        save_scene(
            scene,
            new / SCENE_SUBFOLDER,
            draw=lambda path: draw_scene(scene, path, title=title),
            details=details,
        )
        written = _write_pixels(new, files, headers, show_progress=show_progress)
        entries = []
        for view, file in enumerate(files):
            image, mask = written[view]
            entries.append(
                {
                    "name": file.name,
                    "photo": _place(file.path, photos),
                    "image": image,
                    "mask": mask,
                    "size": list(views.source_sizes[view]),
                    "K": cameras.K[view].tolist(),
                    "T_world_camera": cameras.T_world_camera[view].tolist(),
                    "held_out": view in held_out,
                }
            )
        content = {"format_version": _FORMAT_VERSION, "made_by": f"lora3d_ns {__version__}", "photos": entries}
        (new / PHOTOS_FILE).write_text(json.dumps(content, indent=1) + "\n")
    return load_photo_scene(folder, photos)


def load_photo_scene(folder: Path, photos: Path) -> PhotoScene:
    """A scene that `make_photo_scene` left. No network is loaded.

    Args:
        folder: Where it lies.
        photos: Folder of the photos, for those that were not copied.

    Raises:
        StorageError: There is none, or it cannot be read.
        DamagedFileError: It is damaged, of another version, or a photo is no longer there.
    """
    settle_folder(folder)
    path = folder / PHOTOS_FILE
    try:
        content = json.loads(path.read_text())
        if content["format_version"] != _FORMAT_VERSION:
            raise DamagedFileError(
                f"the file is of format version {content['format_version']}, and this version of the package reads "
                f"{_FORMAT_VERSION}",
                way_out="Remove the folder and make the scene again",
                path=path,
            )
        loaded = tuple(_photo_of(entry, folder, photos) for entry in content["photos"])
    except OSError as error:
        raise StorageError(
            f"there is no scene here ({error.strerror or error})", way_out="Name the folder of a scene", path=folder
        ) from error
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise DamagedFileError(
            f"the file is damaged ({error})", way_out="Remove the folder and make the scene again", path=path
        ) from error
    for photo in loaded:
        for file in (photo.image, photo.mask):
            if file is not None and not file.is_file():
                raise DamagedFileError(
                    f"the photo {file} is no longer there", way_out="Put it back where it was", path=path
                )
    scene = load_scene(folder / SCENE_SUBFOLDER)
    if scene.names != tuple(photo.name for photo in loaded if not photo.held_out):
        raise DamagedFileError(
            "the photos are not those of the scene beside them",
            way_out="Remove the folder and make the scene again",
            path=path,
        )
    return PhotoScene(folder=folder, scene=scene, photos=loaded)


# --- making -------------------------------------------------------------------------------------


def _reconstructed(
    views: Views, network: Dust3r, settings: ReconstructSettings, base_name: str, cache: StageCache
) -> Reconstruction:
    """The scene, without fine-tuning where there is too little to learn."""
    try:
        return reconstruct(views, network, settings, base_name=base_name, cache=cache)
    except TooFewLabelsError as error:
        logger.warning("%s: going on with the network as it is (arm robust)", error.problem)
        robust = dataclasses.replace(settings, arm="robust")
        return reconstruct(views, network, robust, base_name=base_name, cache=cache)


def _single(
    views: Views, network: Dust3r, settings: ReconstructSettings, base_name: str, cache: StageCache
) -> tuple[Reconstruction, Cameras, SceneDetails]:
    """The scene of one photo: the network sees it beside itself, and nothing can be learnt from that."""
    logger.warning("one photo alone: its depth is the network's guess, and new views will not be good far from it")
    alignment = dataclasses.replace(settings.alignment, matches="off")
    settings = dataclasses.replace(settings, arm="robust", alignment=alignment)
    doubled: dict[str, Any] = {field.name: getattr(views, field.name) * 2 for field in dataclasses.fields(views)}
    doubled["names"] = (views.names[0], f"{views.names[0]} again")
    twin = Views(**doubled)
    made = reconstruct(twin, network, settings, base_name=base_name, cache=cache)
    scene = made.scene
    cameras = Cameras(
        T_world_camera=scene.cameras.T_world_camera[:1], K=scene.cameras.K[:1], sizes=scene.cameras.sizes[:1]
    )
    own = scene.point_views == 0
    alone = dataclasses.replace(
        scene,
        names=views.names,
        cameras=cameras,
        points=scene.points[own],
        colors=scene.colors[own],
        point_weights=scene.point_weights[own],
        point_views=scene.point_views[own],
        provenance={**scene.provenance, "photos": 1},
    )
    return dataclasses.replace(made, scene=alone), cameras, first_view_alone(scene_details(twin, made))


def _say_what_is_held_out(views: Views, held_out: Sequence[int], split: SplitSettings) -> None:
    if held_out:
        logger.info("Held out for evaluation: %s", ", ".join(views.names[view] for view in held_out))
    elif split.mode == "all":
        logger.info("No photo is held out (split mode all): metrics are of photos that were trained on")
    else:
        logger.warning(
            "%d photos: none is held out below %d, so metrics are of photos that were trained on",
            len(views),
            FEWEST_TO_SPLIT,
        )


# --- files ----------------------------------------------------------------------------------------


def _require_empty(folder: Path) -> None:
    try:
        others = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"this is no folder that can be read ({error.strerror or error})",
            way_out="Choose another one",
            path=folder,
        ) from error
    if others:
        raise StorageError(
            f"the folder holds files that belong to no scene of photos (such as {others[0]})",
            way_out="Choose a new folder",
            path=folder,
        )


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _place(path: Path, photos: Path) -> str:
    """Where a photo lies in its folder; links are not followed, so that a folder of links can be moved as any other."""
    path, photos = path.absolute(), photos.absolute()
    return path.relative_to(photos).as_posix() if path.is_relative_to(photos) else str(path)


def _file_of(views: Views, view: int) -> Path:
    path = views.source_paths[view]
    if path is None:
        raise StorageError(f"the photo {views.names[view]} is no file", way_out="Load the photos from a folder")
    return path


def _write_pixels(
    folder: Path, files: Sequence[PhotoFile], headers: Sequence[PhotoHeader], *, show_progress: bool
) -> list[tuple[str | None, str | None]]:
    """Upright copies and masks, relative to the folder; None for a photo whose own file will do, and for no mask."""
    settings = PhotoSettings()
    masks = find_masks(files, headers, max_megapixels=settings.max_megapixels)
    written: list[tuple[str | None, str | None]] = []
    with progress_bar("Writing photos", len(files), shown=show_progress) as advance:
        for number, (file, header, mask) in enumerate(zip(files, headers, masks, strict=True)):
            plain = is_plain(header)
            image, counts = None, None
            if not plain or mask is not None:
                source = load_source_photo(header, mask, settings)
                if not plain:
                    image = _write_image(folder, "images", number, file, source.color)
                if source.counts is not None:
                    white = Image.fromarray(source.counts.astype(np.uint8) * 255)
                    counts = _write_image(folder, "masks", number, file, white)
            written.append((image, counts))
            advance(1)
    if any(counts is not None for _, counts in written):
        # nerfstudio wants a mask for every photo, or for none.
        for number, (file, header, (image, counts)) in enumerate(zip(files, headers, written, strict=True)):
            if counts is None:
                white = Image.new("L", header.upright_size, 255)
                written[number] = (image, _write_image(folder, "masks", number, file, white))
    return written


def _write_image(folder: Path, kind: str, number: int, file: PhotoFile, image: Image.Image) -> str:
    # Numbered, as two photos may differ in their endings only; cut, as a name may be as long as the system allows.
    name = f"{kind}/{number:04d}_{Path(file.name).stem[:_NAME_LETTERS]}.png"
    (folder / name).parent.mkdir(exist_ok=True)
    # Pillow would write what the photo's file said of orientation, profile and transparency into its upright copy.
    bare = image.copy()
    bare.info = {}
    # The least compression: large photos take seconds each with more.
    bare.save(folder / name, compress_level=1)
    return name


def _photo_of(entry: dict, folder: Path, photos: Path) -> ScenePhoto:
    image, mask = entry["image"], entry["mask"]
    return ScenePhoto(
        name=entry["name"],
        image=(photos / entry["photo"]).resolve() if image is None else (folder / image).resolve(),
        mask=None if mask is None else (folder / mask).resolve(),
        size=(int(entry["size"][0]), int(entry["size"][1])),
        K=_matrix(entry["K"], 3),
        T_world_camera=_matrix(entry["T_world_camera"], 4),
        held_out=bool(entry["held_out"]),
    )


def _matrix(rows: list[list[float]], size: int) -> Float[Tensor, "size size"]:
    matrix = torch.tensor(rows, dtype=torch.float64)
    if matrix.shape != (size, size) or not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"a camera is no {size}x{size} matrix of numbers")
    return matrix
