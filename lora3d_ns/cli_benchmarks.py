"""The jobs of `lora3d benchmark`: one dataclass of settings each, see `lora3d_ns.cli`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import subcommand

from lora3d_ns.cli_benchmarks_gpu import BenchmarkGpu
from lora3d_ns.cli_benchmarks_speed import (
    BenchmarkAlignment,
    BenchmarkFinetune,
    BenchmarkInference,
    BenchmarkMemory,
    BenchmarkRasterizer,
)
from lora3d_ns.cli_benchmarks_splats import BenchmarkSplats


@dataclass(frozen=True, kw_only=True)
class BenchmarkNetwork:
    """Validation of a network on unseen pairs of each domain of rooms, beside two baselines."""

    network: str = "rooms"
    """Network by name or path."""
    domains: tuple[str, ...] = ("nominal", "dark", "sparse", "tele")
    """Domains of rooms; `clutter` and `moving` are there too."""
    pairs: int = 200
    """Unseen pairs of each domain."""
    seed: int | None = None
    """Another number gives other rooms of the same kind."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the validation and prints its table."""
        from lora3d_ns.rooms.benchmark_network import (
            NetworkBenchmarkSettings,
            run_network_benchmark,
            validation_table,
        )

        settings = NetworkBenchmarkSettings(
            network=self.network, domains=self.domains, pairs=self.pairs, device=self.device, json_file=self.json
        )
        if self.seed is not None:
            settings = replace(settings, seed=self.seed)
        print(validation_table(run_network_benchmark(settings)))


@dataclass(frozen=True, kw_only=True)
class BenchmarkRooms:
    """rooms-v1: named arms on 24 fixed scenes, test photos that no calibration sees."""

    network: str = "rooms"
    """Network by name or path."""
    arms: tuple[str, ...] = ("pretrained", "robust", "self_calibrated", "gt_finetuned")
    """What to compare: `pretrained` aligns by DUSt3R's own objective, `robust` by Eq. 7 with 2D matches;
    `self_calibrated` learns an adapter from the calibration photos, `gt_finetuned` from their truth, `depth_calibrated`
    from their true depth with estimated cameras."""
    domains: tuple[str, ...] = ("nominal", "dark", "sparse", "tele")
    """Domains of rooms; `clutter` and `moving` are extra lists."""
    scenes: int = 6
    """Scenes per domain; the fixed list has six."""
    seed_offset: int = 0
    """Another number gives other, never used scenes of the same kind."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    picture: Path | None = None
    """File for a picture of the clouds of every domain's first scene, arm beside arm."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its table."""
        from lora3d_ns.network.checkpoints import load_network
        from lora3d_ns.rooms.benchmark import benchmark_markdown, run_rooms_benchmark

        network = load_network(self.network, device=self.device)
        record = run_rooms_benchmark(
            network,
            network_name=self.network,
            image_size=network.config.image_size,
            arms=self.arms,
            domains=self.domains,
            scenes=self.scenes,
            seed_offset=self.seed_offset,
            json_path=self.json,
            picture=self.picture,
        )
        print(benchmark_markdown(record))


@dataclass(frozen=True, kw_only=True)
class BenchmarkCalibration:
    """What each part of the alignment does on the same predictions: cameras, clouds, weights and label errors."""

    network: str = "rooms"
    """Network by name or path."""
    variants: tuple[
        Literal["plain", "point_maps", "matches", "bundle_adjustment", "true_intrinsics", "true_cameras"], ...
    ] = (
        "plain",
        "point_maps",
        "matches",
        "bundle_adjustment",
        "true_intrinsics",
        "true_cameras",
    )
    """Eq. 6; Eq. 7; Eq. 7 with 2D matches; Eq. 7, then pycolmap's bundle adjustment of the same matches (cameras only);
    Eq. 7 with true intrinsics; with true cameras."""
    domains: tuple[str, ...] = ("nominal", "dark", "sparse", "tele")
    """Domains of rooms; `clutter` and `moving` are extra lists."""
    scenes: int = 6
    """Scenes per domain."""
    seed_offset: int = 0
    """0 is the fixed list, 500 the rooms on which settings were chosen, others are fresh."""
    mu: float | None = None
    """Of Eq. 7 and Eq. 8, as a share of depth; by default the one in the settings."""
    picture: Path | None = None
    """File for a picture of confidence, weight and true error."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its table."""
        from lora3d_ns.alignment.settings import AlignmentSettings
        from lora3d_ns.network.checkpoints import load_network
        from lora3d_ns.rooms.benchmark_calibration import (
            CalibrationBenchmarkSettings,
            calibration_markdown,
            run_calibration_benchmark,
        )

        network = load_network(self.network)
        alignment = AlignmentSettings() if self.mu is None else AlignmentSettings(mu=self.mu)
        settings = CalibrationBenchmarkSettings(
            variants=self.variants,
            domains=self.domains,
            scenes=self.scenes,
            seed_offset=self.seed_offset,
            alignment=alignment,
            json_file=self.json,
            picture=self.picture,
        )
        print(calibration_markdown(run_calibration_benchmark(network, settings, image_size=network.config.image_size)))


