"""The viewer while it runs: what the controls ask for is queued, and done in one thread, in turn."""

import contextlib
import dataclasses
import io
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lora3d_ns.errors import Lora3dError
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Scene
from lora3d_ns.viewer.cloud import visible
from lora3d_ns.viewer.drawing import Drawing, shown_cloud, shown_poses
from lora3d_ns.viewer.frames import SHOWN_UNIT, Look, first_look, flight, photo_look
from lora3d_ns.viewer.measure import Measured, point_on_ray, stamp_of, write_scale
from lora3d_ns.viewer.panel import Actions, Change, Panel
from lora3d_ns.viewer.server import start_server
from lora3d_ns.viewer.state import Viewed, ViewState, picked_length, viewed_scene
from lora3d_ns.viewer.words import number, readable

if TYPE_CHECKING:
    import viser

logger = logging.getLogger(__name__)

_FLIGHT_STEPS, _FLIGHT_S = 28, 0.8
_NEW_S, _SAME_DIRECTION = 3.0, 1e-2
_AT_THE_PLACE = 0.02
"""How near one is to a photo's place that one looks from, in typical depths."""
_PICTURE_HEIGHT_PX = 1080
_PICTURE_WAIT_S = 20.0
_GROUND = (20, 20, 22)
_NOTICE_MS = 9000
_BRAND = (34, 139, 230)


