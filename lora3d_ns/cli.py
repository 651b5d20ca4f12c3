"""The `lora3d` command: one dataclass of settings per job, turned into a command line by tyro.

Nothing heavy is imported before a job is chosen, so `lora3d --help` answers at once. Exit codes: 0 the job was done,
2 it was not and one line says what to do, 130 interrupted.
"""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from lora3d_ns.cli_benchmarks import Benchmark
from lora3d_ns.cli_export import Export
from lora3d_ns.errors import Lora3dError

if TYPE_CHECKING:
    from lora3d_ns.commands import Source
    from lora3d_ns.reconstruct import Arm, Calibration, ReconstructSettings


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Photos to a self-calibrated scene and Gaussian splats, with what is bundled: offline and without a GPU."""

    output: Path = Path("outputs/demo")
    """Folder for photos, scene, adapter, splats, pictures and report.json."""
    photos: Path | None = None
    """Your own photos instead of the bundled room."""
    network: str | None = None
    """Network by name or path; by default the bundled one. The official `512_dpt` is the one for photos."""

    splat_steps: int | None = None
    """Steps of training Gaussians; by default the method's own number, 0 makes none."""

    def run(self) -> None:
        """Does the job and prints where the results are."""
        from lora3d_ns.demo import run_demo

        report = run_demo(output=self.output, photos=self.photos, network=self.network, splat_steps=self.splat_steps)
        for picture in report["pictures"]:
            print(f"Picture:  {picture}")
        print(f"Report:   {self.output / 'report.json'}")


@dataclass(frozen=True, kw_only=True)
class _FromPhotos:
    """What `calibrate` and `reconstruct` have in common."""

    photos: Annotated[Path, Positional]
    """Folder of photos; masks beside them are found and respected."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder for the result; what `lora3d` left there before is replaced."""
    network: str = "512_dpt"
    """Network by name or path: `512_dpt`, `512_linear`, `224_linear` (official), `rooms` (bundled, for rooms only)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; `auto` takes CUDA where there is one."""
    known_cameras: Path | None = None
    """What is known already: a COLMAP model, a transforms.json, or a JSON file of ours with intrinsics or poses."""
    every: int = 1
    """Take each n-th photo only (frames of a video)."""
    at_most: int | None = None
    """Take this many photos at most, evenly spread."""
    matches: Literal["auto", "off"] = "auto"
    """Whether 2D correspondences between the photos correct the cameras."""
    epochs: int | None = None
    """Times that every pair is learnt, at most; by default 10."""
    rounds: int = 1
    """How often labels are made and learnt; a second round begins from what the first has made better."""
    seed: int = 0
    """Of everything random."""
    cache: Path | None = None
    """Folder for results of stages, so that interrupted work goes on; by default `.lora3d-cache` beside the output."""
    json: Path | None = None
    """File for the report."""

    def source(self) -> "Source":
        """Photos and network."""
        from lora3d_ns.commands import Source

        return Source(
            photos=self.photos,
            network=self.network,
            device=self.device,
            known_cameras=self.known_cameras,
            every=self.every,
            at_most=self.at_most,
            cache=self.cache,
        )

    def settings(self, arm: "Arm") -> "ReconstructSettings":
        """Settings of all stages."""
        from lora3d_ns.reconstruct import ReconstructSettings

        settings = ReconstructSettings(arm=arm, rounds=self.rounds)
        finetune = replace(settings.finetune, seed=self.seed)
        if self.epochs is not None:
            finetune = replace(finetune, epochs=self.epochs)
        return replace(settings, finetune=finetune, alignment=replace(settings.alignment, matches=self.matches))


@dataclass(frozen=True, kw_only=True)
class Calibrate(_FromPhotos):
    """Photos to a LoRA adapter of the network for this scene, in peft's format. Needs no labels."""

    keep_refused: bool = False
    """Write the adapter even if the gate finds that it makes the scene worse."""

    def run(self) -> None:
        """Does the job and prints what came out."""
        from lora3d_ns.commands import run_calibrate, write_report

        calibration, report = run_calibrate(
            self.source(), self.output, self.settings("self_calibrated"), keep_refused=self.keep_refused
        )
        _print_calibration(calibration)
        print(f"Adapter:  {self.output}")
        if self.json is not None:
            write_report(report, self.json)


