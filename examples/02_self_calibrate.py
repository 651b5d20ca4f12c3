"""02: the network learns a room from its photos alone.

You learn how `reconstruct` runs the whole method: align what the network says, take what is believed as labels, teach
them to a small adapter, and let a gate that sees other pairs decide whether the adapter is used. The arms `pretrained`
and `robust` leave parts of this out.

Prints the errors of pairs and cameras before and after, and the gate's sentence. Leaves `before_after.png`: for the
pairs that gained most, average and least, how far the alignment believes the second photo, which pixels became labels,
and its depth before and after, beside the truth; and `adapter/`, in peft's format. 30 seconds on two CPU cores; a
second run takes 15, as finished stages are in `cache/`.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from lora3d_ns.adapter.lora import save_adapter
from lora3d_ns.evaluation.metrics import absolute_focal_error_percent, best_scale
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.reconstruct import ReconstructSettings, reconstruct
from lora3d_ns.rooms.benchmark_scenes import truth_for_views
from lora3d_ns.rooms.generator import demo_room, write_scene
from lora3d_ns.scene_io.stage_cache import StageCache

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("outputs/examples/02"))
output = parser.parse_args().output

room = demo_room()
write_scene(output / "photos", room)
network = load_network("rooms")
photo_settings = PhotoSettings(size=network.config.image_size, patch_size=network.patch_size)
views = load_views(output / "photos" / "images", photo_settings)
made = reconstruct(views, network, ReconstructSettings(), base_name="rooms", cache=StageCache(output / "cache"))

# A calibration keeps what was there before; `made.understood` is what is used: the same, had the gate refused.
learnt = made.calibration
assert learnt is not None
assert learnt.gate is not None
verdict = f"the gate {'accepted' if learnt.gate.accepted else 'REFUSED'} the adapter ({learnt.gate.reason})"
truth = truth_for_views(views, room)
second_points, errors_m = [], []
for name, understood in (("before", learnt.before), ("after", made.understood)):
    points, errors = {}, {}
    for edge, pair in understood.predictions:
        true_both = torch.cat([true.reshape(-1, 3) for true in truth.true_points(edge)])
        said_both = torch.cat([pair.points_first.reshape(-1, 3), pair.points_second.reshape(-1, 3)])
        scale = best_scale(said_both, true_both)
        points[edge], errors[edge] = (
            scale * pair.points_second,
            float((scale * said_both - true_both).norm(dim=1).mean()),
        )
    second_points.append(points)
    errors_m.append(errors)
    focal = absolute_focal_error_percent(understood.aligned.cameras.K, truth.cameras.K)
    print(f"{name}: points off by {100 * sum(errors.values()) / len(errors):.0f} cm, focal lengths by {focal:.1f} %")
print(verdict)
if made.adapter is not None:
    save_adapter(made.adapter, output / "adapter")

by_gain = sorted(errors_m[0], key=lambda edge: errors_m[1][edge] / errors_m[0][edge])
shown = {"most": by_gain[0], "average": by_gain[len(by_gain) // 2], "least": by_gain[-1]}
figure = Figure(figsize=(20, 8.2), layout="constrained")
figure.suptitle(verdict[0].upper() + verdict[1:], fontsize=14)
for row, (gained, (i, j)) in zip(figure.subplots(3, 8), shown.items(), strict=True):
    photo, true = views.images[j].permute(1, 2, 0), truth.true_points((i, j))[1]
    labelled = learnt.labels.valid_second[learnt.labels.graph.edges.index((i, j))][..., None]
    (was, now), (before_cm, after_cm) = (points[i, j] for points in second_points), (100 * e[i, j] for e in errors_m)
    depth = {"cmap": "turbo", "vmin": float(true[..., 2].min()), "vmax": float(true[..., 2].max())}
    error = {"cmap": "magma", "vmin": 0.0, "vmax": float((was - true).norm(dim=-1).quantile(0.98))}
    panels = (
        (f"gained {gained}: {views.names[j]}", photo, {}),
        ("how far it is believed", learnt.before.aligned.view_weights[j], {"cmap": "viridis"}),
        ("labels (the rest in red)", torch.where(labelled, photo, photo.new_tensor([0.8, 0.1, 0.1])), {}),
        (f"depth beside {views.names[i]}", was[..., 2], depth),
        ("self-calibrated", now[..., 2], depth),
        ("truth", true[..., 2], depth),
        (f"error: pair {before_cm:.0f} cm", (was - true).norm(dim=-1), error),
        (f"self-calibrated: {after_cm:.0f} cm", (now - true).norm(dim=-1), error),
    )
    for axes, (name, values, how) in zip(row, panels, strict=True):
        axes.imshow(values.numpy(), **how)
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
figure.savefig(output / "before_after.png", dpi=80)
print(f"look at {output / 'before_after.png'}")