class LiveViewer:
    """A scene in the browser, from its making to `close`.

    Args:
        folder: Of the scene; a scale that is set is written there.
        scene: The scene.
        details: What lies beside it.
        host, port: Where to listen.
        most_points: Of a cloud.

    Raises:
        SettingsError: The port is in use, or the host is none of this machine's.
        MissingPackageError: There is no viser.
    """

    def __init__(
        self, folder: Path, scene: Scene, details: SceneDetails | None, *, host: str, port: int, most_points: int
    ) -> None:
        self._folder, self._most_points = folder, most_points
        self._stamp = stamp_of(folder)
        self.viewed: Viewed = viewed_scene(scene, details, most_points=most_points)
        self.state = ViewState(least_weight=self.viewed.cutoff)
        self._tasks: queue.Queue[Callable[[], object]] = queue.Queue()
        self._closed = False
        self._picking = self._arrived = False
        self._server = start_server(host, port, label=readable(folder.resolve().name) or "lora3d")
        self._server.gui.configure_theme(
            control_layout="collapsible", dark_mode=True, show_logo=False, control_width="medium", brand_color=_BRAND
        )
        self._drawing = Drawing(self._server, lambda client, view: self._later(lambda: self._fly(client, view)))
        self._panel = Panel(self._server, self.viewed, self.state, self._actions())
        self._show()
        self._server.on_client_connect(self._welcome)

    def __enter__(self) -> "LiveViewer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, seconds: float | None = None) -> None:
        """Does what the controls ask for, until `close` is called or the time is over."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self._closed:
            left = 3600.0 if end is None else end - time.monotonic()
            if left <= 0:
                return
            try:
                task = self._tasks.get(timeout=left)
            except queue.Empty:
                continue
            task()
            # A slider that is pulled asks faster than a large cloud is drawn: only where it stands now counts.
            while not self._tasks.empty():
                self._tasks.get()()
            if not self._closed:
                self._show()

    def close(self) -> None:
        """Ends the server, and `run` in another thread."""
        if not self._closed:
            self._closed = True
            self._tasks.put(lambda: None)
            self._server.stop()
            # The server's own thread sleeps until something is sent: the port would stay taken as long.
            self._server.flush()

    # --- what is asked for ----------------------------------------------------------------------------

    def _actions(self) -> Actions:
        return Actions(
            change=lambda change: self._later(lambda: self._change(change)),
            fly=lambda client, view: self._later(lambda: self._fly(client, view)),
            pick=lambda wanted: self._later(lambda: self._pick(wanted)),
            set_scale=lambda client, length: self._later(lambda: self._set_scale(client, length)),
            take_picture=lambda client: self._later(lambda: self._take_picture(client)),
        )

    def _later(self, task: Callable[[], object]) -> None:
        self._tasks.put(task)

    def _show(self) -> None:
        self._drawing.draw(self.viewed, self.state)
        self._panel.show(self.viewed, self.state)
        if self.state.picking != self._picking:
            self._picking = self.state.picking
            if self._picking:
                self._server.scene.on_pointer_event("click")(
                    lambda event: self._later(lambda: self._picked(event.ray_origin, event.ray_direction))
                )
            else:
                self._server.scene.remove_pointer_callback()

    def _change(self, change: Change) -> None:
        self.state = change(self.state)

    def _pick(self, wanted: bool) -> None:
        self.state = dataclasses.replace(
            self.state,
            picking=wanted,
            picks=() if wanted else self.state.picks,
            before=self.state.before and not wanted,
        )

    def _picked(self, origin: Any, direction: Any) -> None:
        if not self.state.picking or origin is None or direction is None:
            return
        cloud, _ = shown_cloud(self.viewed, self.state)
        points = self.viewed.shown.apply(cloud.points[visible(cloud, self.state.least_weight)].double())
        hit = point_on_ray(points, torch.tensor(origin).double(), torch.tensor(direction).double())
        if hit is None:
            return
        x, y, z = (float(value) for value in points[hit])
        picks = (*self.state.picks, (x, y, z))
        self.state = dataclasses.replace(self.state, picks=picks, picking=len(picks) < 2)

    def _set_scale(self, client: int | None, length: float) -> None:
        shown = picked_length(self.viewed, self.state)
        if shown is None:
            return
        try:
            scene, details, self._stamp = write_scale(
                self._folder,
                self.viewed.scene,
                self.viewed.details,
                Measured(length=length, shown_length=shown),
                stamp=self._stamp,
            )
        except Lora3dError as error:
            self._notify(client, "The scale was not set", str(error), colour="red")
            return
        self.viewed = viewed_scene(scene, details, most_points=self._most_points)
        self._notify(
            client,
            "The scale is set",
            f"The two points are {number(length)} apart now, and the scene in {self._folder} has been written so.",
            colour="teal",
        )

    # --- where one looks from ---------------------------------------------------------------------------

    def _first_look(self, client: "viser.ClientHandle") -> Look:
        cloud = self.viewed.cloud
        points = self.viewed.shown.apply(cloud.points[visible(cloud, self.viewed.cutoff)].double())
        return first_look(self.viewed.T_shown_camera, points, client.camera.aspect or 1.0)

    def _welcome(self, client: "viser.ClientHandle") -> None:
        """The first look, and again when the window changes its shape: it does so when it is told of the controls."""
        begun, shape = time.monotonic(), [client.camera.aspect]
        self._later(lambda: self._look(client, self._first_look(client)))

        @client.camera.on_update
        def _(camera: Any) -> None:
            position, aspect = _tensor(camera.position), float(camera.aspect)
            self._later(lambda: self._stands(position))
            if abs(aspect - shape[0]) > 1e-3:
                shape[0] = aspect
                self._later(lambda: self._look_again(client, new=time.monotonic() - begun < _NEW_S))

    def _stands(self, position: Tensor) -> None:
        """Whoever was at a photo's place and has gone sees photos and pairs again."""
        view = self.state.photo
        if view is None:
            return
        there = (
            float((position - shown_poses(self.viewed, self.state)[view, :3, 3]).norm()) < _AT_THE_PLACE * SHOWN_UNIT
        )
        if there:
            self._arrived = True
        elif self._arrived:
            self.state = dataclasses.replace(self.state, photo=None)

    def _look_again(self, client: "viser.ClientHandle", *, new: bool) -> None:
        """The first look once more, unless somebody has gone elsewhere by now."""
        look = self._first_look(client)
        directions = [
            torch.nn.functional.normalize(eye, dim=0) for eye in (_tensor(client.camera.position), look.position)
        ]
        if self.state.photo is None and (new or float((directions[0] - directions[1]).norm()) < _SAME_DIRECTION):
            self._look(client, look)

    def _fly(self, number_of_client: int | None, view: int | None) -> None:
        client = self._client(number_of_client)
        if client is None or self.state.picking:
            return
        self.state = dataclasses.replace(self.state, photo=None)
        end = self._first_look(client) if view is None else self._photo_look(view, client.camera.aspect)
        camera = client.camera
        start = Look(
            position=_tensor(camera.position),
            target=_tensor(camera.look_at),
            up=_tensor(camera.up_direction),
            fov_rad=float(camera.fov),
        )
        for look in flight(start, end, _FLIGHT_STEPS):
            self._look(client, look)
            time.sleep(_FLIGHT_S / _FLIGHT_STEPS)
        # What the browser has said until now is of the way.
        self._arrived = False
        self.state = dataclasses.replace(self.state, photo=view)

    def _photo_look(self, view: int, aspect: float) -> Look:
        cameras = self.viewed.scene.cameras
        return photo_look(
            shown_poses(self.viewed, self.state)[view], cameras.K[view], cameras.sizes[view], aspect or 1.0
        )

    def _look(self, client: "viser.ClientHandle", look: Look) -> None:
        with client.atomic():
            client.camera.up_direction = look.up.numpy()
            client.camera.position = look.position.numpy()
            client.camera.look_at = look.target.numpy()
            client.camera.fov = look.fov_rad
        # It may be gone by now.
        with contextlib.suppress(KeyError):
            client.flush()

    # --- pictures and words ------------------------------------------------------------------------------

    def _take_picture(self, number_of_client: int | None) -> None:
        client = self._client(number_of_client)
        if client is not None:
            # A browser that was closed in between never answers: that must stop nobody from anything.
            threading.Thread(target=self._send_picture, args=(client,), daemon=True).start()

    def _send_picture(self, client: "viser.ClientHandle") -> None:
        width = max(1, round(_PICTURE_HEIGHT_PX * (client.camera.aspect or 1.0)))
        pixels = client.camera.get_render(_PICTURE_HEIGHT_PX, width, transport_format="png")
        client.send_file_download(f"{readable(self._folder.resolve().name) or 'scene'}.png", picture_png(pixels))

    def _notify(self, number_of_client: int | None, title: str, body: str, *, colour: Any) -> None:
        client = self._client(number_of_client)
        if client is not None:
            client.add_notification(title, readable(body), auto_close=_NOTICE_MS, color=colour)

    def _client(self, number_of_client: int | None) -> "viser.ClientHandle | None":
        return None if number_of_client is None else self._server.get_clients().get(number_of_client)


def picture_png(pixels: np.ndarray) -> bytes:
    """A rendering of viser's, which is transparent where nothing is, as PNG on the viewer's ground."""
    from PIL import Image

    rendered = Image.fromarray(pixels)
    if rendered.mode == "RGBA":
        ground = Image.new("RGBA", rendered.size, (*_GROUND, 255))
        rendered = Image.alpha_composite(ground, rendered)
    file = io.BytesIO()
    rendered.convert("RGB").save(file, "PNG")
    return file.getvalue()


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))
