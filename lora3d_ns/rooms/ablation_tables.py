"""The figures of the studies as summaries and as tables."""

from collections.abc import Mapping, Sequence

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.evaluation.metrics import gap_closure
from lora3d_ns.evaluation.tables import count_changes, markdown_table, mean_and_median
from lora3d_ns.rooms.ablations import STUDIES

CHOSEN_BY_GATE = "whichever of these the gate's measures like best"
"""What `chosen_by_gate` calls its variant."""

_SUMMARIZED = (
    "prediction_error",
    "label_error",
    "point_error_before",
    "point_error",
    "little_overlap_before",
    "little_overlap",
    "much_overlap_before",
    "much_overlap",
    "elsewhere_before",
    "elsewhere",
    "own_adapter",
    "ate",
    "moving_labelled",
    "static_labelled",
    "moving_in_cloud",
    "static_in_cloud",
    "coverage",
    "seconds",
)


def summarize_ablations(rows: Sequence[Mapping[str, object]]) -> dict[str, dict[str, dict[str, object]]]:
    """`studies.{study}.{variant}`: mean and median of every figure, rooms better and worse on the test photos.

    `gap_closure` is of the mean errors, against the variant that learnt the truth where the study has it; None if the
    truth was no help.
    """
    studies: dict[str, dict[str, dict[str, object]]] = {}
    for study in dict.fromkeys(str(row["study"]) for row in rows):
        studies[study] = {}
        for variant in dict.fromkeys(str(row["variant"]) for row in rows if row["study"] == study):
            some = [row for row in rows if (row["study"], row["variant"]) == (study, variant)]
            entry: dict[str, object] = {"rooms": len(some)}
            for name in _SUMMARIZED:
                entry[name] = mean_and_median([_number(row.get(name)) for row in some])
            before, after = ([_required(row[key]) for row in some] for key in ("point_error_before", "point_error"))
            entry["improved"], entry["worse"] = count_changes(before, after)
            entry["accepted"] = sum(bool(row.get("accepted")) for row in some)
            entry["too_few_labels"] = sum(bool(row.get("too_few_labels")) for row in some)
            entry["parameters"] = max(int(str(row.get("parameters") or 0)) for row in some)
            studies[study][variant] = entry
    truth = studies.get("reference", {}).get("true depths and cameras")
    if truth is not None:
        for entry in studies["reference"].values():
            before_m, after_m = _mean_of(entry, "point_error_before"), _mean_of(entry, "point_error")
            bound_m = _mean_of(truth, "point_error")
            entry["gap_closure"] = gap_closure(before_m, after_m, bound_m) if before_m > bound_m else None
    return studies


def chosen_by_gate(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Rows of one more variant: in every room the variant that the gate's measures like best, as early stopping would.

    The gate looks at pairs held out from fine-tuning: their distance from the labels, and the error of their matches
    (the disagreement of the two orders where there are none), each as a ratio after / before. The least product wins.

    Args:
        rows: Of one study; variants without these ratios are left out.
    """
    chosen: list[dict[str, object]] = []
    for scene in dict.fromkeys(str(row["scene"]) for row in rows):
        measured = []
        for row in rows:
            label = _number(row.get("gate_label_error"))
            other = _number(row.get("gate_match_error")) or _number(row.get("gate_order_error"))
            if row["scene"] == scene and label is not None and other is not None:
                measured.append((label * other, str(row["variant"]), row))
        if measured:
            _, name, best = min(measured, key=lambda entry: entry[:2])
            chosen.append({**best, "variant": CHOSEN_BY_GATE, "chosen": name})
    return chosen


def _mean_of(entry: Mapping[str, object], name: str) -> float:
    figures = entry[name]
    assert isinstance(figures, Mapping)
    return _required(figures["mean"])


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def _required(value: object) -> float:
    number = _number(value)
    if number is None:
        raise InvalidDataError("a row has no point error", way_out="Give rows of `run_ablations`")
    return number


def ablations_markdown(record: Mapping[str, object]) -> str:
    """One table for each study: means over the rooms, in metres."""
    studies = record["studies"]
    if not isinstance(studies, Mapping):
        raise InvalidDataError("the record has no studies", way_out="Give a record of `run_ablations`")
    parts = []
    for study, by_variant in studies.items():
        question = STUDIES[study].question if study in STUDIES else "One adapter for all rooms but the last"
        shown = [
            ("ATE", "ate"),
            ("predictions", "prediction_error"),
            ("labels", "label_error"),
            ("test photos before", "point_error_before"),
            ("after", "point_error"),
            ("with an adapter of its own", "own_adapter"),
            ("little overlap before", "little_overlap_before"),
            ("little overlap after", "little_overlap"),
            ("another room before", "elsewhere_before"),
            ("another room after", "elsewhere"),
        ]
        if any(entry["moving_labelled"]["mean"] is not None for entry in by_variant.values()):
            shown += [
                ("moving pixels labelled", "moving_labelled"),
                ("static pixels labelled", "static_labelled"),
                ("moving pixels in the cloud", "moving_in_cloud"),
                ("static pixels in the cloud", "static_in_cloud"),
            ]
        kept = [
            (title, name)
            for title, name in shown
            if any(entry[name]["mean"] is not None for entry in by_variant.values())
        ]
        lines = []
        for variant, entry in by_variant.items():
            line: dict[str, object] = {"variant": variant}
            for title, name in kept:
                mean = entry[name]["mean"]
                line[title] = "-" if mean is None else f"{mean:.3f}"
            line["better / worse"] = f"{entry['improved']} / {entry['worse']}"
            line["parameters"] = entry["parameters"]
            if "gap_closure" in entry:
                closed = entry["gap_closure"]
                line["gap closure"] = "-" if closed is None else f"{closed:.0%}"
            if entry["too_few_labels"]:
                line["variant"] = f"{variant} (too few labels in {entry['too_few_labels']})"
            lines.append(line)
        columns = list(dict.fromkeys(key for line in lines for key in line))
        parts.append(f"**{question}** (`{study}`)\n\n{markdown_table(lines, columns)}")
    return "\n\n".join(parts)
