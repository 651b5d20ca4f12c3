"""`lora3d benchmark splats`: new views of six fixed rooms, by arm, against photos that nothing has seen."""

import copy
import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from PIL import Image

from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.commands import Source, open_source
from lora3d_ns.errors import SettingsError
from lora3d_ns.evaluation.metrics import absolute_trajectory_error
from lora3d_ns.photo_scene import PhotoScene, make_photo_scene, save_photo_scene
from lora3d_ns.plugin.training import train_splats
from lora3d_ns.reconstruct import ReconstructSettings, reconstruct
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos, make_scene
from lora3d_ns.splat.seed import project_to_own_views
from lora3d_ns.splits import SplitSettings
from lora3d_ns.types import Cameras

SPLAT_SCENES = ("nominal-0", "nominal-1", "dark-0", "sparse-0", "tele-0", "tele-1")
"""The fixed list; `--seed-offset` moves to other rooms of the same kinds."""

MOVING_SCENES = ("moving-0", "moving-1", "moving-2", "moving-3", "moving-4", "moving-5")
"""A list of its own: rooms in which something moves from photo to photo. What moves is left out of the held-out photos'
metrics, by true masks."""

SPLAT_ARMS = (
    "pretrained",
    "robust",
    "self_calibrated",
    "fixed_cameras",
    "stock",
    "true_poses",
    "disturbed",
    "disturbed_fixed",
    "moving_masked",
    "true_masks",
)
"""The first three are the method's. `fixed_cameras` is `self_calibrated` without refinement of the cameras, `stock`
the same scene with Splatfacto's settings, `true_poses` a scene of the calibrated network whose cameras, held-out ones
included, are the true ones, and stay. `disturbed` turns and moves the training cameras of that, each with its points,
so that refinement has something to do, and `disturbed_fixed` leaves them so. `moving_masked` is `self_calibrated` whose
training leaves out what the alignment took for moving, and `true_masks` one that knew from the beginning."""

DISTURBED_DEG = 0.5
"""Standard deviation of the turn about each axis; positions move by as many radians of the median depth."""

REFINEMENTS = {"the scene's": ("fixed_cameras", "self_calibrated"), "disturbed": ("disturbed_fixed", "disturbed")}
"""What is refined: the arm that leaves those cameras, and the one that refines them."""

METRICS = ("psnr", "ssim", "psnr_pose_optimized", "ssim_pose_optimized")


