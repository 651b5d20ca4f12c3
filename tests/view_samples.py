"""Views of random images."""

from collections.abc import Sequence

import torch

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.types import Views


def make_views(shapes: Sequence[tuple[int, int]], *, seed: int = 0) -> Views:
    """Views of random images of these (height, width), each its own source photo."""
    generator = torch.Generator().manual_seed(seed)
    count = len(shapes)
    return Views(
        names=tuple(f"{view}.png" for view in range(count)),
        images=tuple(torch.rand(3, *shape, generator=generator) for shape in shapes),
        masks=(None,) * count,
        source_from_network=(PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0),) * count,
        source_sizes=tuple((width, height) for height, width in shapes),
        source_paths=(None,) * count,
        focal_exif_px=(None,) * count,
        lens_groups=("lens",) * count,
        known_K=(None,) * count,
        known_T_world_camera=(None,) * count,
    )
