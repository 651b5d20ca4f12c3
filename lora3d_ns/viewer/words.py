"""What the viewer says. Names of photos may hold anything: `plain` takes away all meaning that Markdown gives them."""

import base64
import math
import os
import platform
from collections.abc import Mapping, Sequence
from io import BytesIO

from jaxtyping import UInt8
from torch import Tensor

from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Scene
from lora3d_ns.viewer.cloud import ViewedCloud
from lora3d_ns.viewer.colours import FIRST_OF_PAIR, SECOND_OF_PAIR, ColourBy, Legend, Rgb, ramp_png
from lora3d_ns.viewer.measure import scale_known
from lora3d_ns.viewer.pairs import ViewedPair

COLOUR_LABELS: Mapping[ColourBy, str] = {
    "photo": "Photo",
    "which_photo": "Which photo",
    "weight": "Weight",
    "confidence": "Raw confidence",
    "residual": "Residual",
    "pair": "Edge",
}
EVERYTHING_FROM = "(none)"
"""In place of a photo's name."""
_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_MEANINGS: Mapping[ColourBy, str] = {
    "photo": "",
    "which_photo": "Each photo's points in its own hue.",
    "weight": "How far a point can be believed: it says so itself, and the pairs agree.",
    "confidence": "What the network said of itself, before anybody checked.",
    "residual": "How far the pairs put a point off, in percent of the scene's depth.",
    "pair": "",
}
_PHOTO_WIDTH_PX = 240
WITHOUT_DETAILS = (
    "This scene was saved without its details: it is shown by photo and by weight only, without pairs, confidence, "
    "residuals, pictures and what was before. Reconstruct it again to have them"
)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: whatever is not a letter, digit or space becomes a character reference.

    viser evaluates Markdown as a program (MDX), so a brace or a bracket in a photo's name would be run.
    """
    return "".join(
        character
        if character.isascii() and (character.isalnum() or character == " ")
        else f"&#{ord(character) if character.isprintable() else 0xFFFD};"
        for character in text
    )


def readable(text: str) -> str:
    """Text for where Markdown is not spoken; what no file or browser could write becomes a replacement character."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def addresses(host: str, port: int) -> tuple[str, ...]:
    """Where to look, one line each; the last one for whoever is logged in from elsewhere."""
    local = host in _LOCAL_NAMES
    machine = platform.node() or host
    name = "localhost" if local else machine if host in ("0.0.0.0", "::", "") else host
    lines = [f"Viewer:   http://{f'[{name}]' if ':' in name else name}:{port}"]
    if not local:
        lines.append(f"          Everybody who reaches port {port} of this machine can look, and set the scale.")
    if "SSH_CONNECTION" in os.environ and (local or host in ("0.0.0.0", "::", "")):
        user = os.environ.get("USER", "user")
        lines.append(
            f"          From your own machine: ssh -L {port}:localhost:{port} {user}@{machine}, "
            f"then open http://localhost:{port}"
        )
    return tuple(lines)


def headline(scene: Scene, details: SceneDetails | None, pairs: Sequence[ViewedPair]) -> str:
    """The scene in a few words, as Markdown."""
    count = len(scene.names)
    photos = "1 photo" if count == 1 else f"{count} photos"
    parts = [f"**{photos}** · {thousands(len(scene.points))} points"]
    bad = sum(pair.kind == "bad" for pair in pairs)
    if pairs:
        parts.append(f"{len(pairs)} pairs, {'none bad' if not bad else f'**{bad} bad**'}")
    parts.append("scale known" if scale_known(scene, details) else "scale arbitrary")
    return " · ".join(parts)


def warnings_of(scene: Scene, details: SceneDetails | None) -> tuple[str, ...]:
    """All that was warned of."""
    if details is not None:
        return details.diagnosis.warnings
    said = scene.provenance.get("warnings")
    return tuple(str(text) for text in said) if isinstance(said, (list, tuple)) else ()


def cloud_words(cloud: ViewedCloud, shown: int, *, before: bool) -> str:
    """How many points there are to see, as Markdown."""
    words = f"{thousands(shown)} of {thousands(len(cloud))} points"
    if cloud.pixels > len(cloud):
        words += f" (drawn from {thousands(cloud.pixels)})"
    return f"{words}, **before** learning" if before else words


def colour_words(by: ColourBy, legend: Legend | None, pair: ViewedPair | None, names: Sequence[str]) -> str:
    """What the colours mean, as Markdown with a picture of the ramp."""
    if by == "pair" and pair is not None:
        first, second = (f"{view + 1} {plain(names[view])}" for view in pair.views)
        swatches = [_swatch(colour) for colour in (FIRST_OF_PAIR, SECOND_OF_PAIR)]
        return f"{swatches[0]}\n\n{first}\n\n{swatches[1]}\n\n{second}\n\n{pair_words(pair)}"
    if legend is None:
        return _MEANINGS[by]
    picture = _picture(ramp_png(legend.ramp))
    return f"{picture}\n\n{plain(legend.low)} → {plain(legend.high)}. {_MEANINGS[by]}"


