"""The facts of a report, against scenes whose truth is known."""

import dataclasses
import inspect
import json
import math

import pytest
import torch
from report.report_samples import GATE, diagnosis, scene_and_details

from lora3d_ns.alignment import align, known
from lora3d_ns.alignment import diagnosis as diagnosis_module
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.report.assemble import WITHOUT_DETAILS, flat, histogram, report_of
from lora3d_ns.report.comparison import cameras_moved, gate_of
from lora3d_ns.report.coverage import Coverage, coverage, thin_regions
from lora3d_ns.report.facts import plain
from lora3d_ns.report.verdict import _WAYS_OUT, sentence, two_digits, warned
from lora3d_ns.types import Cameras

# --- verdict --------------------------------------------------------------------------------------


def test_the_verdict_says_how_the_photos_hang_together_and_what_learning_came_to() -> None:
    report = report_of(*scene_and_details())
    assert report.headline == (
        "3 photos, all connected.",
        "Self-calibration accepted: held-out pairs' error 0.21 → 0.12.",
    )
    assert report.level == "good"
    assert report.missing == ()


def test_refused_learning_changes_nothing_and_is_said() -> None:
    report = report_of(*scene_and_details(accepted=False))
    assert report.headline[1].startswith("Self-calibration refused, so the network was used as it is (held-out pairs")
    assert report.learning is not None
    assert not report.learning.changed
    assert report.learning.compared == report.learning.moved == ()
    assert report.aligned is not None
    assert report.aligned.edge_residual_before is None
    assert report.level == "fair"


def test_a_scene_nothing_was_learnt_from() -> None:
    scene, details = scene_and_details(learnt=False)
    report = report_of(scene, details)
    assert report.headline[1] == "Nothing was learnt from them: the network as it is (arm robust)."
    assert report.learning is None
    assert all(photo.label_coverage is None for photo in report.photos)
    given = dataclasses.replace(scene, provenance={**scene.provenance, "adapter": {"parameters": 5}})
    assert "made before" in report_of(given, details).headline[1]


def test_photos_apart_are_named_in_the_verdict() -> None:
    scene, details = scene_and_details(4)
    residuals = torch.tensor([0.9 if 3 in edge else 0.05 for edge in details.edges])
    apart = dataclasses.replace(details, diagnosis=diagnosis(12, 4, edge_residuals=residuals))
    report = report_of(scene, apart)
    assert report.level == "poor"
    assert f"only 3 are connected: {scene.names[3]} cannot be trusted" in report.headline[0]
    assert [one.kind for one in report.advice] == ["not_connected"]
    assert {pair.state for pair in report.pairs if 4 in pair.numbers} == {"contradicts"}


def test_a_contested_view_is_apart_even_where_its_own_edges_fit_it() -> None:
    scene, details = scene_and_details(3)
    contested = dataclasses.replace(details, diagnosis=diagnosis(6, 3, contested_views=(1,)))
    report = report_of(scene, contested)
    assert report.aligned is not None
    assert report.aligned.groups == ((scene.names[0], scene.names[2]), (scene.names[1],))
    assert report.photos[1].contested


def test_cameras_that_hardly_moved_make_a_poor_scene() -> None:
    scene, details = scene_and_details(3)
    static = dataclasses.replace(details, diagnosis=diagnosis(6, 3, near_static=True, baseline=0.01))
    report = report_of(scene, static)
    assert report.level == "poor"
    assert report.headline[0] == "3 photos, all connected, and the cameras hardly moved."


# --- warnings -------------------------------------------------------------------------------------


def test_every_known_warning_of_the_alignment_has_a_way_out() -> None:
    """The words are looked for in the alignment's own source: if they change there, they have to change here."""
    source = inspect.getsource(diagnosis_module) + inspect.getsource(known) + inspect.getsource(align)
    for words, way_out in _WAYS_OUT:
        assert source.count(words) == 1, words
        assert warned([f"x {words} y"], ("a", "b"), {}, converged=True)[0].way_out == way_out


def test_pairs_left_out_are_one_warning() -> None:
    names = ("a.jpg", "b.jpg", "c.jpg")
    dropped = {(0, 1): "far off", (2, 1): "far off", (1, 0): "too faint"}
    texts = [f"the pair {names[i]}, {names[j]} was left out: {reason}" for (i, j), reason in dropped.items()]
    (one,) = warned(texts, names, dropped, converged=True)
    assert one.text == "3 pairs were left out: far off, or the like."
    assert one.single == ("a.jpg, b.jpg: far off", "c.jpg, b.jpg: far off", "b.jpg, a.jpg: too faint")
    (single,) = warned(texts[:1], names, {(0, 1): "far off"}, converged=True)
    assert single.text == "1 pair was left out: far off."


