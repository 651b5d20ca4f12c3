"""The verdict in a sentence or two, and what was warned of with what to do about it."""

from collections.abc import Mapping, Sequence

from lora3d_ns.report.advice import listed
from lora3d_ns.report.facts import Advice, Aligned, Gate, Learning, Level, Warned

_FAIR_RESIDUAL, _POOR_RESIDUAL = 0.15, 0.4
"""Disagreement of the middle pair with the scene, as a share of depth."""

_WAYS_OUT = (
    ("the cameras moved by only", "Take photos from other places, not only in other directions."),
    (
        "the network is hardly sure of anything in",
        "Look at those photos: no texture, blurred, dark, or of something else? Take them again or leave them out.",
    ),
    (
        "no pair that the others confirm holds them",
        "Do not trust those cameras. Take photos in between, or leave those photos out.",
    ),
    (
        "too few matches between the photos",
        "Take photos with more overlap and texture, sharp ones; give known intrinsics or poses if you have them.",
    ),
    ("the known focal length of", "Check that it is given in pixels of the upright original, not of a resized copy."),
)
"""What to do about a warning of the alignment, by words that stand in it and in no other."""

_LEFT_OUT = (
    "That is no harm in itself: the photos hang together by other pairs. Where a photo has no good pair left, "
    "what to shoot next says so."
)


def headline(
    photo_count: int,
    aligned: Aligned | None,
    learning: Learning | None,
    gate: Gate | None,
    *,
    arm: str,
    adapter_used: bool,
) -> tuple[str, ...]:
    """The verdict: how the photos hang together, and what learning came to.

    Args:
        photo_count: How many there are.
        aligned: The alignment; None without details.
        learning: How the network learnt; None where it did not, or without details.
        gate: Whether that was accepted.
        arm: Of the reconstruction; empty where it is not known.
        adapter_used: Whether the network had an adapter.
    """
    photos = "1 photo" if photo_count == 1 else f"{photo_count} photos"
    if aligned is None:
        first = f"{photos}."
    elif photo_count == 1:
        first = f"{photos} alone: its depth is the network's guess."
    elif len(aligned.groups) == 1:
        first = f"{photos}, all connected."
    else:
        apart = [name for group in aligned.groups[1:] for name in group]
        first = f"{photos}, but only {len(aligned.groups[0])} are connected: {listed(apart)} cannot be trusted."
    if aligned is not None and aligned.motion.near_static and photo_count > 1:
        first = first[:-1] + ", and the cameras hardly moved."
    return first, _learnt(learning, gate, arm, adapter_used)


def level_of(aligned: Aligned | None, gate: Gate | None, advice: Sequence[Advice]) -> Level:
    """How far the scene can be trusted, in a word."""
    if aligned is None:
        return "unknown"
    residual = aligned.edge_residual.median
    if any(one.urgency == "needed" for one in advice) or (residual is not None and residual > _POOR_RESIDUAL):
        return "poor"
    doubtful = residual is not None and residual > _FAIR_RESIDUAL
    refused = gate is not None and not gate.accepted
    return "fair" if advice or doubtful or refused or not aligned.converged else "good"


def warned(
    texts: Sequence[str], names: Sequence[str], dropped: Mapping[tuple[int, int], str], *, converged: bool
) -> tuple[Warned, ...]:
    """The alignment's warnings with what to do; pairs that were left out for one reason are one of them.

    Args:
        texts: The warnings.
        names: Of the photos.
        dropped: Pairs left out, with the reason.
        converged: Whether the solver met its tolerance.
    """
    of_pairs = {
        f"the pair {names[i]}, {names[j]} was left out: {reason}": (f"{names[i]}, {names[j]}", reason)
        for (i, j), reason in dropped.items()
    }
    found = [Warned(text=sentence(text), way_out=_way_out(text)) for text in texts if text not in of_pairs]
    if not converged:
        found.append(
            Warned(
                text="The alignment had not settled when it stopped.",
                way_out="Usually harmless. If cameras look wrong, allow more steps (coarse_iterations, "
                "full_iterations) or take photos with more overlap.",
            )
        )
    if of_pairs:
        by_reason: dict[str, list[str]] = {}
        for pair, reason in of_pairs.values():
            by_reason.setdefault(reason, []).append(pair)
        # The reasons of pairs that contradict others hold a number each: only equal ones are put together.
        reasons = list(by_reason)
        said = reasons[0] if len(reasons) == 1 else f"{reasons[0]}, or the like"
        count = len(of_pairs)
        found.append(
            Warned(
                text=f"{count} pair{'s were' if count > 1 else ' was'} left out: {said}.",
                way_out=_LEFT_OUT,
                single=tuple(f"{pair}: {reason}" for reason, pairs in by_reason.items() for pair in pairs),
            )
        )
    return tuple(found)


def sentence(text: str) -> str:
    """With a capital letter and a full stop; a first word that is a name stays as it is."""
    capital = text[:1].upper() if text.startswith(("the ", "too ", "no ")) else text[:1]
    return f"{capital}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def two_digits(value: float) -> str:
    """An error as it is said: 0.21, 0.073."""
    if abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def _way_out(text: str) -> str:
    return next((way_out for words, way_out in _WAYS_OUT if words in text), "")


def _learnt(learning: Learning | None, gate: Gate | None, arm: str, adapter_used: bool) -> str:
    if learning is None and gate is None:
        if adapter_used:
            return "Nothing was learnt from them: an adapter that was made before was used."
        return f"Nothing was learnt from them: the network as it is{f' (arm {arm})' if arm else ''}."
    numbers = ""
    if learning is not None and learning.held_out_errors:
        errors = learning.held_out_errors
        after = errors[learning.best_epoch] if learning.best_epoch < len(errors) else errors[-1]
        numbers = f": held-out pairs' error {two_digits(errors[0])} → {two_digits(after)}"
    elif gate is not None and gate.compared and gate.compared[0].key == "label_error":
        row = gate.compared[0]
        if row.before is not None and row.after is not None:
            numbers = f": held-out pairs' error {two_digits(row.before)} → {two_digits(row.after)}"
    if gate is None:
        return f"The network learnt from measurements (arm {arm}){numbers}."
    if gate.accepted:
        return f"Self-calibration accepted{numbers}."
    if learning is not None and learning.changed:
        return "Self-calibration accepted in an earlier round, refused in the last one."
    return f"Self-calibration refused, so the network was used as it is ({gate.reason})."
