"""Rows of results as summaries and as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from lora3d_ns.errors import InvalidDataError


def mean_and_median(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and median of the values that are there; None where there is none."""
    present = [value for value in values if value is not None]
    if not present:
        return {"mean": None, "median": None}
    return {"mean": fmean(present), "median": median(present)}


def count_changes(before: Sequence[float], after: Sequence[float]) -> tuple[int, int]:
    """How many values became smaller (improved) and how many larger (worse), in pairs.

    Raises:
        InvalidDataError: The lists differ in length.
    """
    if len(before) != len(after):
        raise InvalidDataError(
            f"{len(before)} values before, {len(after)} after", way_out="Compare the same scenes in the same order"
        )
    pairs = list(zip(before, after, strict=True))
    return sum(new < old for old, new in pairs), sum(new > old for old, new in pairs)


def bootstrap_interval(differences: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Within what the mean of paired differences lies: percentiles of 10,000 bootstrap samples.

    Args:
        differences: One per scene.
        confidence: Share of the samples within the interval.
        seed: Of the samples.

    Raises:
        InvalidDataError: There are fewer than two differences.

    Differences that are all equal leave nothing to draw: both ends are their value.
    """
    from scipy.stats import bootstrap

    if len(differences) < 2:
        raise InvalidDataError(f"{len(differences)} differences", way_out="Compare two scenes or more")
    if min(differences) == max(differences):
        return differences[0], differences[0]
    found = bootstrap(
        (list(differences),),
        fmean,
        vectorized=False,
        n_resamples=10_000,
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return float(found.low), float(found.high)


def markdown_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """A Markdown table; floats with four digits, None as a dash, missing keys as empty cells."""

    def cell(value: object) -> str:
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)
