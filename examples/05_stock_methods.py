"""05: nerfstudio's own methods on our cameras.

You learn how any method of nerfstudio gets cameras from photos without poses: by the dataparser `lora3d`, as in
`ns-train nerfacto --data photos lora3d`. This is the same from Python: nerfacto, and splatfacto where there is CUDA,
without which it does not run (`lora3d-splat` of example 03 does).

Prints PSNR and SSIM of two photos that nothing has seen. Leaves `nerfacto.png` (and `splatfacto.png`): these photos
beside what the method renders from where they were taken. Nerfacto is made small here and stopped early: what it shows
after two minutes is a beginning. 3 minutes on two CPU cores, without tiny-cuda-nn.
"""

import argparse
import copy
import os
from pathlib import Path
from typing import Any
from unittest import mock

# nerfstudio compiles a function of its own, which takes a minute and a compiler. Read when torch is imported.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def main(output: Path, steps: int) -> None:
    """Photos, their scene, and one training after the other."""
    import torch

    from lora3d_ns.plugin.dataparser import Lora3dDataParserConfig
    from lora3d_ns.rooms.generator import demo_room, write_scene
    from lora3d_ns.splat_picture import draw_held_out

    write_scene(output / "photos", demo_room(photo_count=12, size=(128, 96)))
    dataparser = Lora3dDataParserConfig(
        # The network as it is (arm robust) gives cameras that are as good; every sixth photo is held out.
        data=output / "photos" / "images", scene=output / "scene", network="rooms", arm="robust", eval_interval=6
    )  # fmt: skip
    # Made when it is first asked for, found again by every method.
    scene = dataparser.setup().photo_scene
    print("held out:", ", ".join(photo.name for photo in scene.held_out))
    farthest = float(scene.scene.points.norm(dim=1).max())

    for method in ("nerfacto", "splatfacto") if torch.cuda.is_available() else ("nerfacto",):
        metrics = train(method, dataparser, farthest, output / method, steps)
        print(f"{method}, {steps} steps: PSNR {metrics['psnr']:.1f} dB, SSIM {metrics['ssim']:.3f}")
        pictures = sorted((output / method / "renders").glob("*img*.png"))
        draw_held_out(pictures, metrics, output / f"{method}.png", title=f"nerfstudio's {method} after {steps} steps")
        print(f"look at {output / method}.png")
    if not torch.cuda.is_available():
        print("no CUDA device: splatfacto is left out. Without CUDA use lora3d-splat, see 03_splats.py")


def train(method: str, dataparser: Any, farthest: float, output: Path, steps: int) -> dict[str, float]:
    """Trains one of nerfstudio's methods and returns its metrics over the photos held out."""
    import torch
    from nerfstudio.configs.method_configs import method_configs
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig

    class NoLpips(torch.nn.Module):
        """Stands for LPIPS, whose weights the stock methods fetch before they begin, and end where they cannot."""

        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            """Nothing is measured."""
            return torch.tensor(float("nan"))

    config: Any = copy.deepcopy(method_configs[method])
    if method == "nerfacto":
        # A few rays of small photos: they need no processes of their own.
        config.pipeline.datamanager = VanillaDataManagerConfig(train_num_rays_per_batch=1024)
        # The scene is as large as it is (nerfacto expects 1): rays begin and end where the room does.
        smaller = {"num_levels": 8, "max_res": 128, "log2_hashmap_size": 15, "num_nerf_samples_per_ray": 24}
        smaller |= {"num_proposal_samples_per_ray": (64, 32), "eval_num_rays_per_chunk": 4096}
        room = {"disable_scene_contraction": True, "near_plane": 0.1 * farthest, "far_plane": 1.2 * farthest}
        for name, value in (smaller | room).items():
            setattr(config.pipeline.model, name, value)
        for network in config.pipeline.model.proposal_net_args_list:
            network.update(log2_hashmap_size=13, max_res=64)
    config.pipeline.datamanager.dataparser = dataparser
    config.pipeline.datamanager.data = dataparser.data
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    config.mixed_precision = torch.cuda.is_available() and config.mixed_precision
    config.output_dir, config.vis, config.max_num_iterations = output, "tensorboard", steps
    config.steps_per_eval_image = config.steps_per_eval_batch = config.steps_per_eval_all_images = 10 * steps
    config.logging.local_writer.enable = False
    config.set_timestamp()
    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", return_value=NoLpips()):
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
    trainer.train()
    return trainer.pipeline.get_average_eval_image_metrics(output_path=output / "renders")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/examples/05"))
    parser.add_argument("--steps", type=int, default=250, help="of training; 30,000 are usual")
    arguments = parser.parse_args()
    main(arguments.output, arguments.steps)