def run_splat_benchmark(
    *,
    scenes: Sequence[str] = SPLAT_SCENES,
    arms: Sequence[str] = SPLAT_ARMS,
    network: str = "rooms",
    size: tuple[int, int] = (160, 120),
    iterations: int | None = None,
    test_photos: int = 5,
    seed_offset: int = 0,
    folder: Path | None = None,
    model: Mapping[str, Any] | None = None,
    json_path: Path | None = None,
) -> dict[str, object]:
    """Trains splats of every arm on ten photos of every room, and measures them on others.

    Args:
        scenes: Which of `SPLAT_SCENES` or `MOVING_SCENES`.
        arms: Which of `SPLAT_ARMS`.
        network: By name or path.
        size: (width, height) of the photos in pixels.
        iterations: Steps of training; by default the method's.
        test_photos: Held-out photos per room.
        seed_offset: 0 for the fixed list.
        folder: Where everything is left, renderings too; nowhere by default.
        model: Settings of the model to be changed in every arm but `stock`, by name.
        json_path: File for the record.

    Returns:
        `rows` with one entry per scene and arm, and `summary` by arm with mean and median of each metric, and how
        many scenes are better and worse than `pretrained`.

    Raises:
        SettingsError: There is no such arm or scene.
    """
    for kind, given, known in (("arm", arms, SPLAT_ARMS), ("scene", scenes, SPLAT_SCENES + MOVING_SCENES)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise SettingsError(f"there is no {kind} {unknown[0]}", way_out=f"Use some of {', '.join(known)}")
    record: dict[str, Any] = machine_record(command="splats", device=torch.device("cpu"), seed=seed_offset)
    record |= {"network": network, "size": list(size), "iterations": iterations, "test_photos": test_photos}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        for name in scenes:
            domain, index = name.split("-")
            room = _Room(place / name, domain, int(index), size, test_photos, seed_offset, network)
            for arm in arms:
                rows.append(room.measured(arm, iterations, dict(model or {})))
                write_record({**record, "rows": rows, "summary": summary(rows)}, json_path)
    return {**record, "rows": rows, "summary": summary(rows)}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By arm: mean and median of each metric over the scenes, and the scenes better and worse than `pretrained`."""
    found: dict[str, Any] = {}
    by_key = {(row["scene"], row["arm"]): row for row in rows}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        entry: dict[str, Any] = {
            metric: {"mean": mean(row[metric] for row in own), "median": median(row[metric] for row in own)}
            for metric in METRICS
        }
        pairs = [(row["psnr"], by_key.get((row["scene"], "pretrained"), row)["psnr"]) for row in own]
        entry["improved"] = sum(psnr > base for psnr, base in pairs)
        entry["worse"] = sum(psnr < base for psnr, base in pairs)
        found[arm] = entry
    return found


def refinement_gains_db(summary: Mapping[str, Any], metric: str, arms: tuple[str, str]) -> tuple[float, float] | None:
    """What refining cameras gains over leaving them, and what true ones gain; None where an arm is missing.

    Args:
        summary: Of the benchmark.
        metric: One of `METRICS`.
        arms: The one that leaves its cameras, and the one that refines them.

    In dB and not as a share: where the scene's cameras are as good as true ones, a share means nothing.
    """
    if not {*arms, "true_poses"} <= set(summary):
        return None
    fixed, refined, true = (summary[arm][metric]["mean"] for arm in (*arms, "true_poses"))
    return refined - fixed, true - fixed


class _Room:
    """One room: photos as files, a scene per arm, and its splats."""

    def __init__(
        self,
        folder: Path,
        domain: str,
        index: int,
        size: tuple[int, int],
        test_photos: int,
        seed_offset: int,
        network: str,
    ) -> None:
        self.folder, self.domain = folder, domain
        made = make_scene(domain, index, size=size, seed_offset=seed_offset)
        self.name = made.name
        self.truth = (made.calibration, made.test)
        step = max(1, len(made.test.views) // test_photos)
        self.test = tuple(range(0, len(made.test.views), step))[:test_photos]
        self.source = Source(photos=folder / "photos", network=network, device="cpu", cache=folder / "cache")
        self.knowing = dataclasses.replace(self.source, photos=folder / "photos-and-masks")
        self._write_photos(self.source.photos, masked=("eval",))
        if domain == "moving":
            self._write_photos(self.knowing.photos, masked=("eval", "train"))

    def _write_photos(self, place: Path, *, masked: tuple[str, ...]) -> None:
        """Photos as files, with true masks of what moves beside those that are to have them."""
        place.mkdir(parents=True, exist_ok=True)
        for room, word, chosen in (
            (self.truth[0], "train", range(len(self.truth[0].views))),
            (self.truth[1], "eval", self.test),
        ):
            for number in chosen:
                pixels = (room.views.images[number].permute(1, 2, 0) * 255.0).round().byte().numpy()
                Image.fromarray(pixels).save(place / f"{word}-{number:02d}.png")
                if self.domain == "moving" and word in masked:
                    (place / "masks").mkdir(exist_ok=True)
                    still = room.static[number].numpy()
                    Image.fromarray(still).convert("L").save(place / "masks" / f"{word}-{number:02d}.png")

    def true_cameras(self) -> Cameras:
        """Cameras of all files, in their order: held-out ones (`eval-`) first, then those of the training."""
        return _joined_cameras(self.truth[1], self.test, self.truth[0], range(len(self.truth[0].views)))

    def scene(self, arm: str) -> PhotoScene:
        """The arm's scene, made once."""
        folder = self.folder / f"scene-{arm}"
        split = SplitSettings(mode="filename")
        if arm == "true_poses":
            return self._true_scene(folder)
        if arm == "disturbed":
            return self._disturbed_scene(folder)
        if arm == "true_masks":
            return make_photo_scene(self.knowing, folder, ReconstructSettings().silent(), split)
        settings = ReconstructSettings(arm=arm).silent()  # pyright: ignore[reportArgumentType]
        return make_photo_scene(self.source, folder, settings, split)

    def _true_scene(self, folder: Path) -> PhotoScene:
        """Depths that fit the true cameras, by the whole method."""
        views, network = open_source(self.source)
        cameras = self.true_cameras()
        held_out = tuple(range(len(self.test)))
        views = dataclasses.replace(views, known_K=tuple(cameras.K), known_T_world_camera=tuple(cameras.T_world_camera))
        kept = views.select(range(len(self.test), len(views)))
        made = reconstruct(kept, network, ReconstructSettings().silent(), base_name=self.source.network)
        return save_photo_scene(folder, made.scene, views, cameras, held_out, photos=self.source.photos)

    def _disturbed_scene(self, folder: Path) -> PhotoScene:
        """The scene of true cameras, whose training cameras but the first are turned and moved with their points."""
        scene, views = self.scene("true_poses").scene, open_source(self.source)[0]
        cameras = self.true_cameras()
        generator = torch.Generator().manual_seed(0)
        sigma = math.radians(DISTURBED_DEG)
        of_point = scene.point_views.long()
        unit = float(project_to_own_views(scene.points, of_point, scene.cameras)[1].median())
        T, points = scene.cameras.T_world_camera.clone(), scene.points.double()
        for view in range(1, len(T)):
            twist = torch.randn(6, generator=generator, dtype=torch.float64) * sigma
            generating = torch.zeros(4, 4, dtype=torch.float64)
            generating[:3, :3] = torch.linalg.cross(twist[:3].expand(3, 3), torch.eye(3, dtype=torch.float64)).T
            generating[:3, 3] = twist[3:] * unit
            before = T[view].double()
            after = before @ torch.linalg.matrix_exp(generating)
            moved, own = after @ torch.linalg.inv(before), of_point == view
            points[own] = points[own] @ moved[:3, :3].T + moved[:3, 3]
            T[view] = after.to(T)
        disturbed = dataclasses.replace(
            scene, points=points.float(), cameras=dataclasses.replace(scene.cameras, T_world_camera=T)
        )
        every = torch.cat([cameras.T_world_camera[: len(self.test)], T.to(cameras.T_world_camera)])
        held_out = tuple(range(len(self.test)))
        return save_photo_scene(
            folder,
            disturbed,
            views,
            dataclasses.replace(cameras, T_world_camera=every),
            held_out,
            photos=self.source.photos,
            show_progress=False,
        )

    def measured(self, arm: str, iterations: int | None, model: dict[str, Any]) -> dict[str, Any]:
        """One row of the table."""
        begun = time.perf_counter()
        scene_of = {
            "fixed_cameras": "self_calibrated",
            "stock": "self_calibrated",
            "moving_masked": "self_calibrated",
            "disturbed_fixed": "disturbed",
        }.get(arm, arm)
        scene = self.scene(scene_of)
        source = self.knowing if arm == "true_masks" else self.source
        made = time.perf_counter() - begun

        def change(config: Any) -> None:
            if arm == "stock":
                stock_settings(config, scene)
            else:
                for name, value in model.items():
                    setattr(config.pipeline.model, name, value)
            if arm in ("fixed_cameras", "true_poses", "disturbed_fixed"):
                config.pipeline.model.camera_optimizer.mode = "off"
            config.pipeline.model.lpips = False
            config.pipeline.datamanager.mask_moving = arm == "moving_masked"

        output = self.folder / f"splats-{arm}"
        shutil.rmtree(output, ignore_errors=True)
        renders = self.folder / f"renders-{arm}"
        trained = train_splats(
            scene, source.photos, output, iterations=iterations, change=change, renders=renders, quiet=True
        )
        poses = torch.stack([photo.T_world_camera for photo in scene.photos])
        return {
            "scene": self.name,
            "domain": self.domain,
            "arm": arm,
            **{metric: trained.metrics[metric] for metric in METRICS},
            "ate_m": absolute_trajectory_error(poses, self.true_cameras().T_world_camera.to(poses)),
            "gaussians": trained.gaussians,
            "scene_s": made,
            "splat_s": time.perf_counter() - begun - made,
        }


def stock_settings(config: Any, scene: PhotoScene) -> None:
    """Splatfacto's own settings on our scene, with two changes in its favour.

    It trains at full resolution from the beginning (its own schedule would reach that after 6000 steps only), and
    lengths are measured as nerfstudio would measure them (the farthest camera at distance 1).
    """
    from nerfstudio.configs.method_configs import method_configs
    from nerfstudio.models.splatfacto import SplatfactoModelConfig

    from lora3d_ns.plugin.model import GAUSSIANS

    splatfacto: Any = method_configs["splatfacto"]
    model = config.pipeline.model
    stock = splatfacto.pipeline.model
    for field in dataclasses.fields(SplatfactoModelConfig):
        if field.name not in ("_target", "camera_optimizer"):
            setattr(model, field.name, getattr(stock, field.name))
    model.seeding, model.densify, model.depth_weight = "stock", True, 0.0
    model.camera_optimizer.mode, model.num_downscales = "off", 0
    centres = torch.stack([photo.T_world_camera[:3, 3] for photo in scene.training])
    model.length_unit = float((centres - centres.mean(dim=0)).abs().max())
    for name in GAUSSIANS:
        chosen = copy.deepcopy(splatfacto.optimizers[name])
        # The same Adam, told the unit.
        chosen["optimizer"]._target = config.optimizers[name]["optimizer"]._target
        config.optimizers[name] = chosen


def _joined_cameras(
    first: RoomPhotos, of_first: Sequence[int], second: RoomPhotos, of_second: Sequence[int]
) -> Cameras:
    return Cameras(
        T_world_camera=torch.cat(
            [first.cameras.T_world_camera[list(of_first)], second.cameras.T_world_camera[list(of_second)]]
        ),
        K=torch.cat([first.cameras.K[list(of_first)], second.cameras.K[list(of_second)]]),
        sizes=tuple(first.cameras.sizes[i] for i in of_first) + tuple(second.cameras.sizes[i] for i in of_second),
    )


def splat_table(record: Mapping[str, Any]) -> str:
    """The summary as a table in Markdown."""
    lines = [
        "| arm | PSNR, dB (median) | SSIM | PSNR, pose optimised | SSIM | better / worse than pretrained |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm, entry in record["summary"].items():
        registered, optimized = (
            f"{entry[name]['mean']:.2f} ({entry[name]['median']:.2f})" for name in ("psnr", "psnr_pose_optimized")
        )
        lines.append(
            f"| {arm} | {registered} | {entry['ssim']['mean']:.3f} | {optimized} | "
            f"{entry['ssim_pose_optimized']['mean']:.3f} | {entry['improved']} / {entry['worse']} |"
        )
    for word, arms in REFINEMENTS.items():
        for metric, protocol in (("psnr", "registered"), ("psnr_pose_optimized", "pose optimised")):
            gains = refinement_gains_db(record["summary"], metric, arms)
            if gains is not None:
                lines += [
                    "",
                    f"Refining {word} cameras: {gains[0]:+.2f} dB, true ones: {gains[1]:+.2f} dB ({protocol}).",
                ]
    return "\n".join(lines)
