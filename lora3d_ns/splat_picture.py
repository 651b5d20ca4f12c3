"""Held-out photos beside their renderings, as `ns-eval --render-output-path` leaves them, with words."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

_HEIGHT_INCHES = 3.6


def draw_held_out(renders: Sequence[Path], metrics: Mapping[str, float], path: Path, *, title: str) -> None:
    """Writes a PNG with one row per photo: the photo, its rendering, and the rendering from the optimised pose.

    Args:
        renders: Pictures with all three side by side.
        metrics: Means over these photos: `psnr` and `ssim`, and both with `_pose_optimized` where there is a third.
        path: Where to; its folder must exist.
        title: Heading of the picture.
    """
    from matplotlib.figure import Figure

    columns = 3 if "psnr_pose_optimized" in metrics else 2
    words = ["photo, seen by nothing before", _word("rendering, pose as registered", metrics, "")]
    if columns == 3:
        words.append(_word("rendering, pose optimised", metrics, "_pose_optimized"))
    pictures = []
    for render in renders:
        with Image.open(render) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    aspect = max(picture.shape[1] / columns / picture.shape[0] for picture in pictures)
    size = (columns * _HEIGHT_INCHES * aspect, len(renders) * _HEIGHT_INCHES + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(renders), columns, squeeze=False)
    for row, picture in zip(grid, pictures, strict=True):
        for axes, part, word in zip(row, np.array_split(picture, columns, axis=1), words, strict=True):
            axes.imshow(part, interpolation="nearest")
            axes.set(title=word, xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def _word(what: str, metrics: Mapping[str, float], ending: str) -> str:
    return f"{what}\nPSNR {metrics[f'psnr{ending}']:.1f} dB, SSIM {metrics[f'ssim{ending}']:.3f}"
