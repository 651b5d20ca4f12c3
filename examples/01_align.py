"""01: from pairs to one scene.

You learn what `align` makes of the predictions of all pairs: one camera per photo, one depth map per photo, and a
weight for every predicted point that says how far it can be believed. The world is the first photo's camera, its unit
is arbitrary. What DUSt3R's own objective makes of the same predictions is shown beside it.

Prints the errors of the cameras against the truth of the rendered room, and all that the alignment found to complain
about. Leaves `scene.png`: the weighted cloud with its cameras (arrows, the first in red) from above and from the side;
and `scene/`, which `load_scene` reads. 15 seconds on two CPU cores.
"""

import argparse
from pathlib import Path

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.evaluation.metrics import absolute_focal_error_percent, absolute_trajectory_error
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import predict_pairs
from lora3d_ns.reconstruct import scene_of
from lora3d_ns.rooms.benchmark_scenes import truth_for_views
from lora3d_ns.rooms.generator import demo_room, write_scene
from lora3d_ns.scene_io.scenes import save_scene
from lora3d_ns.scene_picture import draw_scene

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("outputs/examples/01"))
output = parser.parse_args().output

room = demo_room()
write_scene(output / "photos", room)
network = load_network("rooms")
views = load_views(
    output / "photos" / "images", PhotoSettings(size=network.config.image_size, patch_size=network.patch_size)
)
predictions = predict_pairs(views, build_pair_graph(CompleteGraph(), len(views)), network)

true = truth_for_views(views, room).cameras
robust = AlignmentSettings()
dust3rs_own = AlignmentSettings(objective="plain", matches="off")
for name, settings in (("DUSt3R's objective", dust3rs_own), ("robust, the default", robust)):
    aligned = align(views, predictions, settings)
    position_cm = 100 * absolute_trajectory_error(aligned.cameras.T_world_camera, true.T_world_camera)
    focal_percent = absolute_focal_error_percent(aligned.cameras.K, true.K)
    print(f"{name}: camera positions off by {position_cm:.1f} cm, focal lengths by {focal_percent:.1f} %")

# `aligned` is the robust one. Weights are 0 where a point is not to be believed at all; a weight is no probability.
for warning in aligned.diagnosis.warnings:
    print("the alignment warns:", warning)
for name, weight, K in zip(views.names, aligned.view_weights, aligned.cameras.K, strict=True):
    print(f"{name}: focal length {float(K[0, 0]):.0f} px of the photo, median weight {float(weight.median()):.2f}")

scene = scene_of(views, aligned, cutoff=0.1, provenance={"example": "01_align"})
draw_scene(scene, output / "scene.png", title=f"Six photos aligned: {len(scene.points)} points and their cameras")
save_scene(scene, output / "scene")
print(f"look at {output / 'scene.png'}")