def test_a_solver_that_did_not_settle_is_told() -> None:
    assert [one.text for one in warned((), (), {}, converged=False)] == [
        "The alignment had not settled when it stopped."
    ]
    assert warned((), (), {}, converged=True) == ()


def test_sentences_keep_names_as_they_are() -> None:
    assert sentence("the pair x was left out") == "The pair x was left out."
    assert sentence("img_1.jpg: no pair holds it") == "img_1.jpg: no pair holds it."


# --- before and after -----------------------------------------------------------------------------


def test_measures_before_and_after() -> None:
    report = report_of(*scene_and_details())
    assert report.learning is not None
    rows = {row.key: row for row in report.learning.compared}
    assert (rows["edge_residual_percent"].before, rows["edge_residual_percent"].after) == pytest.approx((20.0, 5.0))
    assert (rows["held_out_error"].before, rows["held_out_error"].after) == (0.21, 0.12)
    # Weights rise evenly from 0 to 1 over 64, 48 and 64 columns, before to half of that.
    wide = [sum(k / 63 >= limit for k in range(64)) / 64 for limit in (0.1, 0.2)]
    tall = [sum(k / 47 >= limit for k in range(48)) / 48 for limit in (0.1, 0.2)]
    after, before = (100 * (2 * w + t) / 3 for w, t in zip(wide, tall, strict=True))
    assert (rows["point_share_percent"].before, rows["point_share_percent"].after) == pytest.approx((before, after))
    assert rows["point_share_percent"].lower_is_better is None


def test_how_far_cameras_moved_whatever_the_two_worlds() -> None:
    """Another unit, another origin, another orientation; one camera really moves, by 0.3 of the depth and 5 degrees."""
    generator = torch.Generator().manual_seed(0)
    count = 6
    skew = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)
    T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    T[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    T[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    skew = torch.tensor([[0.0, -0.4, 0.9], [0.4, 0.0, -0.2], [-0.9, 0.2, 0.0]], dtype=torch.float64)
    similarity = torch.linalg.matrix_exp(skew)
    other = T.clone()
    other[:, :3, :3] = similarity @ T[:, :3, :3]
    other[:, :3, 3] = 7.0 * T[:, :3, 3] @ similarity.T + torch.tensor([3.0, -2.0, 1.0])
    K = torch.eye(3).repeat(count, 1, 1) * 100.0
    longer = K.clone()
    longer[2, 0, 0] = 110.0
    sizes = ((64, 48),) * count
    names = tuple("abcdef")
    first, second = diagnosis(0, count, unit=2.0), diagnosis(0, count, unit=14.0)

    def moved(after: torch.Tensor):
        return cameras_moved(
            names,
            Cameras(T_world_camera=T, K=K, sizes=sizes),
            first,
            Cameras(T_world_camera=after, K=longer, sizes=sizes),
            second,
        )

    still = moved(other)
    assert max(one.distance_percent for one in still) < 1e-6
    assert max(one.angle_deg for one in still) < 1e-5
    assert [round(one.focal_percent, 4) for one in still] == [0.0, 0.0, 10.0, 0.0, 0.0, 0.0]
    turned = other.clone()
    angle = math.radians(5.0)
    about_z = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0], [0, 0, 1]]
    )
    turned[3, :3, :3] = turned[3, :3, :3] @ about_z.double()
    turned[3, 0, 3] += 0.3 * 14.0
    found = moved(turned)
    # All share in the turn and in the move of the mean: by a sixth each, the one itself has the rest.
    assert found[3].distance_percent == pytest.approx(30.0 * 5 / 6, abs=5.0)
    assert found[3].angle_deg == pytest.approx(5.0 * 5 / 6, abs=0.3)
    assert max(one.angle_deg for k, one in enumerate(found) if k != 3) < 1.2


def test_cameras_on_one_spot_have_not_moved() -> None:
    T = torch.eye(4).repeat(2, 1, 1)
    cameras = Cameras(T_world_camera=T, K=torch.eye(3).repeat(2, 1, 1), sizes=((4, 4),) * 2)
    found = cameras_moved(("a", "b"), cameras, diagnosis(0, 2), cameras, diagnosis(0, 2))
    assert [one.distance_percent for one in found] == [0.0, 0.0]
    assert [one.angle_deg for one in found] == [0.0, 0.0]


def test_the_gate_in_plain_values() -> None:
    gate = gate_of(GATE)
    assert gate is not None
    assert [(row.key, row.before, row.after) for row in gate.compared] == [
        ("label_error", 0.21, 0.12),
        ("order_error", 0.05, 0.04),
    ]
    assert gate_of(None) is None
    assert gate_of({"reason": "no decision"}) is None


