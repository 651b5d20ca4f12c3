"""04: a network of your own.

You learn what the package asks of a network, which is little: `PairNetwork` wants `encode` for photos, `decode` for
pairs of them, a patch size and a device. All of prediction and alignment then works with it. (Self-calibration teaches
weights of the DUSt3R class only.)

The one below is not learnt at all. It stands for a phone with a depth camera that knows each photo's depth up to 1.5 %
of noise, and between any two photos how it moved, up to a degree and 4 cm. It says so in DUSt3R's words: point maps of
both photos in the first camera's frame, and confidences. The alignment finds the cameras that fit all pairs and what
the photos show.

Prints how far off two cameras are, pair by pair and aligned. Leaves `pairs.png`, what the phone says of two pairs; and
`scene.png`, the scene made of it. 20 seconds on two CPU cores.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lora3d_ns.alignment.align import align
from lora3d_ns.evaluation.metrics import absolute_trajectory_error, relative_pose_errors_deg, rotation_angle_deg
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.base import Encoding, PairNetwork, PairOutput
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.pictures import draw_pair_predictions
from lora3d_ns.predict import predict_pairs
from lora3d_ns.reconstruct import scene_of
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos, truth_for_views
from lora3d_ns.rooms.generator import demo_room, write_scene
from lora3d_ns.scene_picture import draw_scene


class DepthPhone:
    """Remembers depth, intrinsics and pose of each photo it has taken."""

    patch_size = 16
    device = torch.device("cpu")

    def __init__(self, taken: RoomPhotos) -> None:
        self.noise = torch.Generator().manual_seed(0)
        self.memory: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}
        for view, image in enumerate(taken.views.images):
            depth = taken.depths_m[view] * (1.0 + 0.015 * self.random(*taken.depths_m[view].shape))
            K_network = taken.views.source_from_network[view].K_network_from_source(taken.cameras.K[view])
            self.memory[image.numpy().tobytes()] = (depth, K_network, taken.cameras.T_world_camera[view])

    def random(self, *shape: int) -> Tensor:
        """Noise of the phone."""
        return torch.randn(*shape, generator=self.noise)

    def encode(self, images: Tensor) -> Encoding:
        """All that depends on one photo alone, for photos of one shape; asked once and used in all its pairs."""
        # A learnt network computes tokens. What else it wants back in `decode` goes into the extras, batch first.
        remembered = [self.memory[image.numpy().tobytes()] for image in images]
        tokens = torch.nn.functional.avg_pool2d(images, self.patch_size).flatten(2).mT
        extras = tuple(torch.stack(values) for values in zip(*remembered, strict=True))
        return Encoding(tokens=tokens, height=images.shape[2], width=images.shape[3], extras=extras)

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        """The points of both photos in the first camera's frame, in any unit; C = log(raw confidence) >= 0."""
        own, other = [], []
        for depth_i, K_i, T_i, depth_j, K_j, T_j in zip(*first.extras, *second.extras, strict=True):
            T_i_j = torch.linalg.inv(T_i) @ T_j
            turn = torch.linalg.cross(self.random(3).expand(3, 3), torch.eye(3)).deg2rad() / 3**0.5
            T_i_j[:3, :3] @= torch.linalg.matrix_exp(turn)
            T_i_j[:3, 3] += 0.04 / 3**0.5 * self.random(3)
            own.append(points_from_depth(depth_i, K_i))
            other.append(points_from_depth(depth_j, K_j) @ T_i_j[:3, :3].T + T_i_j[:3, 3])
        # What is near is measured better.
        C_first, C_second = ((1.0 + 2.0 / encoding.extras[0]).log() for encoding in (first, second))
        return PairOutput(
            points_first=torch.stack(own),
            points_second=torch.stack(other),
            confidence_first=C_first,
            confidence_second=C_second,
        )


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("outputs/examples/04"))
output = parser.parse_args().output

room = demo_room()
write_scene(output / "photos", room)
views = load_views(output / "photos" / "images", PhotoSettings(size=128, patch_size=DepthPhone.patch_size))
truth = truth_for_views(views, room)

phone: PairNetwork = DepthPhone(truth)
predictions = predict_pairs(views, build_pair_graph(CompleteGraph(), len(views)), phone)
aligned = align(views, predictions)

T_true, maps, turned = truth.cameras.T_world_camera, dict(predictions), []
for i, j in predictions.graph.edges:
    # Where the second photo's own point map lies in the pair: the relative pose that the pair stands for.
    own, placed = maps[j, i].points_first.reshape(-1, 3), maps[i, j].points_second.reshape(-1, 3)
    R_said = weighted_similarity(own, placed, torch.ones(len(own))).rotation
    turned.append(rotation_angle_deg((torch.linalg.inv(T_true[i]) @ T_true[j])[:3, :3].T @ R_said))
said_deg = float(torch.stack(turned).mean())
found_deg = float(relative_pose_errors_deg(aligned.cameras.T_world_camera, T_true).rotation_deg.mean())
found_cm = 100 * absolute_trajectory_error(aligned.cameras.T_world_camera, T_true)
print(f"pair by pair: two photos' cameras off by {said_deg:.2f} degrees, and by some 4 cm")
print(f"aligned: two photos' cameras off by {found_deg:.2f} degrees, their positions by {found_cm:.1f} cm")

shown = [(0, 2), (3, 5)]
draw_pair_predictions(views, predictions, shown, output / "pairs.png", title="What the phone says of two pairs")
scene = scene_of(views, aligned, cutoff=0.1, provenance={"example": "04_own_network"})
draw_scene(scene, output / "scene.png", title=f"The room by a depth camera, aligned: {len(scene.points)} points")
print(f"look at {output / 'pairs.png'} and {output / 'scene.png'}")
