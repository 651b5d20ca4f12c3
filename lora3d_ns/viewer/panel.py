"""The controls: each hands on what it changes, and shows what the state is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora3d_ns.viewer.cloud import visible
from lora3d_ns.viewer.colours import kinds_of, legend_of
from lora3d_ns.viewer.drawing import shown_cloud
from lora3d_ns.viewer.measure import scale_known
from lora3d_ns.viewer.state import Viewed, ViewState, picked_length
from lora3d_ns.viewer.words import (
    COLOUR_LABELS,
    EVERYTHING_FROM,
    WITHOUT_DETAILS,
    cloud_words,
    colour_words,
    headline,
    measure_words,
    pair_label,
    pairs_words,
    photo_label,
    photo_words,
    plain,
    warnings_of,
)

if TYPE_CHECKING:
    import viser

Change = Callable[[ViewState], ViewState]
"""What a control makes of the state."""

_NO_FILES = Path()
"""Where pictures of Markdown would be looked for; ours are in it."""
_LARGEST_SLIDER = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actions:
    """What the controls can ask for. Numbers of clients are viser's; None is nobody in particular.

    Attributes:
        change: Another state.
        fly: To a photo, or with None to where one began.
        pick: Two points, or with False not any more.
        set_scale: So that the picked points have this distance.
        take_picture: Of what a client sees.
    """

    change: Callable[[Change], None]
    fly: Callable[[int | None, int | None], None]
    pick: Callable[[bool], None]
    set_scale: Callable[[int | None, float], None]
    take_picture: Callable[[int | None], None]


class Panel:
    """All controls of the viewer.

    Args:
        server: viser's.
        viewed: The scene.
        state: How it is looked at in the beginning.
        actions: What the controls ask for.
    """

    def __init__(self, server: "viser.ViserServer", viewed: Viewed, state: ViewState, actions: Actions) -> None:
        from viser import Icon

        self._gui, self._icons = server.gui, Icon
        self._actions = actions
        self._shown: dict[str, object] = {}
        self._headline = self._words()
        warnings = warnings_of(viewed.scene, viewed.details)
        if viewed.details is None:
            self._words(f"*{plain(WITHOUT_DETAILS)}.*")
        self._gui.add_button(
            "Back to the start",
            icon=Icon.HOME,
            color="gray",
            hint="Look at the scene from behind the first photo again.",
        ).on_click(lambda event: actions.fly(event.client_id, None))
        self._gui.add_button(
            "Screenshot", icon=Icon.CAMERA, color="gray", hint="Saves what you see, without these controls, as PNG."
        ).on_click(lambda event: actions.take_picture(event.client_id))
        self._add_cloud(viewed, state)
        self._add_photos(viewed)
        if viewed.pairs:
            self._add_pairs(viewed)
        self._add_measure()
        if warnings:
            with self._gui.add_folder(f"Warnings ({len(warnings)})", expand_by_default=False):
                self._words("\n\n".join(f"{plain(text[:1].upper() + text[1:])}." for text in warnings))

    def show(self, viewed: Viewed, state: ViewState) -> None:
        """Brings all controls and words up to date."""
        cloud, colour = shown_cloud(viewed, state)
        by_pair = state.colour == "pair"
        pair = viewed.pairs[state.pair] if by_pair and viewed.pairs else None
        length = picked_length(viewed, state)
        known = scale_known(viewed.scene, viewed.details)
        self._say(self._headline, headline(viewed.scene, viewed.details, viewed.pairs))
        legend = legend_of(viewed.cloud, colour)
        meaning = colour_words(colour, legend, pair, viewed.scene.names)
        if colour != state.colour:
            meaning = f"{plain(COLOUR_LABELS[state.colour])} was not kept of the scene before learning."
        self._say(self._meaning, meaning)
        self._say(self._count, cloud_words(cloud, int(visible(cloud, state.least_weight).sum()), before=state.before))
        if self._pair is not None:
            self._pair.visible = by_pair
        self._say(
            self._photo_facts,
            "" if state.photo is None else photo_words(viewed.scene, viewed.details, state.photo, viewed.pairs),
        )
        chosen = EVERYTHING_FROM
        if state.photo is not None:
            chosen = photo_label(state.photo, viewed.scene.names[state.photo])
        if self._photo.value != chosen:
            self._photo.value = chosen
        if self._before is not None and self._before.value != state.before:
            self._before.value = state.before
        self._say(self._measured, measure_words(len(state.picks), state.picking, length, known))
        self._pick.visible = not state.picking
        self._stop_picking.visible = state.picking
        self._length.visible = self._set_scale.visible = length is not None

    def _add_cloud(self, viewed: Viewed, state: ViewState) -> None:
        change = self._actions.change
        kinds = kinds_of(viewed.cloud, pairs=bool(viewed.pairs))
        by_label = {COLOUR_LABELS[kind]: kind for kind in kinds}
        pair_numbers = {pair_label(pair): index for index, pair in enumerate(viewed.pairs)}
        most = max(round(viewed.most_weight, 2), 0.01)
        self._pair = self._before = None
        with self._gui.add_folder("Cloud"):
            colour = self._gui.add_dropdown("Colour", tuple(by_label), hint="What the points are coloured by.")
            self._on_value(colour, lambda value: lambda now: dataclasses.replace(now, colour=by_label[value]))
            if pair_numbers:
                self._pair = self._gui.add_dropdown(
                    "Pair", tuple(pair_numbers), visible=False, hint="Bad ones first, then by residual."
                )
                self._on_value(self._pair, lambda value: lambda now: dataclasses.replace(now, pair=pair_numbers[value]))
            self._meaning = self._words()
            weight = self._gui.add_slider(
                "Least weight",
                min=0.0,
                max=most,
                step=0.01,
                initial_value=min(state.least_weight, most),
                hint="Points that weigh less are hidden.",
            )
            self._on_value(weight, lambda value: lambda now: dataclasses.replace(now, least_weight=value))
            self._count = self._words()
            size = self._gui.add_slider("Point size", min=0.1, max=_LARGEST_SLIDER, step=0.1, initial_value=1.0)
            self._on_value(size, lambda value: lambda now: dataclasses.replace(now, point_size=value))
            if viewed.before is not None:
                self._before = self._gui.add_checkbox(
                    "Before learning",
                    False,
                    hint="The scene as the network understood it before it learnt from it, laid over this one.",
                )
                self._on_value(self._before, lambda value: lambda now: with_before(now, before=value))
        self._change = change

    def _add_photos(self, viewed: Viewed) -> None:
        names = viewed.scene.names
        numbers: dict[str, int | None] = {EVERYTHING_FROM: None}
        numbers |= {photo_label(view, name): view for view, name in enumerate(names)}
        with self._gui.add_folder("Photos"):
            self._photo = self._gui.add_dropdown(
                "Fly to", tuple(numbers), hint="Look from where this photo was taken. A click on a photo does the same."
            )

            @self._photo.on_update
            def _(event: Any) -> None:
                # Nobody's: it was set by us.
                if event.client_id is not None:
                    self._actions.fly(event.client_id, numbers[event.target.value])

            self._photo_facts = self._words()
            shown = self._gui.add_checkbox("Show photos", True)
            self._on_value(shown, lambda value: lambda now: dataclasses.replace(now, photos=value))
            named = self._gui.add_checkbox("Names", False)
            self._on_value(named, lambda value: lambda now: dataclasses.replace(now, names=value))
            size = self._gui.add_slider("Size", min=0.2, max=_LARGEST_SLIDER, step=0.1, initial_value=1.0)
            self._on_value(size, lambda value: lambda now: dataclasses.replace(now, photo_size=value))

    def _add_pairs(self, viewed: Viewed) -> None:
        with self._gui.add_folder("Pairs"):
            self._words(pairs_words(viewed.pairs))
            shown = self._gui.add_checkbox("Show pairs", True, hint="Lines between cameras; bad pairs are red.")
            self._on_value(shown, lambda value: lambda now: dataclasses.replace(now, pairs=value))
            bad = self._gui.add_checkbox("Only bad ones", False)
            self._on_value(bad, lambda value: lambda now: dataclasses.replace(now, only_bad=value))

    def _add_measure(self) -> None:
        with self._gui.add_folder("Measure"):
            self._measured = self._words()
            self._pick = self._gui.add_button("Pick two points", icon=self._icons.RULER_MEASURE)
            self._pick.on_click(lambda _: self._actions.pick(True))
            self._stop_picking = self._gui.add_button("Stop picking", icon=self._icons.X, visible=False, color="gray")
            self._stop_picking.on_click(lambda _: self._actions.pick(False))
            self._length = self._gui.add_number(
                "True length",
                1.0,
                min=0.0,
                step=0.001,
                visible=False,
                hint="In the unit that the scene shall have, such as metres.",
            )
            self._set_scale = self._gui.add_button(
                "Set the scale",
                icon=self._icons.CHECK,
                visible=False,
                hint="Gives the whole scene this scale, and writes it to its folder.",
            )
            self._set_scale.on_click(lambda event: self._actions.set_scale(event.client_id, float(self._length.value)))

    def _words(self, content: str = "") -> "viser.GuiMarkdownHandle":
        return self._gui.add_markdown(content, image_root=_NO_FILES)

    def _say(self, handle: "viser.GuiMarkdownHandle", content: str) -> None:
        if handle.content != content:
            handle.content = content

    def _on_value(self, handle: Any, change_of: Callable[[Any], Change]) -> None:
        @handle.on_update
        def _(event: Any) -> None:
            # Nobody's: it was set by us.
            if event.client_id is not None:
                self._actions.change(change_of(event.target.value))


def with_before(state: ViewState, *, before: bool) -> ViewState:
    """The state with the other scene. Nobody stays where a photo lies no more, or keeps its points."""
    return dataclasses.replace(state, before=before, photo=None, picking=False, picks=())
