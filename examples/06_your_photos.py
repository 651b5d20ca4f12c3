"""06: your photos, with the official network.

You learn the whole way from a folder of photos to a scene that nerfstudio goes on with, in Python: what
`ns-train lora3d-splat --data photos` does before it trains. See the README for what to shoot.

Prints what was held out, what the gate decided, what the alignment warns of, and each photo's focal length. Leaves
`scene.png`: the weighted cloud with its cameras; `scene.glb`, the same for any viewer of 3D files; and the scene that
the printed ns-train command goes on from. The first run fetches the official weights (2.3 GB, non-commercial licence)
from the Hugging Face hub.

    python examples/06_your_photos.py photos

With CUDA the network learns your photos (arm self_calibrated). On a CPU that would take hours, so it is used as it is
(arm robust): predicting all pairs of six photos takes two and a half minutes on two CPU cores, and the alignment comes
after that. `--arm` decides otherwise. A finished scene is found again by its photos and settings; interrupted work goes
on where it was.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

import torch

from lora3d_ns.commands import Source
from lora3d_ns.errors import Lora3dError
from lora3d_ns.export.formats import export_scene
from lora3d_ns.photo_scene import make_photo_scene, photo_scene_key
from lora3d_ns.reconstruct import ReconstructSettings
from lora3d_ns.scene_picture import draw_scene
from lora3d_ns.splits import SplitSettings

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photos", type=Path, help="folder with three to twenty photos of one place")
parser.add_argument("--output", type=Path, default=Path("outputs/examples/06"))
parser.add_argument("--network", default="512_dpt", help="or a folder with config.json and model.safetensors")
parser.add_argument(
    "--arm",
    choices=("self_calibrated", "robust"),
    default="self_calibrated" if torch.cuda.is_available() else "robust",
)
arguments = parser.parse_args()
logging.basicConfig(level=logging.INFO, format="%(message)s")

output, source = arguments.output, Source(photos=arguments.photos, network=arguments.network)
# One photo in eight is held out, and of three to seven photos one.
settings, split = ReconstructSettings(arm=arguments.arm), SplitSettings()
try:
    made = make_photo_scene(
        source, output / f"lora3d-scene-{photo_scene_key(source, settings, split)}", settings, split
    )
    points = export_scene(made.scene, output / "scene.glb", "glb")
except Lora3dError as error:
    # Photos, weights, memory: one line that says what to do.
    sys.exit(f"{error}")

provenance = made.scene.provenance
gate, warnings = provenance["gate"], provenance["warnings"]
print("held out, for the evaluation:", ", ".join(photo.name for photo in made.held_out) or "nothing")
if isinstance(gate, dict):
    print("the gate", "accepted" if gate["accepted"] else "REFUSED", f"the adapter: {gate['reason']}")
for warning in warnings if isinstance(warnings, list) else []:
    print("the alignment warns:", warning)
for photo in made.photos:
    print(f"{photo.name}: {photo.size[0]}x{photo.size[1]}, focal length {float(photo.K[0, 0]):.0f} px")
draw_scene(
    made.scene, output / "scene.png", title=f"{arguments.photos.name}: {points} points, {len(made.photos)} photos"
)
print(f"{points} points; look at {output / 'scene.png'}")
words = ["--data", str(arguments.photos), "lora3d", "--network", arguments.network, "--scene", str(made.folder)]
print("splats of it:")
print(" ", shlex.join(["ns-train", "lora3d-splat", *words]))
