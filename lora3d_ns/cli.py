"""The `lora3d` command: one dataclass of settings per job, turned into a command line by tyro.

Nothing heavy is imported before a job is chosen, so `lora3d --help` answers at once. Exit codes: 0 the job was done,
2 it was not and one line says what to do, 1 a defect of ours, 130 interrupted.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import subcommand

from lora3d_ns.cli_benchmarks import Benchmark
from lora3d_ns.cli_config import SETTINGS_FILE, read_settings, write_settings
from lora3d_ns.cli_export import Export
from lora3d_ns.cli_look import Report, View
from lora3d_ns.cli_parsing import UsageError, parsed
from lora3d_ns.cli_photos import Calibrate, Reconstruct
from lora3d_ns.errors import Lora3dError
from lora3d_ns.progress import no_progress_bars


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
    _command(Reconstruct, "reconstruct")
    | _command(View, "view")
    | _command(Report, "report")
    | _command(Export, "export")
    | _command(Calibrate, "calibrate")
    | _command(Demo, "demo")
    | _command(Doctor, "doctor")
    | Annotated[Benchmark, subcommand("benchmark", prefix_name=False, description="Measure, and compare with peers.")]
    | _command(Pretrain, "pretrain")
)

REPEATABLE = {"reconstruct": Reconstruct, "calibrate": Calibrate, "export": Export, "demo": Demo, "pretrain": Pretrain}
"""Commands whose runs leave their settings in a file, and are repeated by `--config` with that file."""

_DESCRIPTION = """Photos without poses in, a self-calibrated 3D scene out.

    lora3d reconstruct photos -o scene        then: lora3d view scene

With every command: --quiet (nothing but errors), --verbose (what happens in detail), --config FILE (the settings of a
run, as reconstruct, calibrate, export, demo and pretrain leave them: options on the line go first; alone it repeats the
run). Exit codes: 0 done, 2 not done and one line says why, 1 a defect of lora3d, 130 interrupted."""


@dataclass(frozen=True, kw_only=True)
class _Conduct:
    """What holds for every command.

    Attributes:
        quiet: Say nothing but errors.
        verbose: Say everything, and show where an error came from.
        config: File with settings.
    """

    quiet: bool = False
    verbose: bool = False
    config: Path | None = None


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code.

    Args:
        arguments: Instead of the process' own.
    """
    conduct = _Conduct()
    try:
        conduct, rest = _split(sys.argv[1:] if arguments is None else arguments)
        with _conducted(conduct):
            command, job = _job_of(rest, conduct.config)
            try:
                job.run()
            except KeyboardInterrupt:
                # What was interrupted is gone on with by its settings, too.
                write_settings(command, job)
                raise
            write_settings(command, job)
    except Lora3dError as error:
        if conduct.verbose:
            logging.getLogger("lora3d_ns").debug("where it came from", exc_info=True)
        print(f"lora3d: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lora3d: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read what we print has gone (`| head`); Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if conduct.verbose:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(
            f"lora3d: this is a defect of lora3d ({said}). Run it again with --verbose and report what it says",
            file=sys.stderr,
        )
        sys.exit(1)


def _split(arguments: Sequence[str]) -> tuple[_Conduct, list[str]]:
    """What holds for every command, wherever it stands on the line, and the rest of the line.

    Raises:
        UsageError: Both quiet and verbose, or `--config` without a file.
    """
    quiet = verbose = False
    config: Path | None = None
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--quiet":
            quiet = True
        elif word == "--verbose":
            verbose = True
        elif word == "--config" or word.startswith("--config="):
            file = word.partition("=")[2] if "=" in word else next(words, "")
            if not file:
                raise UsageError("--config names no file", way_out="Name one that `lora3d` left beside a result")
            config = Path(file)
        else:
            rest.append(word)
    if quiet and verbose:
        raise UsageError("--quiet and --verbose at once", way_out="Choose one")
    return _Conduct(quiet=quiet, verbose=verbose, config=config), rest


def _job_of(arguments: list[str], config: Path | None) -> tuple[str, Any]:
    """The command's name and its job."""
    default = None
    if config is not None:
        of_file, default = read_settings(config, REPEATABLE)
        named = next((word for word in arguments if not word.startswith("-")), None)
        if named is None or named not in _NAMES:
            arguments = [of_file, *arguments]
        elif named != of_file:
            raise UsageError(
                f"{config} holds settings of `lora3d {of_file}`, not of `lora3d {named}`",
                way_out=f"Use `lora3d {of_file} --config {config}`",
            )
    job = parsed(Job, arguments, "lora3d", default=default, description=_DESCRIPTION)
    name = next((name for name, kind in REPEATABLE.items() if type(job) is kind), "")
    return name, job


_NAMES = ("reconstruct", "view", "report", "export", "calibrate", "demo", "doctor", "benchmark", "pretrain")


@contextlib.contextmanager
def _conducted(conduct: _Conduct) -> Iterator[None]:
    """Logging, printing and bars as asked for."""
    level = logging.ERROR if conduct.quiet else logging.DEBUG if conduct.verbose else logging.INFO
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lora3d_ns").setLevel(level)
    with contextlib.ExitStack() as stack:
        if conduct.quiet:
            stack.enter_context(no_progress_bars())
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        yield


if __name__ == "__main__":
    main()
