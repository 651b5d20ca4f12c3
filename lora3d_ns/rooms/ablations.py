"""The questions that LoRA3D leaves open, each as a list of variants of the one default pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora3d_ns.adapter.lora import LoraSettings
from lora3d_ns.errors import SettingsError
from lora3d_ns.reconstruct import ReconstructSettings
from lora3d_ns.rooms.benchmark_scenes import PHOTOS
from lora3d_ns.rooms.learners import Learner

ABLATION_ROOMS = ("nominal-1", "dark-1", "sparse-1", "tele-1")
"""One validation room of each domain: they are on no list that anything is reported for otherwise."""
VALIDATION_OFFSET = 500
"""Seed offset of the rooms on which settings are chosen."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to self-calibrate.

    Attributes:
        name: What the table calls it.
        settings: Of all stages.
        photos: How many photos to calibrate on.
        chosen_from: Photos along the path of which they are taken.
        choice_seed: Which of them, drawn at random; None spreads them evenly.
        learner: What learns.
        layers: Which layers it adapts, see `benchmark_ablations.layers_of`.
    """

    name: str
    settings: ReconstructSettings = ReconstructSettings()  # noqa: RUF009 (frozen)
    photos: int = PHOTOS
    chosen_from: int = PHOTOS
    choice_seed: int | None = None
    learner: Learner = "adapter"
    layers: str = "attention"

    def __post_init__(self) -> None:
        if not 2 <= self.photos <= self.chosen_from:
            raise SettingsError(
                f"{self.photos} photos of {self.chosen_from}", way_out="Choose two or more of those that are there"
            )


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question.

    Attributes:
        question: In words, for the heading of its table.
        variants: What is compared.
    """

    question: str
    variants: tuple[Variant, ...]


def changed(
    *,
    alignment: Mapping[str, Any] | None = None,
    stereo: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    finetune: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    **others: Any,
) -> ReconstructSettings:
    """The default settings with some fields of some stages changed."""
    settings = ReconstructSettings()
    tuned = replace(settings.finetune, **(finetune or {}))
    return replace(
        settings,
        alignment=replace(settings.alignment, **(alignment or {})),
        stereo=replace(settings.stereo, **(stereo or {})),
        labels=replace(settings.labels, **(labels or {})),
        finetune=replace(tuned, lora=replace(tuned.lora, **(lora or {}))),
        **others,
    )


_PAPER_LABELS = {"aimed_coverage": 0.0, "lowest_cutoff": 0.05, "least_coverage": 0.01}
_DEFAULT = Variant(name="default")


def _rank(rank: int) -> Variant:
    return Variant(name=f"rank {rank}", settings=changed(lora={"rank": rank, "alpha": 4.0 * rank}))


def _photos(count: int) -> Variant:
    return Variant(name=f"{count} photos", photos=count, chosen_from=count)


def _cutoff(cutoff: float, weights: str) -> Variant:
    labels = {**_PAPER_LABELS, "weight_cutoff": cutoff, "weights": weights}
    return Variant(name=f"{weights} above {cutoff:g}", settings=changed(labels=labels))