# --- photos and pairs -----------------------------------------------------------------------------


def test_what_is_told_of_a_photo() -> None:
    scene, details = scene_and_details(3)
    mask = torch.ones_like(details.moving[1])
    mask[:, :12] = False
    moving = torch.zeros_like(mask)
    moving[:16] = True
    details = dataclasses.replace(
        details, masks=(None, mask, None), moving=(details.moving[0], moving, details.moving[2])
    )
    report = report_of(scene, details)
    first, second, _ = report.photos
    assert (first.width_px, first.height_px) == scene.cameras.sizes[0]
    assert first.focal_mm == pytest.approx(
        float(scene.cameras.K[0, 0, 0]) * math.hypot(36, 24) / math.hypot(*scene.cameras.sizes[0])
    )
    assert first.position == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    assert first.looks_along == pytest.approx((0.0, 0.0, 1.0), abs=1e-6)
    assert second.masked_share == pytest.approx(0.25)
    assert second.moving_share == pytest.approx(16 / 64)
    assert first.points == 50
    # Half of the confidence is left everywhere.
    assert first.unborne_share == 0.0
    assert first.residual is not None
    assert first.residual.median == pytest.approx(0.05)
    overlaps = sorted((pair.overlap for pair in report.pairs if 1 in pair.numbers), reverse=True)
    assert [partner.overlap for partner in first.partners] == overlaps


def test_confidence_that_is_not_borne_out() -> None:
    scene, details = scene_and_details(3)
    weights = tuple(0.1 * confidence for confidence in details.confidences)
    report = report_of(scene, dataclasses.replace(details, weights=weights))
    assert [photo.unborne_share for photo in report.photos] == [1.0, 1.0, 1.0]


def test_both_orders_of_a_pair_are_one() -> None:
    scene, details = scene_and_details(3)
    residuals = torch.tensor([0.04, 0.05, 0.06, float("nan"), 0.05, 0.05])
    assert details.edges == ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
    details = dataclasses.replace(
        details,
        dropped={(0, 1): "too faint", (2, 1): "far off"},
        diagnosis=diagnosis(6, 3, edge_residuals=residuals),
    )
    pairs = report_of(scene, details).pairs
    assert [pair.numbers for pair in pairs] == [(1, 2), (1, 3), (2, 3)]
    assert pairs[0].residual == pytest.approx(0.06)
    assert (pairs[0].state, pairs[0].left_out) == ("good", ("Too faint.",))
    assert (pairs[2].state, pairs[2].residual) == ("left_out", None)
    assert pairs[2].left_out == ("far off.", "nothing in it counted.")


def test_one_photo_alone() -> None:
    scene, details = scene_and_details(1, learnt=False)
    report = report_of(scene, details)
    assert report.level == "poor"
    assert report.headline[0] == "1 photo alone: its depth is the network's guess."
    assert [one.kind for one in report.advice] == ["one_photo"]
    assert report.pairs == ()
    assert report.photos[0].seen_share == 0.0


# --- coverage -------------------------------------------------------------------------------------


def test_coverage_of_true_depths_is_that_of_the_overlap() -> None:
    """Of two photos: what another sees of either, averaged, is their overlap, found elsewhere on another grid."""
    scene, details = scene_and_details(2, shapes=((48, 64),))
    covers = coverage(details, scene.cameras, thin_cutoff=0.1)
    shares = [cover.seen_share for cover in covers]
    assert all(share is not None for share in shares)
    # The grids differ: 1,600 points here, every pixel there. Measured: 0.004.
    assert sum(share or 0.0 for share in shares) / 2 == pytest.approx(float(details.overlap[0]), abs=0.02)
    for cover in covers:
        assert int(cover.seen_by.max()) == 1


def test_thin_is_what_weighs_little_and_nobody_else_sees() -> None:
    scene, details = scene_and_details(2, shapes=((48, 64),))
    for cutoff, expected in ((0.0, False), (2.0, True)):
        (cover, _) = coverage(details, scene.cameras, thin_cutoff=cutoff)
        assert bool(cover.thin.any()) == expected
        assert not bool((cover.thin & (cover.seen_by > 0)).any())
    assert torch.equal(cover.thin, cover.counted & (cover.seen_by == 0))


def test_masked_and_moving_pixels_do_not_count() -> None:
    scene, details = scene_and_details(2, shapes=((48, 64),))
    nothing = torch.zeros_like(details.moving[0])
    masked = dataclasses.replace(details, masks=(None, nothing), moving=(~nothing, details.moving[1]))
    first, second = coverage(masked, scene.cameras, thin_cutoff=1.0)
    assert first.seen_share is second.seen_share is None
    assert int(first.seen_by.max()) == 0


