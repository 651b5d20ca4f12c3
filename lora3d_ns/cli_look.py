"""The jobs `lora3d view` and `lora3d report`, see `lora3d_ns.cli`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class View:
    """A finished scene in the browser: cloud, cameras, pairs, weights; measure, set the scale. Ends with Ctrl-C."""

    scene: Annotated[Path, Positional, arg(metavar="SCENE")]
    """Folder of a scene, as `lora3d reconstruct` leaves it."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    port: int = 8765
    """Port to listen at."""
    most_points: int = 500_000
    """Of a larger cloud so many are shown."""

    def run(self) -> None:
        """Shows the scene until it is interrupted."""
        from lora3d_ns.viewer.show import ViewerSettings, view_scene

        settings = ViewerSettings(host=self.host, port=self.port, most_points=self.most_points)
        # At once, though standard output may be a pipe: it says where to look.
        view_scene(self.scene, settings, say=partial(print, flush=True))


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished scene on one page of HTML: what came out, what is doubtful, what to shoot next."""

    scene: Annotated[Path, Positional, arg(metavar="SCENE")]
    """Folder of a scene, as `lora3d reconstruct` leaves it."""
    html: Path | None = None
    """File for the page; by default report.html in the scene's folder."""
    json: Path | None = None
    """File for the same facts; by default report.json there."""

    def run(self) -> None:
        """Writes both files and prints where they are."""
        from lora3d_ns.report.write import report_on_scene

        page, facts = report_on_scene(self.scene, html=self.html, json=self.json)
        print(f"Report:   {page}")
        print(f"Facts:    {facts}")
