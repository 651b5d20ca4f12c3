"""`lora3d benchmark splats`, see `lora3d_ns.cli_benchmarks`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BenchmarkSplats:
    """New views of six fixed rooms: PSNR and SSIM of photos that nothing has seen, by arm."""

    arms: tuple[str, ...] = ("pretrained", "robust", "self_calibrated", "fixed_cameras", "stock", "true_poses")
    """What to compare, see `SPLAT_ARMS` in `lora3d_ns.plugin.benchmark_splats`; others there are
    `disturbed` and `disturbed_fixed`, and for moving rooms `moving_masked` and `true_masks`."""
    scenes: tuple[str, ...] = ("nominal-0", "nominal-1", "dark-0", "sparse-0", "tele-0", "tele-1")
    """Which of the six rooms; `moving-0` to `moving-5` are a list of their own."""
    network: str = "rooms"
    """Network by name or path."""
    size: tuple[int, int] = (160, 120)
    """Width and height of the photos."""
    iterations: int | None = None
    """Steps of training; by default the method's own number."""
    test_photos: int = 5
    """Held-out photos per room."""
    seed_offset: int = 0
    """Another number gives other, never used rooms of the same kind."""
    folder: Path | None = None
    """Where photos, scenes, splats and renderings are left; nowhere by default."""
    json: Path | None = None
    """File for the record."""

    def run(self) -> None:
        """Runs the benchmark and prints its table."""
        from lora3d_ns.plugin.benchmark_splats import run_splat_benchmark, splat_table

        record = run_splat_benchmark(
            scenes=self.scenes,
            arms=self.arms,
            network=self.network,
            size=self.size,
            iterations=self.iterations,
            test_photos=self.test_photos,
            seed_offset=self.seed_offset,
            folder=self.folder,
            json_path=self.json,
        )
        print(splat_table(record))
