"""00: what the network says of two photos.

You learn how photos are loaded (`load_views`), which pairs the network looks at (`build_pair_graph`), and what it says
of each (`predict_pairs`): a 3D point for every pixel of both photos, all in the first camera's frame, and how sure it
is of each. Everything else in this package is made from that.

Prints the median depth and confidence of three pairs' second photos, and how far off a pair's points are on average,
which is known because the room is a rendered one. Leaves `pairs.png`: photos, depths, confidences and points; and
`truth.png`: the same depths beside the true ones. 10 seconds on two CPU cores.
"""

import argparse
from pathlib import Path

from lora3d_ns.evaluation.metrics import point_error
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.pictures import draw_against_truth, draw_pair_predictions
from lora3d_ns.predict import predict_pairs
from lora3d_ns.rooms.benchmark_scenes import truth_for_views
from lora3d_ns.rooms.generator import demo_room, write_scene

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("outputs/examples/00"))
output = parser.parse_args().output

# Six photos of a room, as files in `images/`, with their truth beside them. Yours would be a folder of photos.
room = demo_room()
write_scene(output, room)

# The bundled network knows rendered rooms only, and sees them 64 pixels wide. For photos: load_network("512_dpt").
network = load_network("rooms")
views = load_views(output / "images", PhotoSettings(size=network.config.image_size, patch_size=network.patch_size))
graph = build_pair_graph(CompleteGraph(), len(views))
predictions = predict_pairs(views, graph, network)

truth = truth_for_views(views, room)
shown = [(0, 1), (0, 3), (2, 5)]
for (i, j), pair in predictions:
    if (i, j) in shown:
        # Points are in a unit of the network's own, for each pair; C = log(raw confidence) is 0 for "no idea".
        depth, C = (float(values.median()) for values in (pair.points_second[..., 2], pair.confidence_second))
        error_cm = 100 * point_error([pair.points_first, pair.points_second], truth.true_points((i, j)))
        print(
            f"{views.names[j]} beside {views.names[i]}: depth {depth:.1f}, confidence {C:.2f}, error {error_cm:.0f} cm"
        )

draw_pair_predictions(views, predictions, shown, output / "pairs.png", title="What the network says of three pairs")
draw_against_truth(
    views,
    predictions,
    {edge: truth.true_points(edge) for edge in shown},
    output / "truth.png",
    title="The same three pairs beside the truth (metres)",
)
print(f"look at {output / 'pairs.png'} and {output / 'truth.png'}")