def pair_words(pair: ViewedPair) -> str:
    """What speaks for a pair and what against it, as Markdown."""
    off = "nothing in it counted" if pair.residual is None else f"{100 * pair.residual:.1f} % off"
    words = f"They share {100 * pair.overlap:.0f} %, {plain(off)}."
    if pair.kind == "bad":
        words += " **Bad:** it was left out." if pair.residual is None else " **Bad:** it contradicts the others."
    elif pair.kind == "thin":
        words += " Too little to tie them."
    return " ".join([words, *(f"{plain(reason[:1].upper() + reason[1:])}." for reason in dict.fromkeys(pair.reasons))])


def pair_label(pair: ViewedPair) -> str:
    """A pair in a list: numbers and how far off it is."""
    off = "left out" if pair.residual is None else f"{100 * pair.residual:.1f} %"
    return f"{pair.views[0] + 1}-{pair.views[1] + 1}: {off}{' !' if pair.kind == 'bad' else ''}"


def photo_label(view: int, name: str) -> str:
    """A photo in a list or beside its camera."""
    return f"{view + 1}  {readable(name)}"


def photo_words(scene: Scene, details: SceneDetails | None, view: int, pairs: Sequence[ViewedPair]) -> str:
    """One photo, as Markdown: its name, its lens, how much of it is in the cloud and what it hangs on."""
    width, height = scene.cameras.sizes[view]
    focal = float(scene.cameras.K[view, 0, 0])
    millimetres = focal * math.hypot(36.0, 24.0) / math.hypot(width, height)
    lines = [
        f"**{plain(scene.names[view])}**",
        f"{width} x {height} px, f = {focal:.0f} px (like {millimetres:.0f} mm)",
    ]
    points = int((scene.point_views == view).sum())
    if details is None:
        lines.append(f"{thousands(points)} points")
    else:
        weight = details.weights[view]
        mask = details.masks[view]
        counted = (weight if mask is None else weight[mask]).float()
        median = f"median weight {float(counted.median()):.2f}" if counted.numel() else "masked altogether"
        lines.append(f"{thousands(points)} points, {median}")
        lines.insert(0, _photo(details.images[view]))
    own = [pair for pair in pairs if view in pair.views]
    if own:
        best = max(own, key=lambda pair: (pair.kind != "bad", pair.overlap))
        partner = best.views[0] if best.views[1] == view else best.views[1]
        lines.append(f"shares most with {partner + 1} ({100 * best.overlap:.0f} %)")
        bad = sum(pair.kind == "bad" for pair in own)
        if bad:
            lines.append(f"**{bad} of its {len(own)} pairs are bad**")
    return "\n\n".join(lines)


def pairs_words(pairs: Sequence[ViewedPair]) -> str:
    """The pair graph in a sentence, as Markdown."""
    bad = [pair for pair in pairs if pair.kind == "bad"]
    thin = sum(pair.kind == "thin" for pair in pairs)
    if not bad:
        words = f"All {len(pairs)} pairs agree." if len(pairs) > 1 else "The pair agrees."
        return words + (f" {thin} share too little to tie their photos." if thin else "")
    named = ", ".join(f"{pair.views[0] + 1}-{pair.views[1] + 1}" for pair in bad[:8])
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    return f"**Bad:** {named}{more} (of {len(pairs)})."


def measure_words(picked: int, picking: bool, length: float | None, known: bool) -> str:
    """What to do next to measure, and what was measured; as Markdown."""
    if length is not None:
        unit = "in the scene's unit" if known else "in a unit that nobody knows yet"
        return f"**{number(length)}** {unit}."
    if picking:
        return f"Click on the {'first' if picked == 0 else 'second'} point in the cloud."
    return "Measure between two points. If you know their true distance, the scene gets its scale from it."


def number(value: float) -> str:
    """Three digits that count, without powers of ten where they can be done without."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if 1e-3 <= abs(value) < 1e6 else f"{value:.2e}"


def thousands(count: int) -> str:
    """A count with narrow spaces between thousands."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _swatch(colour: Rgb) -> str:
    return _picture(ramp_png((colour, colour)))


def _picture(png: bytes) -> str:
    return f"![](data:image/png;base64,{base64.b64encode(png).decode()})"


def _photo(pixels: UInt8[Tensor, "height width 3"]) -> str:
    """A photo at the width of the controls."""
    from PIL import Image

    photo = Image.fromarray(pixels.numpy())
    file = BytesIO()
    photo.resize(
        (_PHOTO_WIDTH_PX, max(1, round(_PHOTO_WIDTH_PX * photo.height / photo.width))), Image.Resampling.BICUBIC
    ).save(file, "JPEG", quality=85)
    return f"![](data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()})"