@dataclass(frozen=True, kw_only=True)
class BenchmarkRobustness:
    """Plain against robust alignment of predictions whose every fault is known: warps, floaters, wrong edges."""

    seeds: int = 20
    """Rooms, each with faults of its own."""
    views: int = 10
    """Photos of each."""
    pose_noise: bool = False
    """Whether the pairs' relative poses err too (1.5 degrees, 3 % of depth)."""
    matches: bool = False
    """Whether to align with 2D matches too."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its table."""
        from lora3d_ns.rooms.benchmark_robustness import (
            RobustnessSettings,
            robustness_markdown,
            run_robustness_benchmark,
        )

        settings = RobustnessSettings(
            seeds=self.seeds,
            views=self.views,
            pose_noise=self.pose_noise,
            matches=self.matches,
            json_file=self.json,
        )
        print(robustness_markdown(run_robustness_benchmark(settings)))


@dataclass(frozen=True, kw_only=True)
class BenchmarkAblations:
    """Variants of the method on validation rooms, one table for each question; see `lora3d_ns.rooms.ablations`."""

    studies: tuple[str, ...] = (
        "reference",
        "labels",
        "cutoff",
        "mu",
        "rank",
        "alpha",
        "targets",
        "photos",
        "choice",
        "seeds",
        "epochs",
        "rounds",
        "triplets",
        "recipe",
    )
    """Which questions; `reuse` is one more: an adapter that learns all rooms but the last at once."""
    rooms: tuple[str, ...] = ("nominal-1", "dark-1", "sparse-1", "tele-1")
    """Domain and index of each room."""
    seed_offset: int = 500
    """Of the rooms: 500 are the validation rooms, 0 is the fixed list that settings are never chosen on."""
    network: str = "rooms"
    """Network by name or path."""
    cache: Path | None = None
    """Folder for results of stages and variants, so that an interrupted run goes on."""
    pictures: Path | None = None
    """Folder for pictures of the studies `reference` and `photos`."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the studies and prints their tables."""
        from lora3d_ns.network.checkpoints import load_network
        from lora3d_ns.rooms.ablation_tables import ablations_markdown
        from lora3d_ns.rooms.benchmark_ablations import AblationSettings, run_ablations

        settings = AblationSettings(
            studies=self.studies,
            rooms=self.rooms,
            seed_offset=self.seed_offset,
            cache=self.cache,
            json_file=self.json,
        )
        record = run_ablations(load_network(self.network), settings)
        print(ablations_markdown(record))
        if self.pictures is not None:
            from lora3d_ns.rooms.ablation_pictures import draw_studies

            for picture in draw_studies(record, self.pictures):
                print(f"Picture:  {picture}")


Benchmark = (
    Annotated[BenchmarkInference, subcommand("inference", prefix_name=False)]
    | Annotated[BenchmarkMemory, subcommand("memory", prefix_name=False)]
    | Annotated[BenchmarkAlignment, subcommand("alignment", prefix_name=False)]
    | Annotated[BenchmarkFinetune, subcommand("finetune", prefix_name=False)]
    | Annotated[BenchmarkRasterizer, subcommand("rasterizer", prefix_name=False)]
    | Annotated[BenchmarkCalibration, subcommand("calibration", prefix_name=False)]
    | Annotated[BenchmarkRobustness, subcommand("robustness", prefix_name=False)]
    | Annotated[BenchmarkNetwork, subcommand("network", prefix_name=False)]
    | Annotated[BenchmarkRooms, subcommand("rooms", prefix_name=False)]
    | Annotated[BenchmarkAblations, subcommand("ablations", prefix_name=False)]
    | Annotated[BenchmarkSplats, subcommand("splats", prefix_name=False)]
    | Annotated[BenchmarkGpu, subcommand("gpu", prefix_name=False)]
)
