"""The jobs of `lora3d benchmark` that measure time and memory, beside peers, see `lora3d_ns.cli_benchmarks`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
