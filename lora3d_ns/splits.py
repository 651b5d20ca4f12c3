"""Which photos are held out: seen by no network, no alignment and no training, only by the evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from lora3d_ns.errors import SettingsError

SplitMode = Literal["interval", "fraction", "filename", "all"]

FEWEST_TO_SPLIT = 3
"""With fewer photos none is held out: two are the least that geometry can be had from."""

_HELD_OUT_WORDS = ("eval", "test", "held_out")


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How photos are held out.

    Attributes:
        mode: "interval" holds out every n-th photo, from the middle of the first n on, so that neighbours on both
            sides remain; "fraction" so many that this share remains, evenly spread; "filename" those with `eval`,
            `test` or `held_out` in their names; "all" none.
        interval: n of "interval". From three photos on at least one is held out.
        fraction: Share of photos that remain, of "fraction".
    """

    mode: SplitMode = "interval"
    interval: int = 8
    fraction: float = 0.9

    def __post_init__(self) -> None:
        if self.mode not in ("interval", "fraction", "filename", "all"):
            raise SettingsError(f"split mode {self.mode!r}", way_out="Use interval, fraction, filename or all")
        if self.interval < 2:
            raise SettingsError(f"an interval of {self.interval}", way_out="Use 2 or more; mode all holds out nothing")
        if not 0 < self.fraction < 1:
            raise SettingsError(f"a fraction of {self.fraction}", way_out="Use a share between 0 and 1, such as 0.9")


def held_out_photos(names: Sequence[str], settings: SplitSettings) -> tuple[int, ...]:
    """Indices of the photos that are held out, ascending; none where there are fewer than three.

    The first photo always remains (it is the world's frame), unless its name says otherwise, and at least two photos
    do.

    Raises:
        SettingsError: No name, or all but one, says that its photo is held out.
    """
    count = len(names)
    if settings.mode == "all" or count < FEWEST_TO_SPLIT:
        return ()
    if settings.mode == "filename":
        return _held_out_by_name(names)
    if settings.mode == "interval":
        first = min(settings.interval, count) // 2
        return tuple(range(first, count, settings.interval))[: count - 2]
    wanted = min(max(1, count - round(count * settings.fraction)), count - 2)
    # The middles of so many equal parts of all but the first, rounded down.
    return tuple(1 + ((2 * part + 1) * (count - 1) - 1) // (2 * wanted) for part in range(wanted))


def _held_out_by_name(names: Sequence[str]) -> tuple[int, ...]:
    chosen = tuple(
        index
        for index, name in enumerate(names)
        if any(word in PurePosixPath(name).stem.lower() for word in _HELD_OUT_WORDS)
    )
    if not chosen or len(names) - len(chosen) < 2:
        raise SettingsError(
            f"{len(chosen)} of {len(names)} photos have one of {', '.join(_HELD_OUT_WORDS)} in their names",
            way_out="Name those to be held out so and leave two others, or use another split mode",
        )
    return chosen
