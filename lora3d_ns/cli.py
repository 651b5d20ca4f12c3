"""The `lora3d` command: one dataclass of settings per job, turned into a command line by tyro.

Nothing heavy is imported before a job is chosen, so `lora3d --help` answers at once. Exit codes: 0 the job was done,
2 it was not and one line says what to do, 1 a defect of ours, 130 interrupted.
"""

import contextlib
import logging
import os
import sys
import traceback
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import subcommand

from lora3d_ns import __version__
from lora3d_ns.cli_benchmarks import Benchmark
from lora3d_ns.cli_conduct import EVERYWHERE, logging_from, nothing_printed, reader_has_gone, say, split, told
from lora3d_ns.cli_config import SETTINGS_FILE, read_settings, write_settings
from lora3d_ns.cli_export import Export
from lora3d_ns.cli_look import Report, View
from lora3d_ns.cli_parsing import UsageError, parsed
from lora3d_ns.cli_photos import Calibrate, Reconstruct
from lora3d_ns.errors import Lora3dError, SettingsError


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

    def settings_file(self) -> Path:
        """Where the settings of this run are kept."""
        return self.output / SETTINGS_FILE

    def run(self) -> None:
        """Does the job and prints where the results are."""
        from lora3d_ns.demo import run_demo

        report = run_demo(output=self.output, photos=self.photos, network=self.network, splat_steps=self.splat_steps)
        for picture in report["pictures"]:
            print(f"Picture:  {picture}")
        print(f"Report:   {self.output / 'report.json'}")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Trains the bundled network from scratch on rooms; a training found in the folder is continued."""

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
    json: Path | None = None
    """File for the validation."""

    def settings_file(self) -> Path:
        """Where the settings of this run are kept."""
        return self.folder / SETTINGS_FILE

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
        if self.json is not None:
            from lora3d_ns.commands import write_report

            counts = {"step": result.step, "pairs": result.pairs, "seconds": result.seconds}
            write_report({"version": __version__, **counts, "validation": result.validation}, self.json)
        if self.export is not None:
            import torch

            from lora3d_ns.network.checkpoints import save_network

            save_network(result.network, self.export, dtype=torch.float16)
            print(f"Weights:  {self.export}")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What is there and what is missing on this machine, each with its fix; exit code 1 if nothing can be done here."""

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


def _command(job: Any, name: str) -> Any:
    return Annotated[job, subcommand(name, prefix_name=False)]


Job = (
    _command(Demo, "demo")
    | _command(Doctor, "doctor")
    | _command(Reconstruct, "reconstruct")
    | _command(View, "view")
    | _command(Report, "report")
    | _command(Export, "export")
    | _command(Calibrate, "calibrate")
    | Annotated[Benchmark, subcommand("benchmark", prefix_name=False, description="Measure, and compare with peers.")]
    | _command(Pretrain, "pretrain")
)
"""Everything, in the order in which a person needs it."""

REPEATABLE = {"reconstruct": Reconstruct, "calibrate": Calibrate, "export": Export, "demo": Demo, "pretrain": Pretrain}
"""Commands whose runs leave their settings in a file, and are repeated by `--config` with that file."""


def _names(jobs: Any) -> tuple[str, ...]:
    return tuple(typing.get_args(job)[1].name for job in typing.get_args(jobs))


_NAMES, _BENCHMARKS = _names(Job), _names(Benchmark)

_DESCRIPTION = f"""Photos without poses in, a self-calibrated 3D scene out.

Begin with: lora3d demo

Then with your own: lora3d reconstruct photos -o scene, and lora3d view scene

{EVERYWHERE}
Exit codes: 0 done, 2 not done and one line says why, 1 a defect of lora3d, 130 interrupted."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line, and exits with its code if the job was not done.

    Args:
        arguments: Instead of the process' own.
    """
    words = sys.argv[1:] if arguments is None else arguments
    verbose, quiet = (f"--{name}" in words for name in ("verbose", "quiet"))
    with contextlib.suppress(AttributeError):
        # A file's name that the terminal cannot show is no reason to fail after hours.
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    with logging_from(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO):
        try:
            code = _code_of(words, verbose=verbose)
        finally:
            # It shows here, and not at the very end in Python's own words.
            gone = reader_has_gone()
    if gone or code != 0:
        sys.exit(141 if gone else code)


def _code_of(words: Sequence[str], *, verbose: bool) -> int:
    """Does the job, or says why not; the exit code."""
    try:
        conduct, rest = split(words)
        command, job = _job_of(rest, conduct.config)
        _require_file_for_record(job)
        with nothing_printed() if conduct.quiet else contextlib.nullcontext():
            try:
                job.run()
            except KeyboardInterrupt:
                # What was interrupted is gone on with by its settings, too.
                with contextlib.suppress(Lora3dError):
                    _keep_settings(command, job)
                raise
            _keep_settings(command, job)
        return 0
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:  # noqa: BLE001 (nothing ends in a traceback that was not asked for)
        if isinstance(error, BrokenPipeError) and not sys.stdout.isatty():
            return 141
        if verbose:
            traceback.print_exc()
        said = told(error)
        if said is not None:
            say(said)
            return 2
        say(
            f"this is a defect of lora3d ({type(error).__name__}: {error}). Report it to the project's issue tracker, "
            "with what the same command says under --verbose"
        )
        return 1


def _job_of(words: list[str], config: Path | None) -> tuple[str, Any]:
    """The job, and the command's name if its settings are kept."""
    default = None
    named = words[0] if words and words[0] in _NAMES else None
    if config is not None:
        of_file, default = read_settings(config, REPEATABLE)
        if named is None:
            named, words = of_file, [of_file, *words]
        elif named != of_file:
            raise UsageError(
                f"{config} holds settings of `lora3d {of_file}`, not of `lora3d {named}`",
                way_out=f"Use `lora3d {of_file} --config {config}`",
            )
    explained_by = "lora3d" if named is None else f"lora3d {named}"
    if named == "benchmark" and words[1:2] and words[1] in _BENCHMARKS:
        explained_by += f" {words[1]}"
    try:
        job = parsed(Job, words, "lora3d", default=default, description=_DESCRIPTION, explained_by=explained_by)
    except SystemExit:
        if named is not None and not {"-h", "--help"}.isdisjoint(words):
            print(EVERYWHERE.strip())
        raise
    return next((name for name, kind in REPEATABLE.items() if type(job) is kind), ""), job


def _require_file_for_record(job: Any) -> None:
    """Refuses a `--json` that cannot be written, before any long work."""
    file: Path | None = getattr(getattr(job, "result", job), "json", None)
    if file is None:
        return
    parent = next((parent for parent in file.absolute().parents if parent.exists()), None)
    if file.is_dir() or parent is None or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SettingsError("no file can be written here", way_out="Name a file for --json", path=file)


def _keep_settings(command: str, job: Any) -> None:
    if command:
        print(f"Settings: {write_settings(command, job)}")


if __name__ == "__main__":
    main()
