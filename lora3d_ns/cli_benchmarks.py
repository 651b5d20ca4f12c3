"""The jobs of `lora3d benchmark`: one dataclass of settings each, see `lora3d_ns.cli`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import subcommand

from lora3d_ns.cli_benchmarks_splats import BenchmarkSplats

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkInference:
    """All ordered pairs of some photos: our network against mini-dust3r, same weights, same run."""

    photos: int = 6
    """Number of photos."""
    size: tuple[int, int] = (512, 384)
    """Width and height at network resolution."""
    head: Literal["dpt", "linear"] = "dpt"
    """Prediction head."""
    precision: Precision = "auto"
    """Of our network; the peer runs in float32."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    repeats: int = 1
    """Runs of each, alternating; the fastest counts."""
    peer: bool = True
    """Whether to run mini-dust3r too."""
    peer_batch_size: int = 1
    """Pairs at once for the peer; 1 is what DUSt3R's own demo uses."""
    seed: int = 0
    """Of weights and images."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its record."""
        from lora3d_ns.benchmark_inference import run_inference_benchmark

        _print_record(
            run_inference_benchmark(
                photos=self.photos,
                size=self.size,
                head=self.head,
                precision=self.precision,
                device=self.device,
                repeats=self.repeats,
                peer=self.peer,
                peer_batch_size=self.peer_batch_size,
                seed=self.seed,
                json_path=self.json,
            )
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkMemory:
    """Peak memory of a complete graph of many photos with the full-size network."""

    photos: int = 40
    """Number of photos."""
    size: tuple[int, int] = (512, 384)
    """Width and height at network resolution."""
    real_pairs: int = 4
    """Pairs that the network really decodes; the others get copies of its last answer."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    seed: int = 0
    """Of weights and images."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its record."""
        from lora3d_ns.benchmark_inference import run_memory_benchmark

        _print_record(
            run_memory_benchmark(
                photos=self.photos,
                size=self.size,
                real_pairs=self.real_pairs,
                device=self.device,
                seed=self.seed,
                json_path=self.json,
            )
        )


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
class BenchmarkAlignment:
    """Multi-view alignment against mini-dust3r's point-cloud optimiser: same predictions, same Eq. 6, same run."""

    case: Literal["full", "bundled"] = "full"
    """Simulated predictions of 512x384, or the bundled network's own of 64x64."""
    views: int = 10
    """Number of photos, complete pair graph."""
    size: tuple[int, int] | None = None
    """Width and height; by default that of the case."""
    iterations: int = 300
    """Of the peer; ours stops by itself."""
    peer: bool = True
    """Whether to run mini-dust3r too."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    seed: int = 0
    """Of the room and its predictions."""
    picture: Path | None = None
    """File for the picture of both objectives over time."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its record."""
        from lora3d_ns.benchmark_alignment import run_alignment_benchmark

        record = run_alignment_benchmark(
            case=self.case,
            views=self.views,
            size=self.size,
            iterations=self.iterations,
            device=self.device,
            seed=self.seed,
            peer=self.peer,
            json_path=self.json,
            picture=self.picture,
        )
        _print_record({key: value for key, value in record.items() if not key.endswith("_curve")})


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


@dataclass(frozen=True, kw_only=True)
class BenchmarkFinetune:
    """Steps of fine-tuning: our default and the paper's recipe against plain peft on mini-dust3r, in one run."""

    photos: int = 10
    """Number of photos."""
    size: tuple[int, int] = (512, 384)
    """Width and height at network resolution."""
    steps: int = 5
    """Timed steps of each contender, after one that warms up."""
    pairs_per_step: int | None = None
    """Ordered pairs of a step of ours; by default that of the settings."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of all contenders."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    network: Literal["full", "bundled"] = "full"
    """The official configuration with random weights, or the bundled network."""
    peer: bool = True
    """Whether to run mini-dust3r too."""
    low_memory: bool = False
    """Compute activations again for the gradient instead of keeping them."""
    complete: bool = False
    """Run a whole training of ten epochs too."""
    seed: int = 0
    """Of weights, images and labels."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its record."""
        from lora3d_ns.benchmark_finetune import run_finetune_benchmark

        _print_record(
            run_finetune_benchmark(
                photos=self.photos,
                size=self.size,
                steps=self.steps,
                pairs_per_step=self.pairs_per_step,
                precision=self.precision,
                device=self.device,
                network=self.network,
                peer=self.peer,
                low_memory=self.low_memory,
                complete=self.complete,
                seed=self.seed,
                json_path=self.json,
            )
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkRasterizer:
    """The CPU rasterizer of Gaussians, forward and backward, against one written plainly in torch."""

    gaussians: int = 20_000
    """Their number."""
    size: tuple[int, int] = (256, 192)
    """Width and height of the picture."""
    repeats: int = 20
    """Timed passes of ours."""
    plain: bool = True
    """Whether to run the plain one too."""
    compilation: bool = True
    """Whether to time how long the kernels take to compile."""
    seed: int = 0
    """Of the scene."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its record."""
        from lora3d_ns.benchmark_rasterizer import run_rasterizer_benchmark

        _print_record(
            run_rasterizer_benchmark(
                gaussians=self.gaussians,
                size=self.size,
                repeats=self.repeats,
                plain=self.plain,
                compilation=self.compilation,
                seed=self.seed,
                json_path=self.json,
            )
        )


def _print_record(record: dict[str, object]) -> None:
    width = max(len(key) for key in record)
    for key, value in record.items():
        print(f"{key:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")


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
)
