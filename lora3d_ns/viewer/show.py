"""`lora3d view`: a scene in the browser."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.scene_io.scenes import load_details, load_scene
from lora3d_ns.viewer.live import LiveViewer
from lora3d_ns.viewer.words import WITHOUT_DETAILS, addresses


@dataclass(frozen=True, kw_only=True)
class ViewerSettings:
    """Where the viewer listens, and how much it shows.

    Attributes:
        host: Address to listen at; 127.0.0.1 is for this machine only, 0.0.0.0 for everybody in its network.
        port: To listen at.
        most_points: Of a larger cloud so many points are shown, chosen at random.
        open_for_s: How long; None until interrupted.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    most_points: int = 500_000
    open_for_s: float | None = None

    def __post_init__(self) -> None:
        if not self.host or any(character.isspace() for character in self.host):
            raise SettingsError(f"{self.host!r} is no address", way_out="Use 127.0.0.1, this machine only")
        if not 1 <= self.port <= 65535:
            raise SettingsError(f"there is no port {self.port}", way_out="Choose one from 1024 to 65535")
        if self.most_points < 1:
            raise SettingsError(f"a cloud of {self.most_points} points", way_out="Show at least one")
        if self.open_for_s is not None and not 0 < self.open_for_s < math.inf:
            raise SettingsError(
                f"a viewer that is open for {self.open_for_s:g} s", way_out="Give a time, or none at all: until Ctrl-C"
            )


def view_scene(folder: Path, settings: ViewerSettings, *, say: Callable[[str], None]) -> None:
    """Shows a scene in the browser, and waits until it is interrupted or the time is over.

    A scene that was saved without details is shown by photo and by weight only.

    Args:
        folder: Of the scene. A scale that is set in the viewer is written there.
        settings: Where to listen, how much to show.
        say: Told where to look, line by line.

    Raises:
        DamagedFileError: The scene or its details are damaged or of another format version.
        StorageError: There is no scene, or it cannot be read.
        InvalidDataError: The details are of another scene.
        SettingsError: The port is in use, or the host is none of this machine's.
        MissingPackageError: There is no viser.
    """
    scene, details = load_scene(folder), load_details(folder)
    if details is not None and details.names != scene.names:
        raise InvalidDataError(
            f"details and scene in {folder} are of different photos", way_out="Reconstruct the scene again"
        )
    try:
        with LiveViewer(
            folder, scene, details, host=settings.host, port=settings.port, most_points=settings.most_points
        ) as viewer:
            if details is None:
                say(f"{WITHOUT_DETAILS}.")
            for line in addresses(settings.host, settings.port):
                say(line)
            say("Ctrl-C ends it." if settings.open_for_s is None else f"It ends after {settings.open_for_s:g} s.")
            viewer.run(settings.open_for_s)
    except KeyboardInterrupt:
        # The usual end.
        return