STUDIES: Mapping[str, Study] = {
    "reference": Study(
        question="Where does the gain come from: cameras, depths, or truth?",
        variants=(
            Variant(name="point maps alone", settings=changed(alignment={"matches": "off"})),
            Variant(name="cameras from matches", settings=changed(stereo={"use": "off"})),
            Variant(name="cameras from matches, depths from photos (default)"),
            Variant(name="true depths, our cameras", settings=changed(arm="depth_calibrated")),
            Variant(name="true depths and cameras", settings=changed(arm="gt_finetuned")),
        ),
    ),
    "labels": Study(
        question="Which pixels become labels, at the same number of them (90 % of the pixels)?",
        variants=(
            Variant(name="by the view's weight (default)"),
            Variant(name="by the pair's calibrated weight", settings=changed(labels={"weights": "pair"})),
            Variant(name="by the pair's raw confidence", settings=changed(labels={"weights": "confidence"})),
            Variant(name="by the agreement of the two orders", settings=changed(labels={"weights": "orders"})),
            Variant(name="half of them, by the view's weight", settings=changed(labels={"aimed_coverage": 0.5})),
            Variant(
                name="half of them, by the pair's calibrated weight",
                settings=changed(labels={"aimed_coverage": 0.5, "weights": "pair"}),
            ),
            Variant(
                name="half of them, by raw confidence",
                settings=changed(labels={"aimed_coverage": 0.5, "weights": "confidence"}),
            ),
            Variant(name="all pixels", settings=changed(labels={"aimed_coverage": 1.0})),
            Variant(name="by the view's weight, and what seems to move", settings=changed(labels={"moving": True})),
            Variant(
                name="all pixels, and what seems to move",
                settings=changed(labels={"aimed_coverage": 1.0, "moving": True}),
            ),
        ),
    ),
    "cutoff": Study(
        question="The paper's cut-off, kept where it leaves few labels",
        variants=(
            _DEFAULT,
            *(_cutoff(cutoff, weights) for weights in ("view", "pair") for cutoff in (0.5, 1.0, 1.5, 2.0)),
        ),
    ),
    "mu": Study(
        question="mu of the calibrated weights",
        variants=tuple(Variant(name=f"mu {mu:g}", settings=changed(alignment={"mu": mu})) for mu in (0.02, 0.1, 0.4)),
    ),
    "rank": Study(question="Rank, alpha four times the rank", variants=tuple(_rank(rank) for rank in (4, 8, 16, 32))),
    "alpha": Study(
        question="alpha at rank 16",
        variants=tuple(
            Variant(name=f"alpha {alpha:g}", settings=changed(lora={"alpha": alpha})) for alpha in (16.0, 64.0, 128.0)
        ),
    ),
    "targets": Study(
        question="What is trained",
        variants=(
            Variant(name="attention: queries, keys, values (default)"),
            Variant(name="the same of the decoders only", layers="decoders"),
            Variant(name="qkv only", layers="qkv"),
            Variant(name="attention with output projections", layers="attention_and_outputs"),
            Variant(name="attention and MLPs", layers="attention_and_mlps"),
            Variant(name="norm-preserving", learner="norm_preserving"),
            *(
                Variant(
                    name=f"every weight, rate {rate:g}",
                    learner="all_weights",
                    settings=changed(finetune={"learning_rate": rate}),
                )
                for rate in (1e-4, 3e-4)
            ),
        ),
    ),
    "photos": Study(
        question="How many photos to calibrate on",
        variants=tuple(_photos(count) for count in (3, 5, 8, 10, 15, 20, 30)),
    ),
    "choice": Study(
        question="Which ten photos: three random choices out of twenty",
        variants=tuple(Variant(name=f"choice {seed}", chosen_from=20, choice_seed=seed) for seed in (0, 1, 2)),
    ),
    "seeds": Study(
        question="Noise: the same photos, other random numbers in fine-tuning",
        variants=tuple(Variant(name=f"seed {seed}", settings=changed(finetune={"seed": seed})) for seed in (0, 1, 2)),
    ),
    "epochs": Study(
        question="Epochs",
        variants=tuple(
            Variant(name=f"{epochs} epochs", settings=changed(finetune={"epochs": epochs})) for epochs in (3, 5, 10, 20)
        ),
    ),
    "rounds": Study(
        question="A second round, from what the first adapter made better",
        variants=tuple(Variant(name=f"{rounds} rounds", settings=changed(rounds=rounds)) for rounds in (1, 2)),
    ),
    "triplets": Study(
        question="Pairs that share a photo agree on it (Test3R)",
        variants=tuple(
            Variant(name=f"triplet weight {weight:g}", settings=changed(finetune={"triplet_weight": weight}))
            for weight in (0.0, 0.3, 1.0)
        ),
    ),
    "moving": Study(
        question="What moves, on rooms in which something does (--rooms moving-0 moving-1 moving-2)",
        variants=(
            Variant(name="raw confidence", settings=changed(labels={"weights": "confidence", "moving": True})),
            Variant(name="calibrated weight", settings=changed(labels={"moving": True})),
            Variant(name="without pixels that no static geometry explains (default)"),
            Variant(name="and without them in the alignment", settings=changed(alignment={"mask_moving": True})),
        ),
    ),
    "recipe": Study(
        question="The recipe",
        variants=(
            _DEFAULT,
            Variant(
                name="the paper's: 2 pairs per step, rate 1e-3, alpha 16",
                settings=replace(
                    ReconstructSettings(),
                    finetune=replace(
                        ReconstructSettings().finetune,
                        lora=LoraSettings(alpha=16.0),
                        pairs_per_step=2,
                        learning_rate=1e-3,
                        share_encodings=False,
                    ),
                ),
            ),
        ),
    ),
}
"""All studies by name."""
