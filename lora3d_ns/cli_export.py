"""The job `lora3d export`, see `lora3d_ns.cli`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Export:
    """A finished scene for other programs: nerfstudio, COLMAP (and what reads its models), PLY, GLB, depth maps."""

    scene: Annotated[Path, Positional]
    """Folder of a scene, as `lora3d reconstruct` leaves it, or `lora3d-scene-...` of a training of splats."""
    to: Literal["nerfstudio", "colmap", "colmap-text", "ply", "glb", "depth-png", "depth-exr", "depth-npz"]
    """`nerfstudio`: transforms.json and cloud; `colmap`: a model with tracks; `depth-...`: maps of every photo."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """File for `ply` and `glb`, else folder; an earlier export of the same kind is replaced."""
    photos: Path | None = None
    """Folder of the scene's photos: `nerfstudio` needs it, and `colmap` lays upright copies beside its model."""
    cameras: Path | None = None
    """Folder of a training of splats: its refined cameras instead of the scene's. For `nerfstudio`, `colmap`, `glb`."""

    least_weight: float = 0.0
    """Points that weigh less are left out; in depth maps such pixels are unknown, as with --box and --masks."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Points outside are left out: x, y, z of the smaller corner, then of the larger, in the scene's frame and unit."""
    masks: Path | None = None
    """Folder of masks (IMG_1.png is that of IMG_1.jpg): points whose own pixel is black are left out."""
    mask_means: Literal["keep", "ignore"] = "keep"
    """What white says in the masks."""

    most_points: int = 100_000
    """Of a COLMAP model; where there are more they are drawn at random, each photo having its share."""
    least_photos: int = 2
    """Of a COLMAP model: points that fewer photos show are left out. Bundle adjustment refuses those of one photo."""

    map_pixels: Literal["photo", "network"] = "photo"
    """Size of depth maps: that of the upright photos, or that at which the network saw them, without interpolation."""
    png_step: float | None = None
    """World units per grey value of 16-bit depth; by default what holds the scene's depths, as depth.json says."""

    def run(self) -> None:
        """Does the job and prints where the result is."""
        from lora3d_ns.export.crop import CropSettings
        from lora3d_ns.export.depth import DepthSettings
        from lora3d_ns.export.formats import export_scene, scene_folder
        from lora3d_ns.export.tracks import TrackSettings
        from lora3d_ns.scene_io.scenes import load_details, load_scene

        box = None if self.box is None else (self.box[:3], self.box[3:])
        maps = self.to.startswith("depth-")
        # What is wrong with the settings shows before anything is read.
        crop = CropSettings(least_weight=self.least_weight, box=box, masks=self.masks, mask_means=self.mask_means)
        tracks = TrackSettings(most_points=self.most_points, least_photos=self.least_photos)
        depth = DepthSettings(pixels=self.map_pixels, png_step=self.png_step)
        folder = scene_folder(self.scene)
        count = export_scene(
            load_scene(folder),
            self.output,
            self.to,
            photos=self.photos,
            crop=crop,
            tracks=tracks,
            cameras=self.cameras,
            details=load_details(folder) if maps else None,
            depth=depth,
        )
        print(f"{'Photos: ' if maps else 'Points: '}  {count}")
        print(f"Written:  {self.output}")