@dataclass(frozen=True, kw_only=True)
class Reconstruct(_FromPhotos):
    """Photos to cameras and a weighted point cloud: the whole method, or one arm of it."""

    adapter: Path | None = None
    """Folder of an adapter made before; nothing is learnt then."""
    arm: Literal["self_calibrated", "robust", "pretrained"] = "self_calibrated"
    """The whole method; the network as it is with our alignment; the same with DUSt3R's own objective."""

    def run(self) -> None:
        """Does the job and prints what came out."""
        from lora3d_ns.commands import run_reconstruct, write_report

        made, report = run_reconstruct(self.source(), self.output, self.settings(self.arm), adapter=self.adapter)
        if made.calibration is not None:
            _print_calibration(made.calibration)
        for warning in made.understood.aligned.diagnosis.warnings:
            print(f"Warning:  {warning}")
        print(f"Points:   {len(made.scene.points)}")
        print(f"Seconds:  {', '.join(f'{stage} {spent:.1f}' for stage, spent in made.seconds.items())}")
        print(f"Scene:    {self.output}")
        print(f"Picture:  {self.output / 'scene.png'}")
        if self.json is not None:
            write_report(report, self.json)


def _print_calibration(calibration: "Calibration") -> None:
    coverage, gate = calibration.labels.coverage, calibration.gate
    print(
        f"Labels:   {float(coverage.mean()):.0%} of the pixels, {float(coverage.min()):.0%} in the least covered photo"
    )
    if gate is not None:
        print(f"Gate:     {'accepted' if gate.accepted else 'REFUSED: going on without the adapter'}; {gate.reason}")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Trains the bundled network from scratch on rooms; a training found in the folder is continued.

    What is no option here is a documented field of `lora3d_ns.rooms.pretrain.PretrainSettings`.
    """

    folder: Path = Path("outputs/pretrain")
    """Checkpoints, log, curves, and on a CPU the cached photos."""
    export: Path | None = None
    """Where to write the averaged weights at the end (safetensors, float16)."""
    steps: int = 20_000
    """Length of the whole training."""
    minutes: float | None = None
    """Ends it earlier, after so much active time over all runs."""
    learning_rate: float = 1e-3
    """Of the stable phase."""
    start_from: str | None = None
    """Weights to begin with, by name or path: `rooms` trains the bundled network on."""
    seed: int = 0
    """Of the initial weights."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    threads: int | None = None
    """CPU threads; None for all cores."""
    validate_every: int = 1000
    """Steps between validations."""

    def run(self) -> None:
        """Trains, prints the validation and writes the weights."""
        from lora3d_ns.rooms.pretrain import PretrainSettings, run_pretraining
        from lora3d_ns.rooms.validation import headline

        settings = PretrainSettings(
            folder=self.folder,
            steps=self.steps,
            minutes=self.minutes,
            learning_rate=self.learning_rate,
            start_from=self.start_from,
            seed=self.seed,
            device=self.device,
            validate_every=self.validate_every,
        )
        if self.threads is not None:
            settings = replace(settings, threads=self.threads)
        result = run_pretraining(settings)
        for domain, metrics in result.validation.items():
            print(f"{domain}: {headline(metrics)}")
        if self.export is not None:
            import torch

            from lora3d_ns.network.checkpoints import save_network

            save_network(result.network, self.export, dtype=torch.float16)
            print(f"Weights:  {self.export}")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What is there and what is missing on this machine, each with its fix. Asks nothing of the network.

    Exit code 0: photos to splats can be done here in some way, be it on the CPU; 1: it cannot.
    """

    output: Path = Path("outputs")
    """Where results would go."""
    network: str = "512_dpt"
    """The network for photos, by name or path."""
    thorough: bool = False
    """Also load nerfstudio with all its plugins, which takes as long as an ns-* command takes to start."""
    json: Path | None = None
    """File for the findings."""

    def run(self) -> None:
        """Looks, and prints what was found."""
        from rich.console import Console

        from lora3d_ns.doctor.examine import examine
        from lora3d_ns.doctor.findings import as_table
        from lora3d_ns.doctor.machine import Machine

        findings = examine(Machine(), output=self.output, network=self.network, thorough=self.thorough)
        Console().print(as_table(findings))
        if self.json is not None:
            from lora3d_ns.commands import write_report

            write_report(findings.record(), self.json)
        if not findings.ready:
            sys.exit(1)


_DESCRIPTION = (
    "Photos without poses in, a self-calibrated 3D scene out. Exit codes: 0 done, 2 not done (one line says why)."
)

Job = (
    Annotated[Demo, subcommand("demo", prefix_name=False)]
    | Annotated[Calibrate, subcommand("calibrate", prefix_name=False)]
    | Annotated[Reconstruct, subcommand("reconstruct", prefix_name=False)]
    | Annotated[Export, subcommand("export", prefix_name=False)]
    | Annotated[Pretrain, subcommand("pretrain", prefix_name=False)]
    | Annotated[Doctor, subcommand("doctor", prefix_name=False)]
    | Annotated[Benchmark, subcommand("benchmark", prefix_name=False, description="Measure, and compare with peers.")]
)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code.

    Args:
        arguments: Instead of the process' own.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        tyro.cli(Job, prog="lora3d", description=_DESCRIPTION, args=arguments).run()  # pyright: ignore
    except Lora3dError as error:
        print(f"lora3d: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lora3d: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
