"""Part of a scene: by weight, by a box, by masks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, MaskError, SettingsError
from lora3d_ns.export.tracks import own_pixels
from lora3d_ns.photos.decoding import decode_photo
from lora3d_ns.photos.files import PHOTO_ENDINGS, read_header
from lora3d_ns.photos.masks import MaskMeaning
from lora3d_ns.types import Scene

Corner = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Which points are kept.

    Attributes:
        least_weight: Points that weigh less go.
        box: Two opposite corners in the world's frame and unit; points outside go. None keeps all.
        masks: Folder of masks, each of an upright photo's size: of `IMG_1.jpg` it is `IMG_1.jpg.png` or `IMG_1.png`. A
            point goes if the pixel that it comes from does not count; photos without a mask keep theirs.
        mask_means: What white says in them: "keep" these pixels or "ignore" them.
    """

    least_weight: float = 0.0
    box: tuple[Corner, Corner] | None = None
    masks: Path | None = None
    mask_means: MaskMeaning = "keep"

    def __post_init__(self) -> None:
        if not self.least_weight >= 0:
            raise SettingsError(f"a least weight of {self.least_weight}", way_out="Use 0 or a positive number")
        if self.box is not None and not all(low < high for low, high in zip(*self.box, strict=True)):
            raise SettingsError(
                f"a box from {self.box[0]} to {self.box[1]}",
                way_out="Give the corner with the smaller coordinates first, each smaller than the other corner's",
            )


def cropped(scene: Scene, settings: CropSettings) -> Scene:
    """The scene with the points that are kept; cameras stay.

    Raises:
        InvalidDataError: No point is left.
        MaskError: A mask does not fit its photo, or there is none.
        PhotoError: A mask cannot be read.
    """
    kept = (scene.point_weights >= settings.least_weight) & in_box(scene.points, settings)
    if settings.masks is not None:
        pixels, _ = own_pixels(scene)
        for view, path in mask_files(scene, settings.masks).items():
            counts = read_mask(path, scene.cameras.sizes[view], settings.mask_means)
            own = scene.point_views == view
            # A point at the edge may be half a rounding error outside.
            x, y = pixels[own].floor().long().unbind(dim=1)
            height, width = counts.shape
            kept[own] &= torch.from_numpy(counts)[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    if not bool(kept.any()):
        raise InvalidDataError(
            f"none of the scene's {len(scene.points)} points is left",
            way_out="Lower the weight, widen the box, or use the masks the other way round",
        )
    return replace(
        scene,
        points=scene.points[kept],
        colors=scene.colors[kept],
        point_weights=scene.point_weights[kept],
        point_views=scene.point_views[kept],
    )


def in_box(points: Tensor, settings: CropSettings) -> Tensor:
    """Which world points, (..., 3), lie in the box; all where there is none."""
    if settings.box is None:
        return torch.ones(points.shape[:-1], dtype=torch.bool)
    low, high = (points.new_tensor(corner) for corner in settings.box)
    return ((points >= low) & (points <= high)).all(dim=-1)


def mask_files(scene: Scene, folder: Path) -> Mapping[int, Path]:
    """Masks in a folder by the number of the view; a view without one has no entry.

    Raises:
        MaskError: The folder has no mask for any photo, or two for one.
    """
    if not folder.is_dir():
        raise MaskError("there is no such folder of masks", way_out="Check the path", path=folder)
    stems: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PHOTO_ENDINGS and not path.name.startswith("."):
            stems.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    found = {}
    for view, name in enumerate(scene.names):
        candidates = stems.get(name) or stems.get(Path(name).with_suffix("").as_posix(), [])
        if len(candidates) > 1:
            raise MaskError(
                f"two masks for one photo, {candidates[0].name} and {candidates[1].name}",
                way_out="Keep one of them",
                path=folder,
            )
        if candidates:
            found[view] = candidates[0]
    if not found:
        raise MaskError(
            f"no mask has the name of a photo such as {scene.names[0]!r}",
            way_out=f"Call its mask {scene.names[0]}.png",
            path=folder,
        )
    return found


def read_mask(path: Path, size: tuple[int, int], means: MaskMeaning) -> Bool[np.ndarray, "height width"]:
    """True where a pixel of the upright photo counts.

    Args:
        path: The mask.
        size: (width, height) of the photo.
        means: What white says.

    Raises:
        MaskError: It has another size, or its white is 1.
        PhotoError: It cannot be read.
    """
    header = read_header(path)
    if header.upright_size != size:
        raise MaskError(
            f"the mask has {header.upright_size[0]}x{header.upright_size[1]} pixels and its upright photo "
            f"{size[0]}x{size[1]}",
            way_out="Save the mask at the photo's size, upright",
            path=path,
        )
    decoded = decode_photo(header)
    values = np.asarray(decoded.color.convert("L"))
    if values.max() == 1:
        raise MaskError("the mask's values are 0 and 1", way_out="Save it with 255 for white", path=path)
    white = values >= 128
    if decoded.alpha is not None:
        white = white & (np.asarray(decoded.alpha) >= 128)
    return white if means == "keep" else ~white
