"""What was found, and what follows from it."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

GIB = 2**30
EVERYTHING = "everything"
RECONSTRUCT = "cameras and a cloud from photos: `lora3d reconstruct`"
SPLATS = "Gaussian splats: `ns-train lora3d-splat`"

Status = Literal["ok", "limited", "missing"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: Of the thing.
        status: `limited`: something works less well, or will be fetched or built first.
        detail: What was found, with numbers and versions.
        fix: What to do; empty if nothing.
        needed_for: What does not work, or not as well, without it.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    needed_for: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a job can be done on this machine.

    Attributes:
        job: In words.
        ready: Whether it can be done in some way.
        how: In which way; or what stands against it.
    """

    job: str
    ready: bool
    how: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All findings, and what follows from them."""

    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def ready(self) -> bool:
        """Whether the main job, photos to splats, can be done here in some way."""
        return all(verdict.ready for verdict in self.verdicts if verdict.job in (RECONSTRUCT, SPLATS))

    def __getitem__(self, name: str) -> Finding:
        """The finding of this name."""
        return next(finding for finding in self.findings if finding.name == name)

    def record(self) -> dict[str, object]:
        """The same in plain values."""
        return {"ready": self.ready, **dataclasses.asdict(self)}


def as_table(findings: Findings) -> "RenderableType":
    """Findings and verdicts for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "limited": "yellow", "missing": "bold red"}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("what", no_wrap=True)
    table.add_column("")
    table.add_column("found, and what to do", overflow="fold")
    for finding in findings.findings:
        words = Text(finding.detail)
        if finding.status != "ok":
            words.append(f"\nfor: {finding.needed_for}", style="dim")
        if finding.fix:
            words.append(f"\n{finding.fix}", style="bold")
        table.add_row(Text(finding.name), Text(finding.status, style=colours[finding.status]), words)
    ready = Table(box=box.SIMPLE_HEAD)
    ready.add_column("ready here?", no_wrap=True)
    ready.add_column("for")
    ready.add_column("how")
    for verdict in findings.verdicts:
        mark = Text("yes", style="green") if verdict.ready else Text("no", style="bold red")
        ready.add_row(mark, Text(verdict.job), Text(verdict.how))
    return Group(table, ready)
