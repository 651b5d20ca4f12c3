"""The job `lora3d export`, see `lora3d_ns.cli`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Export:
    """A finished scene for other programs: nerfstudio, COLMAP (and what reads its models), PLY, GLB."""

    scene: Annotated[Path, Positional]
    """Folder of a scene, as `lora3d reconstruct` leaves it."""
    to: Literal["nerfstudio", "colmap", "colmap-text", "ply", "glb"]
    """`nerfstudio`: transforms.json with its cloud; `colmap`: a model, binary or as text, with tracks; `ply`: the
    weighted cloud; `glb`: cloud and cameras."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """File for `ply` and `glb`, else folder; an earlier export of the same kind is replaced."""
    photos: Path | None = None
    """Folder of the scene's photos, for `nerfstudio`."""
    least_weight: float = 0.0
    """Points that weigh less are left out."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Points outside are left out: x, y, z of the smaller corner, then of the larger, in the scene's frame and unit."""
    most_points: int = 100_000
    """Of a COLMAP model; drawn at random where there are more."""

    def run(self) -> None:
        """Does the job and prints where the result is."""
        from lora3d_ns.export.crop import CropSettings
        from lora3d_ns.export.formats import export_scene
        from lora3d_ns.export.tracks import TrackSettings
        from lora3d_ns.scene_io.scenes import load_scene

        box = None if self.box is None else (self.box[:3], self.box[3:])
        crop = CropSettings(least_weight=self.least_weight, box=box)
        points = export_scene(
            load_scene(self.scene),
            self.output,
            self.to,
            photos=self.photos,
            crop=crop,
            tracks=TrackSettings(most_points=self.most_points),
        )
        print(f"Points:   {points}")
        print(f"Written:  {self.output}")
