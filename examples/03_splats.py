"""03: Gaussian splats of a few photos, through nerfstudio's own trainer.

You learn the two steps behind `ns-train lora3d-splat`: `make_photo_scene`, which holds photos out, reconstructs the
others and finds the cameras of those held out afterwards; and `train_splats`, which trains and evaluates as nerfstudio
does. What the training leaves is a run like any other, for ns-viewer, ns-render, ns-export and ns-eval.

Prints PSNR and SSIM of the photo that nothing has seen. Leaves `held_out.png`: that photo, the rendering from where it
was taken, and the rendering after its pose was fitted; and the run in `run/`. A minute on two CPU cores.
"""

import argparse
from pathlib import Path

from lora3d_ns.commands import Source
from lora3d_ns.photo_scene import make_photo_scene
from lora3d_ns.plugin.trainer import Lora3dTrainerConfig
from lora3d_ns.plugin.training import train_splats
from lora3d_ns.rooms.generator import demo_room, write_scene
from lora3d_ns.splat_picture import draw_held_out

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("outputs/examples/03"))
parser.add_argument("--steps", type=int, default=600, help="of training; the method's own number is 1500")
parser.add_argument("--size", type=int, default=192, help="longest side of the photos trained on, in pixels")
arguments = parser.parse_args()
output = arguments.output

room = demo_room()
write_scene(output / "photos", room)
photos = output / "photos" / "images"

# A scene that is there already is loaded. The default network is 512_dpt, for real photos.
scene = make_photo_scene(Source(photos=photos, network="rooms"), output / "scene")
print("held out:", ", ".join(photo.name for photo in scene.held_out))


def change(config: Lora3dTrainerConfig) -> None:
    """Any of nerfstudio's settings: what `ns-train lora3d-splat --help` lists, as Python."""
    config.pipeline.datamanager.longest_side_px = arguments.size  # pyright: ignore[reportAttributeAccessIssue]
    # Without its weights at hand LPIPS would be left out anyway, after a try to fetch them.
    config.pipeline.model.lpips = False  # pyright: ignore[reportAttributeAccessIssue]


trained = train_splats(
    scene, photos, output / "run", iterations=arguments.steps, change=change, renders=output / "renders", quiet=True
)
metrics = trained.metrics
print(f"{trained.gaussians} Gaussians, {trained.iterations} steps: PSNR {metrics['psnr']:.1f} dB", end=", ")
print(f"SSIM {metrics['ssim']:.3f}; from the fitted pose {metrics['psnr_pose_optimized']:.1f} dB")
draw_held_out(
    sorted((output / "renders").glob("*.png")),
    metrics,
    output / "held_out.png",
    title=f"From where no photo was: {trained.gaussians} Gaussians after {trained.iterations} steps",
)
print(f"look at {output / 'held_out.png'}, or around: ns-viewer --load-config {trained.config_file}")
