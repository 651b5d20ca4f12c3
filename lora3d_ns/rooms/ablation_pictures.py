"""The studies as pictures: how the error goes from the network's word to the labels and on, and with more photos."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora3d_ns.errors import InvalidDataError

_STEPS = (
    ("prediction_error", "predictions\n(calibration photos)"),
    ("label_error", "labels"),
    ("point_error_before", "test photos\nbefore"),
    ("point_error", "test photos\nafter"),
)


def draw_studies(record: Mapping[str, object], folder: Path) -> list[Path]:
    """Writes `reference.png` and `photos.png` of a record of `run_ablations`, as far as it has these studies.

    Returns:
        The files.

    Raises:
        InvalidDataError: The record has neither study.
    """
    studies = record["studies"]
    if not isinstance(studies, Mapping) or not {"reference", "photos"} & set(studies):
        raise InvalidDataError(
            "the record has no study with a picture", way_out="Run the studies `reference` or `photos`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if "reference" in studies:
        drawn.append(_draw_reference(studies["reference"], folder / "reference.png"))
    if "photos" in studies:
        drawn.append(_draw_scaling(studies["photos"], folder / "photos.png"))
    return drawn


def _draw_reference(variants: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for name, entry in variants.items():
        values = [entry[key]["mean"] for key, _ in _STEPS]
        axis.plot(range(len(_STEPS)), [float("nan") if value is None else value for value in values], "o-", label=name)
    axis.set_xticks(range(len(_STEPS)), [label for _, label in _STEPS])
    axis.set_ylabel("mean point error, m")
    axis.set_ylim(bottom=0.0)
    axis.set_title("An adapter learns what it is shown")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    return path


def _draw_scaling(variants: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    from matplotlib.figure import Figure

    counts = [int(name.split()[0]) for name in variants]
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    axis, cost = figure.subplots(1, 2)
    for key, label in (("point_error_before", "before"), ("point_error", "after"), ("label_error", "labels")):
        means = [entry[key]["mean"] for entry in variants.values()]
        axis.plot(counts, [float("nan") if mean is None else mean for mean in means], "o-", label=label)
    axis.set_ylabel("mean point error, m")
    axis.set_ylim(bottom=0.0)
    axis.set_title("Error of photos not seen")
    axis.legend(fontsize=8)
    seconds = [entry["seconds"]["mean"] for entry in variants.values()]
    cost.plot(counts, [float("nan") if value is None else value for value in seconds], "o-", color="0.3")
    cost.set_ylabel("seconds of self-calibration")
    cost.set_ylim(bottom=0.0)
    cost.set_title("Cost")
    for one in (axis, cost):
        one.set_xlabel("photos to calibrate on")
    figure.savefig(path, dpi=90)
    return path
