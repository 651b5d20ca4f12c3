"""The jobs `lora3d calibrate` and `lora3d reconstruct`, see `lora3d_ns.cli`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

if TYPE_CHECKING:
    from lora3d_ns.commands import Source
    from lora3d_ns.reconstruct import Arm, Calibration, ReconstructSettings


@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """Which photos, and what is known of them."""

    every: int = 1
    """Take each n-th photo only (frames of a video)."""
    at_most: int | None = None
    """Take this many photos at most, evenly spread."""
    known_cameras: Path | None = None
    """What is known already: a COLMAP model, a transforms.json, or a JSON file of ours with intrinsics or poses."""
    only_listed: bool = False
    """Take the photos that these list, and no others."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What looks at them."""

    network: str = "512_dpt"
    """Network by name or path: `512_dpt`, `512_linear`, `224_linear` (official), `rooms` (bundled, for rooms only)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; `auto` takes CUDA where there is one."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How the scene is made."""

    matches: Literal["auto", "off"] = "auto"
    """Whether 2D correspondences between the photos correct the cameras."""
    epochs: int | None = None
    """Times that every pair is learnt, at most; by default 10."""
    rounds: int = 1
    """How often labels are made and learnt; a second round goes on with what the first has made better."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(MethodOptions):
    """How the adapter is made."""

    keep_refused: bool = False
    """Write the adapter even if the gate finds that it makes the scene worse."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(MethodOptions):
    """How the scene is made."""

    arm: Literal["self_calibrated", "robust", "pretrained"] = "self_calibrated"
    """The whole method; the network as it is with our alignment; the same with DUSt3R's own objective."""
    adapter: Path | None = None
    """Folder of an adapter made before; nothing is learnt then."""


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What is kept beside the result."""

    cache: Path | None = None
    """Folder for results of stages, so that interrupted work goes on; by default `.lora3d-cache` beside the output."""
    json: Path | None = None
    """File for the report."""


@dataclass(frozen=True, kw_only=True)
class _FromPhotos:
    """What `calibrate` and `reconstruct` have in common."""

    photos: Annotated[Path, Positional, arg(metavar="PHOTOS")]
    """Folder of photos; masks beside them are found and respected."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder for the result; what `lora3d` left there before is replaced."""
    photo: OmitArgPrefixes[PhotoOptions] = field(default_factory=PhotoOptions)
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    method: OmitArgPrefixes[MethodOptions] = field(default_factory=MethodOptions)
    result: OmitArgPrefixes[ResultOptions] = field(default_factory=ResultOptions)

    def _source(self) -> "Source":
        """Photos and network."""
        from lora3d_ns.commands import Source

        return Source(
            photos=self.photos,
            network=self.network.network,
            device=self.network.device,
            known_cameras=self.photo.known_cameras,
            only_listed=self.photo.only_listed,
            every=self.photo.every,
            at_most=self.photo.at_most,
            cache=self.result.cache,
        )

    def _settings(self, arm: "Arm") -> "ReconstructSettings":
        """Settings of all stages."""
        from lora3d_ns.reconstruct import ReconstructSettings

        method = self.method
        settings = ReconstructSettings(arm=arm, rounds=method.rounds)
        finetune = replace(settings.finetune, seed=method.seed)
        if method.epochs is not None:
            finetune = replace(finetune, epochs=method.epochs)
        return replace(settings, finetune=finetune, alignment=replace(settings.alignment, matches=method.matches))

    def _write(self, report: dict[str, object]) -> None:
        from lora3d_ns.commands import write_report

        if self.result.json is not None:
            write_report(report, self.result.json)


@dataclass(frozen=True, kw_only=True)
class Calibrate(_FromPhotos):
    """Photos to a LoRA adapter of the network for this scene, in peft's format. Needs no labels."""

    method: OmitArgPrefixes[CalibrationOptions] = field(default_factory=CalibrationOptions)

    def run(self) -> None:
        """Does the job and prints what came out."""
        from lora3d_ns.commands import run_calibrate

        calibration, report = run_calibrate(
            self._source(), self.output, self._settings("self_calibrated"), keep_refused=self.method.keep_refused
        )
        _print_calibration(calibration)
        print(f"Adapter:  {self.output}")
        self._write(report)


@dataclass(frozen=True, kw_only=True)
class Reconstruct(_FromPhotos):
    """Photos to cameras and a weighted point cloud: the whole method, or one arm of it."""

    method: OmitArgPrefixes[ReconstructionOptions] = field(default_factory=ReconstructionOptions)

    def run(self) -> None:
        """Does the job and prints what came out."""
        from lora3d_ns.commands import run_reconstruct

        made, report = run_reconstruct(
            self._source(), self.output, self._settings(self.method.arm), adapter=self.method.adapter
        )
        if made.calibration is not None:
            _print_calibration(made.calibration)
        for warning in made.understood.aligned.diagnosis.warnings:
            print(f"Warning:  {warning}")
        print(f"Points:   {len(made.scene.points)}")
        print(f"Seconds:  {', '.join(f'{stage} {spent:.1f}' for stage, spent in made.seconds.items())}")
        print(f"Scene:    {self.output}")
        print(f"Picture:  {self.output / 'scene.png'}")
        print(f"Look:     lora3d view {self.output}, or lora3d report {self.output}")
        self._write(report)


def _print_calibration(calibration: "Calibration") -> None:
    coverage, gate = calibration.labels.coverage, calibration.gate
    print(
        f"Labels:   {float(coverage.mean()):.0%} of the pixels, {float(coverage.min()):.0%} in the least covered photo"
    )
    if gate is not None:
        left = "without the adapter" if calibration.adapter is None else "with the round before"
        print(f"Gate:     {'accepted' if gate.accepted else f'REFUSED: going on {left}'}; {gate.reason}")
