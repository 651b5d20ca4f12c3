"""Pixels of the photos that show something which moved, as far as the alignment has found them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from lora3d_ns.conventions import PixelAffine, pixel_centres
from lora3d_ns.errors import StorageError
from lora3d_ns.scene_io.scenes import load_details


def still_maps(scene_folder: Path, names: Sequence[str], source_sizes: Sequence[tuple[int, int]]) -> "StillMaps":
    """What the scene's details say of motion in these photos.

    Args:
        scene_folder: Folder of the scene, with its details.
        names: Photos of that scene.
        source_sizes: Their (width, height).

    Raises:
        StorageError: The scene has no details, or does not know a photo.
    """
    details = load_details(scene_folder)
    if details is None or not set(names) <= set(details.names):
        raise StorageError(
            "what moves was not kept with this scene",
            way_out="Make the scene again, or train without `mask_moving`",
            path=scene_folder,
        )
    of_photo = [details.names.index(name) for name in names]
    return StillMaps(
        moving=[details.moving[view] for view in of_photo],
        source_from_network=[details.source_from_network[view] for view in of_photo],
        source_sizes=source_sizes,
    )


class StillMaps:
    """Where nothing moves, at any resolution.

    Args:
        moving: Per photo at network resolution.
        source_from_network: Where these pixels lie in the photo.
        source_sizes: (width, height) of the photos.
    """

    def __init__(
        self,
        *,
        moving: Sequence[Bool[Tensor, "_ _"]],
        source_from_network: Sequence[PixelAffine],
        source_sizes: Sequence[tuple[int, int]],
    ) -> None:
        self._moving = moving
        self._source_from_network = source_from_network
        self._source_sizes = source_sizes

    def at_size(self, photo: int, size: tuple[int, int]) -> Bool[Tensor, "height width 1"]:
        """True where a pixel of the photo, resized to (width, height), shows nothing that moves.

        What the network did not see (the photo was cropped for it) counts as still.
        """
        width, height = size
        source_width, source_height = self._source_sizes[photo]
        source_px = pixel_centres(height, width) * torch.tensor([source_width / width, source_height / height])
        x, y = self._source_from_network[photo].network_from_source(source_px).floor().long().unbind(dim=-1)
        moving = self._moving[photo]
        rows, columns = moving.shape
        seen = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        return ~(seen & moving[y.clamp(0, rows - 1), x.clamp(0, columns - 1)])[..., None]
