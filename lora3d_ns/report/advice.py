"""What to shoot next, as far as the scene itself shows what it lacks. Nothing is said where nothing is lacking."""

from collections.abc import Callable, Iterator, Sequence

import networkx as nx

from lora3d_ns.report.coverage import WHOLE_REGIONS
from lora3d_ns.report.facts import Advice, Motion, PairFacts, PhotoFacts

WEAK_OVERLAP = 0.3
"""A photo that shares less than this with any other is weakly connected."""
_THIN_SHARE = 0.1
_LEAST_LABELLED = 0.3
_MOST_MOVING = 0.35
"""Up to a quarter of photos of still rooms fits no still scene, by the noise of a small network's predictions."""
_MOST_FOCAL_SPREAD_PERCENT = 10.0
_DARK = 0.15
"""Mean sRGB value below which a photo is dark: black is 0, middle grey 0.5."""
_MOST_NAMED = 4
_MOST_LINKS = 3
"""Pairs and photos that all else hangs on are told one by one up to this number."""


def what_to_shoot_next(
    photos: Sequence[PhotoFacts], pairs: Sequence[PairFacts], motion: Motion | None
) -> tuple[Advice, ...]:
    """What would help the scene most, most important first.

    Args:
        photos: All of them, numbered from 1 on.
        pairs: Those that the network looked at; without any nothing is said of connections.
        motion: Of the cameras; None where it is not known.
    """
    if len(photos) == 1:
        return (_one_alone(photos[0]), *_of_single_photos(photos))
    found: list[Advice] = []
    connected = list(photos)
    if pairs:
        graph = good_graph(len(photos), pairs)
        groups = connected_groups(graph)
        found += _apart(photos, pairs, groups)
        if motion is not None and motion.near_static:
            found.append(_static(motion))
        # What lies outside the largest group was told of already.
        told = {number for group in groups[1:] for number in group}
        connected = [photo for photo in photos if photo.number not in told]
        found += _weak(photos, pairs, told)
        if len(photos) > 2:
            found += _summed_up(list(_held_by_one(photos, graph, groups[0], told)))
    elif motion is not None and motion.near_static:
        found.append(_static(motion))
    found += [*_thin(connected), *_of_single_photos(photos)]
    if len(photos) == 2 and not found:
        found.append(
            Advice(
                kind="two_photos",
                urgency="helpful",
                photos=tuple(photo.name for photo in photos),
                text=f"Take a third photo from beside {photos[0].name} and {photos[1].name}, of the same things: "
                "with two alone, no pair can check another.",
            )
        )
    return tuple(found)


def nothing_lacking(photos: Sequence[PhotoFacts]) -> str:
    """Why there is no advice, in a sentence."""
    second = [photo.partners[1].overlap for photo in photos if len(photo.partners) > 1]
    if len(photos) > 2 and len(second) == len(photos):
        return (
            f"Nothing is lacking: every photo shares at least {100 * min(second):.0f} % of what it shows "
            "with two others, and no part that hangs on one photo alone is weak."
        )
    return "Nothing is lacking that the scene itself could show."


def good_graph(photo_count: int, pairs: Sequence[PairFacts]) -> nx.Graph:
    """The photos' numbers, joined by good pairs."""
    graph = nx.Graph()
    graph.add_nodes_from(range(1, photo_count + 1))
    graph.add_edges_from(pair.numbers for pair in pairs if pair.state == "good")
    return graph


def connected_groups(graph: nx.Graph) -> tuple[tuple[int, ...], ...]:
    """Numbers that hang together, the largest group first, then by the first number."""
    groups = [tuple(sorted(group)) for group in nx.connected_components(graph)]
    return tuple(sorted(groups, key=lambda group: (-len(group), group)))


