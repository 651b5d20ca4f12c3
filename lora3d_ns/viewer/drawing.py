"""State -> viser's scene: what changed is drawn anew, by name over what was there."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lora3d_ns.viewer.cloud import ViewedCloud, visible
from lora3d_ns.viewer.colours import FIRST_OF_PAIR, SECOND_OF_PAIR, ColourBy, Rgb, colours_by, legend_of, photo_hue
from lora3d_ns.viewer.frames import quaternion_wxyz
from lora3d_ns.viewer.pairs import PairKind, ViewedPair, tubes
from lora3d_ns.viewer.state import Viewed, ViewState, picked_length
from lora3d_ns.viewer.words import number, photo_label

if TYPE_CHECKING:
    import viser

_AROUND_PAIR = 0.3
# viser lights its meshes, which makes them paler.
_PAIR_COLOURS: dict[PairKind, Rgb] = {"good": (105, 130, 160), "thin": (150, 125, 80), "bad": (224, 0, 0)}
_PAIR_RADII: dict[PairKind, float] = {"good": 0.004, "thin": 0.004, "bad": 0.012}
_CHOSEN_PAIR: Rgb = (255, 255, 255)
_PHOTO, _DOUBTFUL_PHOTO, _PICKED = (205, 214, 224), (250, 82, 82), (255, 212, 59)
_PHOTO_SIZES = (0.03, 0.22)
"""Of a camera's drawing, in units of what is shown: viser's `scale`."""
_SHARE_OF_GAP = 0.3
"""The same as a share of the distance between neighbouring cameras: their photos then do not hide each other."""
_PICK_RADIUS, _LINE_RADIUS = 0.05, 0.018
_CLOSING = 0.55
"""viser's `point_size` that closes the gaps, in distances between neighbours."""


class Drawing:
    """What viser shows of a scene.

    Args:
        server: viser's.
        clicked: Called with a client's number and a photo's index when its camera is clicked.
    """

    def __init__(self, server: "viser.ViserServer", clicked: Callable[[int, int], None]) -> None:
        self._server = server
        self._clicked = clicked
        self._nodes: dict[str, list[viser.SceneNodeHandle]] = {}
        self._drawn: dict[str, object] = {}

    def draw(self, viewed: Viewed, state: ViewState) -> None:
        """Draws what is not drawn yet as the state has it."""
        parts = {
            "cloud": (state.before, state.colour, state.pair, state.least_weight, state.point_size),
            "photos": (photos_shown(state), state.before, state.colour, state.pair, state.photo_size),
            "names": (state.before, state.names and photos_shown(state)),
            "pairs": (state.before, pairs_shown(state), state.only_bad, state.colour == "pair", state.pair),
            "picks": (state.picks, float(viewed.shown.scale)),
        }
        draws = {
            "cloud": self._draw_cloud,
            "photos": self._draw_photos,
            "names": self._draw_names,
            "pairs": self._draw_pairs,
            "picks": self._draw_picks,
        }
        with self._server.atomic():
            for part, wanted in parts.items():
                if self._drawn.get(part) != wanted:
                    draws[part](viewed, state)
                    self._drawn[part] = wanted

    def _draw_cloud(self, viewed: Viewed, state: ViewState) -> None:
        cloud, colour = shown_cloud(viewed, state)
        chosen = visible(cloud, state.least_weight)
        # Both clouds in one scale, so that they can be compared.
        views = chosen_views(viewed, state)
        colours = colours_by(cloud, colour, legend=legend_of(viewed.cloud, colour), pair=views)
        self._replace("cloud")
        size = _CLOSING * state.point_size * cloud.spacing * float(viewed.shown.scale)
        parts = {"/cloud": (chosen, size)}
        if colour == "pair" and views is not None:
            # The rest is there for orientation, and must not hide the two.
            of_pair = (cloud.views == views[0]) | (cloud.views == views[1])
            parts = {"/cloud": (chosen & of_pair, size), "/cloud_around": (chosen & ~of_pair, _AROUND_PAIR * size)}
        self._nodes["cloud"] = [
            self._server.scene.add_point_cloud(
                name,
                viewed.shown.apply(cloud.points[kept].double()).float().numpy(),
                colours[kept].numpy(),
                point_size=point_size,
                point_shape="circle",
            )
            for name, (kept, point_size) in parts.items()
            if bool(kept.any())
        ]

    def _draw_photos(self, viewed: Viewed, state: ViewState) -> None:
        if not photos_shown(state):
            # Hidden while the mouse is over it, a photo would come back highlighted for good.
            self._replace("photos")
            return
        poses = shown_poses(viewed, state)
        cameras = viewed.scene.cameras
        details = viewed.details
        size = state.photo_size * usual_photo_size(viewed.T_shown_camera[:, :3, 3])
        doubtful = () if details is None else details.diagnosis.contested_views
        self._nodes["photos"] = []
        for view, (width, height) in enumerate(cameras.sizes):
            K = cameras.K[view]
            if state.before and details is not None and details.learning is not None:
                K = details.learning.before.cameras.K[view]
            colour = _DOUBTFUL_PHOTO if view in doubtful else _PHOTO
            chosen = chosen_views(viewed, state) if state.colour == "pair" else None
            if state.colour == "which_photo":
                colour = photo_hue(view)
            elif chosen is not None and view in chosen:
                colour = FIRST_OF_PAIR if view == chosen[0] else SECOND_OF_PAIR
            handle = self._server.scene.add_camera_frustum(
                f"/photos/{view}",
                fov=2.0 * math.atan(height / 2 / float(K[1, 1])),
                aspect=width / height,
                scale=size,
                color=colour,
                image=None if details is None else details.images[view].numpy(),
                jpeg_quality=88,
                wxyz=quaternion_wxyz(poses[view, :3, :3]),
                position=_triple(poses[view, :3, 3]),
            )
            handle.on_click(lambda event, view=view: self._clicked(event.client_id, view))
            self._nodes["photos"].append(handle)

    def _draw_names(self, viewed: Viewed, state: ViewState) -> None:
        self._replace("names")
        if not (state.names and photos_shown(state)):
            return
        centres = shown_poses(viewed, state)[:, :3, 3]
        self._nodes["names"] = [
            self._server.scene.add_label(f"/names/{view}", photo_label(view, name), position=_triple(centres[view]))
            for view, name in enumerate(viewed.scene.names)
        ]

    def _draw_pairs(self, viewed: Viewed, state: ViewState) -> None:
        self._replace("pairs")
        if not pairs_shown(state):
            return
        centres = shown_poses(viewed, state)[:, :3, 3]
        chosen = viewed.pairs[state.pair] if state.colour == "pair" else None
        shown: dict[PairKind, list[ViewedPair]] = {"good": [], "thin": [], "bad": []}
        for pair in viewed.pairs:
            if pair is not chosen and (pair.kind == "bad" or not state.only_bad):
                shown[pair.kind].append(pair)
        self._nodes["pairs"] = []
        for kind, pairs in shown.items():
            self._add_tubes(f"/pairs/{kind}", centres, pairs, _PAIR_RADII[kind], _PAIR_COLOURS[kind])
        if chosen is not None:
            colour = _PAIR_COLOURS["bad"] if chosen.kind == "bad" else _CHOSEN_PAIR
            self._add_tubes("/pairs/chosen", centres, [chosen], 2 * _PAIR_RADII["good"], colour)

    def _draw_picks(self, viewed: Viewed, state: ViewState) -> None:
        self._replace("picks")
        if not state.picks:
            return
        ends = torch.tensor(state.picks).double()
        cloud, _ = shown_cloud(viewed, state)
        # Large enough to stand out of the points around them.
        radius = max(_PICK_RADIUS, 1.6 * _CLOSING * cloud.spacing * float(viewed.shown.scale))
        self._nodes["picks"] = [
            self._server.scene.add_icosphere(
                f"/picks/{end}", radius=radius, color=_PICKED, position=place, subdivisions=2
            )
            for end, place in enumerate(state.picks)
        ]
        length = picked_length(viewed, state)
        if length is None:
            return
        line = tubes(
            ends, [ViewedPair(views=(0, 1), overlap=0.0, residual=None, kind="good", reasons=())], _LINE_RADIUS
        )
        assert line is not None
        self._nodes["picks"] += [
            self._server.scene.add_mesh_simple(
                "/picks/line", line.vertices.numpy(), line.faces.numpy(), color=_PICKED, flat_shading=True
            ),
            self._server.scene.add_label("/picks/length", number(length), position=_triple(ends.mean(dim=0))),
        ]

    def _add_tubes(self, name: str, centres: Tensor, pairs: list[ViewedPair], radius: float, colour: Rgb) -> None:
        mesh = tubes(centres, pairs, radius)
        if mesh is not None:
            self._nodes["pairs"].append(
                self._server.scene.add_mesh_simple(
                    name, mesh.vertices.numpy(), mesh.faces.numpy(), color=colour, flat_shading=True, side="double"
                )
            )

    def _replace(self, part: str) -> None:
        for handle in self._nodes.pop(part, []):
            handle.remove()


