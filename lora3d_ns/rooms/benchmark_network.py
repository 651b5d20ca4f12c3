"""`lora3d benchmark network`: what the bundled network understands of rooms it has never seen, by domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.errors import SettingsError
from lora3d_ns.network.checkpoints import BUNDLED_NETWORK, load_network
from lora3d_ns.progress import progress_bar
from lora3d_ns.rooms.domains import domain_by_name
from lora3d_ns.rooms.validation import VALIDATION_SEED, sample_validation_pairs, validate

_CONSTANT_SEED = 7_600_001


@dataclass(frozen=True, kw_only=True)
class NetworkBenchmarkSettings:
    """What to validate, and on what.

    Attributes:
        network: `rooms`, or the path of another network's weights.
        domains: Names of room domains.
        pairs: Unseen pairs of each domain.
        longest_step: Of ten photos along a path, how far apart the two of a pair may be (9: any two).
        seed: Names the rooms; another one gives other rooms of the same kind.
        device: Where to run.
        json_file: Where to write the record, if anywhere.
        show_progress: Whether to draw a bar.
    """

    network: str | Path = BUNDLED_NETWORK
    domains: Sequence[str] = ("nominal", "dark", "sparse", "tele", "clutter", "moving")
    pairs: int = 200
    longest_step: int = 3
    seed: int = VALIDATION_SEED
    device: str = "cpu"
    json_file: Path | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        for name in self.domains:
            domain_by_name(name)
        if not self.domains or self.pairs < 1:
            raise SettingsError("there is nothing to validate on", way_out="Give at least one domain and one pair")
        if self.seed == _CONSTANT_SEED:
            raise SettingsError(
                f"seed {self.seed} names the rooms that the constant baseline is made of", way_out="Use another seed"
            )


def run_network_benchmark(settings: NetworkBenchmarkSettings) -> dict[str, object]:
    """Validation of a network by domain, with its baselines.

    Returns:
        The machine's record (`command`, `version`, `device`, `threads`, `seed`), `network`, `image_size_px`, and under
        `validation` for each domain what `lora3d_ns.rooms.validation.validate` returns: `rotation_deg_median`,
        `translation_deg_median`, `point_error_median`, `confidence_rank_correlation`, the first three also under
        `constant` and `single_view`, and beside them figures of the pairs themselves.

    Raises:
        CheckpointError: The network cannot be loaded.
    """
    device = torch.device(settings.device)
    network = load_network(settings.network, device=device)
    size = network.config.image_size
    constant_from = sample_validation_pairs(
        "nominal",
        settings.pairs,
        image_size_px=size,
        seed=_CONSTANT_SEED,
        longest_step=settings.longest_step,
        device=device,
    ).to("cpu")
    validation: dict[str, object] = {}
    with progress_bar("validating", len(settings.domains), shown=settings.show_progress) as advance:
        for name in settings.domains:
            pairs = sample_validation_pairs(
                name,
                settings.pairs,
                image_size_px=size,
                seed=settings.seed,
                longest_step=settings.longest_step,
                device=device,
            ).to("cpu")
            validation[name] = validate(network, pairs, constant_from=constant_from)
            advance(1)
    record = {
        **machine_record(command="lora3d benchmark network", device=device, seed=settings.seed),
        "network": str(settings.network),
        "image_size_px": size,
        "longest_step": settings.longest_step,
        "validation": validation,
    }
    write_record(record, settings.json_file)
    return record


def validation_table(record: dict[str, object]) -> str:
    """The record's validation as a Markdown table."""
    header = (
        "| domain | answer | rotation, deg | translation, deg | points / depth | rank correlation |\n"
        "|---|---|---:|---:|---:|---:|\n"
    )
    lines = []
    validation = record["validation"]
    assert isinstance(validation, dict)
    for domain, metrics in validation.items():
        for answer, values in (
            ("network", metrics),
            ("single view", metrics["single_view"]),
            ("constant", metrics["constant"]),
        ):
            correlation = values.get("confidence_rank_correlation")
            lines.append(
                f"| {domain} | {answer} | {values['rotation_deg_median']:.1f} | "
                f"{values['translation_deg_median']:.1f} | {values['point_error_median']:.1%} | "
                f"{'' if correlation is None else format(correlation, '.2f')} |\n"
            )
    return header + "".join(lines)