def listed(names: Sequence[str], *, most: int = _MOST_NAMED) -> str:
    """Names as a person would list them, the rest as a number."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


# --- connections ----------------------------------------------------------------------------------


def _apart(
    photos: Sequence[PhotoFacts], pairs: Sequence[PairFacts], groups: Sequence[Sequence[int]]
) -> Iterator[Advice]:
    """Groups that no good pair joins to the largest."""
    main = set(groups[0])
    for group in groups[1:]:
        across = [pair for pair in pairs if len(main & set(pair.numbers)) == 1 and set(pair.numbers) & set(group)]
        names = [photos[number - 1].name for number in group]
        verb = "hangs" if len(group) == 1 else "hang"
        if across:
            best = max(across, key=lambda pair: pair.overlap)
            own, other = best.names if best.numbers[0] in group else best.names[::-1]
            shared = f"the most that one of them shares is {_percent(best.overlap)}, {own} with {other}"
            if len(group) == 1:
                shared = f"it shares {_percent(best.overlap)} with {other}"
            if best.overlap >= WEAK_OVERLAP:
                shared += ", but the two contradict each other"
            between, named = f"{own} to {other}", (*names, other)
        else:
            shared, between, named = "no pair across was looked at", f"{names[0]} to the others", tuple(names)
        yield Advice(
            kind="not_connected",
            urgency="needed",
            photos=named,
            text=f"Take two or three photos on the way from {between}, each showing about two thirds of the one "
            f"before, or leave out {listed(names)} if {'it shows' if len(group) == 1 else 'they show'} something "
            f"else: {'it' if len(group) == 1 else 'they'} {verb} together with none of the others ({shared}).",
        )


def _weak(photos: Sequence[PhotoFacts], pairs: Sequence[PairFacts], told: set[int]) -> Iterator[Advice]:
    """Photos that share little with any other, those that share least first; they are `told` afterwards."""
    weak = [photo for photo in photos if photo.number not in told and photo.partners]
    weak = sorted((photo for photo in weak if photo.partners[0].overlap < WEAK_OVERLAP), key=_best_overlap)
    for photo in weak:
        if photo.number in told:
            continue
        best = photo.partners[0]
        told.add(photo.number)
        other = photos[best.number - 1]
        mutual = other.partners and other.partners[0].number == photo.number
        if mutual:
            told.add(other.number)
        more = "neither shares more with any other" if mutual else f"{photo.name} shares no more with any other"
        if len(pairs) == 1:
            more = "there is no other pair"
        yield Advice(
            kind="weakly_connected",
            urgency="helpful",
            photos=(photo.name, best.name),
            text=f"Take one more photo between {photo.name} and {best.name}: they share {_percent(best.overlap)} of "
            f"what they show, and {more}.",
        )


def _held_by_one(
    photos: Sequence[PhotoFacts], graph: nx.Graph, main: Sequence[int], told: set[int]
) -> Iterator[Advice]:
    """Where the largest group would fall apart without one pair or one photo."""
    inner = graph.subgraph(main)
    cut = set(nx.articulation_points(inner))
    explained = []
    for first, second in sorted(tuple(sorted(edge)) for edge in nx.bridges(inner)):
        if first not in cut or second not in cut:
            continue
        explained.append((first, second))
        names = (photos[first - 1].name, photos[second - 1].name)
        yield Advice(
            kind="held_by_one_pair",
            urgency="helpful",
            photos=names,
            text=f"Take one more photo beside {names[0]} and {names[1]} that shows what both show: "
            "this pair alone holds two parts of the scene together.",
        )
    # What lies across a pair that was told of is not told of again.
    rest = inner.copy()
    rest.remove_edges_from(explained)
    for number in sorted(nx.articulation_points(rest)):
        without = rest.subgraph(nx.node_connected_component(rest, number) - {number})
        held = sorted(n for group in connected_groups(without)[1:] for n in group)
        if set(held) <= told:
            continue
        name, names = photos[number - 1].name, [photos[n - 1].name for n in held]
        verb = "hangs" if len(held) == 1 else "hang"
        yield Advice(
            kind="held_by_one_photo",
            urgency="helpful",
            photos=(name, *names),
            text=f"Take one more photo beside {name} that also shows what {listed(names)} "
            f"{'shows' if len(held) == 1 else 'show'}: {listed(names)} {verb} on {name} alone.",
        )


def _summed_up(held: Sequence[Advice]) -> Sequence[Advice]:
    """One sentence for a chain of photos, which hangs on each of its links."""
    if len(held) <= _MOST_LINKS:
        return held
    names = tuple(dict.fromkeys(name for one in held for name in one.photos))
    return (
        _helpful(
            "chain",
            names,
            f"Take more photos in between and from a second row, so that each shares much with three others: the scene "
            f"hangs together like a chain, and would fall apart without any of {len(held)} of its pairs and photos.",
        ),
    )


# --- single photos ----------------------------------------------------------------------------------


def _of_single_photos(photos: Sequence[PhotoFacts]) -> Iterator[Advice]:
    names, it = _those(photos, lambda photo: _below(photo.label_coverage, _LEAST_LABELLED))
    if names:
        yield _helpful(
            "little_learnt",
            names,
            f"Take {listed(names)} again from nearby, sharp and well lit: so little of {it} is believed that less than "
            f"{_percent(_LEAST_LABELLED)} of it could be learnt from.",
        )
    names, it = _those(photos, lambda photo: _below(_MOST_MOVING, photo.moving_share))
    if names:
        yield _helpful(
            "moving",
            names,
            f"If something moved in {listed(names)}, mask it or take {it} again when nothing does: more than "
            f"{_percent(_MOST_MOVING)} of it fits no still scene.",
        )
    names, _ = _those(photos, lambda photo: _below(_MOST_FOCAL_SPREAD_PERCENT, photo.focal_spread_percent))
    if names:
        yield _helpful(
            "focal_spread",
            names,
            "Keep the zoom where it is and step aside more, or give the focal length if you know it: what the pairs "
            f"say of {listed(names)} spreads by more than {_MOST_FOCAL_SPREAD_PERCENT:.0f} %.",
        )
    names, it = _those(photos, lambda photo: _below(photo.brightness, _DARK))
    if names:
        yield _helpful(
            "dark",
            names,
            f"Take {listed(names)} again with more light or a longer exposure: {it} is so dark that noise hides the "
            "texture.",
        )


def _thin(photos: Sequence[PhotoFacts]) -> Iterator[Advice]:
    """Parts that hang on one photo alone and are weak, the largest first."""
    thin = [photo for photo in photos if photo.thin_regions and (photo.thin_share or 0.0) >= _THIN_SHARE]
    for photo in sorted(thin, key=lambda photo: -(photo.thin_share or 0.0)):
        whole = photo.thin_regions[0] in WHOLE_REGIONS
        where = photo.thin_regions[0].removesuffix(" it") if whole else ""
        where = where or f"{listed([f'the {region}' for region in photo.thin_regions])} of"
        yield Advice(
            kind="thin_coverage",
            urgency="helpful",
            photos=(photo.name,),
            text=f"Take one more photo of {where} {photo.name} from a step aside: no other photo sees it, and its "
            f"depth is not believed ({_percent(photo.thin_share or 0.0)} of the photo is like that).",
        )


def _those(photos: Sequence[PhotoFacts], concerned: Callable[[PhotoFacts], bool]) -> tuple[tuple[str, ...], str]:
    """Names of the photos that something concerns, and the word for one or several of them."""
    names = tuple(photo.name for photo in photos if concerned(photo))
    return names, "it" if len(names) == 1 else "each"


def _below(value: float | None, limit: float | None) -> bool:
    """Whether both are known and the first is less."""
    return value is not None and limit is not None and value < limit


def _helpful(kind: str, photos: tuple[str, ...], text: str) -> Advice:
    return Advice(kind=kind, urgency="helpful", photos=photos, text=text)


def _one_alone(photo: PhotoFacts) -> Advice:
    return Advice(
        kind="one_photo",
        urgency="needed",
        photos=(photo.name,),
        text=f"Take at least two more photos of what {photo.name} shows, each from a step aside: the depth of one "
        "photo alone is the network's guess.",
    )


def _static(motion: Motion) -> Advice:
    return Advice(
        kind="no_motion",
        urgency="needed",
        photos=(),
        text="Step aside between photos by about a tenth of the distance to what you photograph, instead of only "
        f"turning: the cameras moved by {100 * motion.baseline:.1f} % of that distance, too little to measure depth.",
    )


def _best_overlap(photo: PhotoFacts) -> float:
    return photo.partners[0].overlap


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