def regions(*cells: tuple[int, int]) -> tuple[str, ...]:
    thin = torch.zeros(30, 30, dtype=torch.bool)
    for row, column in cells:
        thin[10 * row : 10 * row + 10, 10 * column : 10 * column + 10] = True
    seen = torch.zeros(30, 30, dtype=torch.int64)
    return thin_regions(Coverage(seen_by=seen, counted=torch.ones_like(thin), thin=thin))


def test_regions_in_words() -> None:
    assert regions() == ()
    assert regions((0, 0)) == ("upper left",)
    assert regions((1, 1)) == ("middle",)
    assert regions((0, 2), (1, 2), (2, 2)) == ("right third",)
    assert regions((2, 0), (2, 1), (2, 2)) == ("lower third",)
    assert regions((0, 0), (1, 0), (2, 0), (0, 1), (0, 2)) == ("left third", "upper third")
    assert regions(*((row, column) for row in (0, 1) for column in range(3))) == ("most of it",)
    assert regions(*((row, column) for row in range(3) for column in range(3))) == ("all of it",)


# --- plain values ---------------------------------------------------------------------------------


def test_histogram_counts_every_finite_value_once() -> None:
    values = torch.tensor([0.0, 1e-6, 0.001, 0.05, 0.0500001, 5.0, float("nan"), float("inf")])
    found = histogram(values)
    assert sum(found.counts) == 6
    assert found.counts[0] == 3
    assert found.counts[-1] == 1
    assert found.median == pytest.approx(0.001)
    place = next(k for k, bound in enumerate(found.bounds) if bound > 0.05) - 1
    assert found.counts[place] == 2
    assert histogram(torch.zeros(0)).median is None


def test_settings_by_dotted_name() -> None:
    nested = {
        "kind": "ReconstructSettings",
        "arm": "robust",
        "graph": {"kind": "WindowGraph", "window": 3},
        "alignment": {"kind": "AlignmentSettings", "mu": 0.1, "known": [], "px": [0.0, 1.0], "show_progress": True},
    }
    assert flat(nested) == {
        "arm": "robust",
        "graph.kind": "WindowGraph",
        "graph.window": "3",
        "alignment.mu": "0.1",
        "alignment.known": "none",
        "alignment.px": "0.0, 1.0",
    }


def test_facts_are_json_even_where_numbers_are_not() -> None:
    scene, details = scene_and_details(3)
    odd = diagnosis(
        6,
        3,
        baseline=math.inf,
        edge_residuals=torch.full((6,), math.nan),
        focal_spread_percent=torch.tensor([math.nan, 1.0, math.inf]),
        match_error_px=None,
        unit=math.inf,
    )
    report = report_of(scene, dataclasses.replace(details, diagnosis=odd))
    text = json.dumps(plain(report), allow_nan=False)
    back = json.loads(text)
    assert back["aligned"]["motion"]["baseline"] is None
    assert back["photos"][0]["focal_spread_percent"] is None
    assert back["learning"]["held_out"] == [[scene.names[0], scene.names[1]], [scene.names[1], scene.names[0]]]
    assert back["settings"] == {"graph.kind": "CompleteGraph", "point_cutoff": "0.1"}
    assert back["format_version"] == 1


def test_a_scene_without_details_tells_what_there_is() -> None:
    scene, _ = scene_and_details(3, provenance={"warnings": ["the cameras moved by only 1.0 % of the depth: a guess"]})
    report = report_of(scene, None)
    assert report.missing == (WITHOUT_DETAILS,)
    assert report.level == "unknown"
    assert report.headline == ("3 photos.", "Self-calibration accepted: held-out pairs' error 0.21 → 0.12.")
    assert report.warnings[0].way_out.startswith("Take photos from other places")
    assert report.advice == report.pairs == ()
    assert [photo.points for photo in report.photos] == [50, 50, 50]
    assert report.seconds == {"predict": 1.5, "align": 0.5}
    bare = report_of(dataclasses.replace(scene, provenance={}), None)
    assert len(bare.missing) == 2
    assert bare.seconds == {}


def test_details_of_another_scene_are_refused() -> None:
    scene, details = scene_and_details(3)
    with pytest.raises(InvalidDataError):
        report_of(scene, dataclasses.replace(details, names=("x", "y", "z")))


def test_errors_as_they_are_said() -> None:
    assert [two_digits(value) for value in (0.0, 0.0731, 0.3, 1.234, 12.3)] == ["0.00", "0.073", "0.30", "1.23", "12"]