def shown_cloud(viewed: Viewed, state: ViewState) -> tuple[ViewedCloud, ColourBy]:
    """The cloud that is shown, and what it is coloured by: what the scene before learning has not, it is not by."""
    cloud = viewed.before if state.before and viewed.before is not None else viewed.cloud
    lacks = (state.colour == "confidence" and cloud.confidences is None) or (
        state.colour == "residual" and cloud.residual_shares is None
    )
    return cloud, "photo" if lacks else state.colour


def photos_shown(state: ViewState) -> bool:
    """Whether photos are drawn: not for who stands at the place of one, with all the others around."""
    return state.photos and state.photo is None


def pairs_shown(state: ViewState) -> bool:
    """Whether pairs are drawn: they begin where a photo was taken from, too."""
    return state.pairs and state.photo is None


def shown_poses(viewed: Viewed, state: ViewState) -> Tensor:
    """(views, 4, 4): the cameras that are shown."""
    if state.before and viewed.T_shown_before is not None:
        return viewed.T_shown_before
    return viewed.T_shown_camera


def chosen_views(viewed: Viewed, state: ViewState) -> tuple[int, int] | None:
    """The photos of the pair that is chosen; None where there are no pairs."""
    return viewed.pairs[state.pair].views if viewed.pairs else None


def usual_photo_size(centres: Tensor) -> float:
    """viser's `scale` of a camera: so large that neighbours do not hide each other, and neither dots nor walls."""
    least, most = _PHOTO_SIZES
    if len(centres) < 2:
        return most
    apart = torch.cdist(centres.double(), centres.double())
    apart.fill_diagonal_(math.inf)
    return float(np.clip(_SHARE_OF_GAP * float(apart.min(dim=1).values.median()), least, most))


def _triple(place: Tensor) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in place)
    return x, y, z
