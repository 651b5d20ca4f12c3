"""The job `lora3d benchmark gpu`, see `lora3d_ns.gpu_check`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from lora3d_ns.gpu_check.parts import PARTS


@dataclass(frozen=True, kw_only=True)
class BenchmarkGpu:
    """Proves and measures the CUDA path, part by part, each in a process of its own with a limit; one table, and JSON.

    Exit code 0 if every part worked and met its goals, 1 if something failed or missed its goal, 2 if nothing could be
    run.
    """

    parts: tuple[str, ...] = tuple(PARTS)
    """Which parts: `machine` (ceilings of the GPU), `build` (gsplat's CUDA code), `tests` (those marked `gpu`),
    `rasterizer`, `network`, `adapter` (parity), `inference`, `alignment`, `finetune`, `calibration` (full-size
    network), `job` (`ns-train` to export), `splats` (speed against stock splatfacto)."""
    device: str = "cuda"
    """`cuda`; or `cpu` together with `--tiny`."""
    tiny: bool = False
    """Everything so small that a CPU is through in minutes: tries the check itself, and says nothing of speed."""
    peer: bool = True
    """Whether to run the peer mini-dust3r too, where it is installed."""
    limit_s: float = 480.0
    """Seconds that a part has; what it found until then is kept."""
    seed: int = 0
    """Of weights, images and rooms."""
    folder: Path | None = None
    """Folder that keeps what the parts wrote, with a log of each."""
    json: Path | None = None
    """File for the record, written again after every part."""

    def run(self) -> None:
        """Runs the parts, prints their table, and exits with the code."""
        from lora3d_ns.gpu_check.rows import table
        from lora3d_ns.gpu_check.runner import GpuCheckSettings, exit_code, run_gpu_check

        settings = GpuCheckSettings(
            parts=self.parts,
            device=self.device,
            tiny=self.tiny,
            peer=self.peer,
            limit_s=self.limit_s,
            seed=self.seed,
            folder=self.folder,
            json_file=self.json,
        )
        record = run_gpu_check(settings)
        print(table(record["rows"]))
        for line in (record["not_run"], *(f"failed: {name}" for name in record["failed"])):
            if line:
                print(line)
        code = exit_code(record)
        if code:
            sys.exit(code)
