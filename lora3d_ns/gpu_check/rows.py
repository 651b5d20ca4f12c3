"""What a part of the check found: one row of the table each, with its goal."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A mark that a figure is held against."""

    limit: float
    """The mark itself, in the figure's unit."""
    sense: Literal["at most", "at least"] = "at most"
    """On which side of it the figure has to be."""

    def met(self, value: float) -> bool:
        """Whether the figure is where it has to be; a NaN never is."""
        return value <= self.limit if self.sense == "at most" else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.sense == 'at most' else '>='} {self.limit:.4g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure, or a word on why there is none."""

    name: str
    """What was measured, in the reader's words: `10 photos, all pairs`."""
    value: float | None = None
    """The figure; None where there is none."""
    unit: str = ""
    """`s`, `GiB`, `TFLOP/s`, `x`, ..."""
    goal: Goal | None = None
    """What it should be."""
    peer: float | None = None
    """The same figure of the peer, in the same run."""
    note: str = ""
    """The peer's name, what was left out, why there is no figure."""
    failed: bool = False
    """Whether this row reports something that should have worked and did not."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal. Without a figure it is not met."""
        if self.failed:
            return False
        if self.goal is None:
            return None
        return self.value is not None and self.goal.met(self.value)

    def record(self, part: str) -> dict[str, Any]:
        """The row as it stands in the JSON."""
        kept = {key: value for key, value in asdict(self).items() if key != "goal"}
        return {"part": part, **kept, "goal": None if self.goal is None else str(self.goal), "met": self.met}


def row_of_json(line: str) -> Row:
    """The row that `json_of_row` wrote."""
    read: dict[str, Any] = json.loads(line)
    goal = read.pop("goal")
    return Row(**read, goal=None if goal is None else Goal(**goal))


def json_of_row(row: Row) -> str:
    """One line of JSON, without a line break."""
    return json.dumps(asdict(row))


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """The rows of all parts as a table in Markdown."""
    lines = ["| part | what | figure | goal | met | peer | |", "|---|---|---:|---:|---|---:|---|"]
    for row in records:
        figure = "-" if row["value"] is None else f"{row['value']:.4g} {row['unit']}".rstrip()
        met = {None: "", True: "yes", False: "**no**"}[row["met"]]
        peer = "" if row["peer"] is None else f"{row['peer']:.4g}"
        note = str(row["note"]).replace("|", "/").replace("\n", " ")
        cells = (row["part"], row["name"], figure, row["goal"] or "", met, peer, note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
