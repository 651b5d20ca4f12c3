"""What to shoot next: what is said, in which order, and that nothing is made up."""

import pytest
from report.report_samples import letter, pair, photo, photos_of

from lora3d_ns.report.advice import connected_groups, good_graph, listed, nothing_lacking, what_to_shoot_next
from lora3d_ns.report.facts import Motion

MOVED = Motion(baseline=0.4, near_static=False)
STATIC = Motion(baseline=0.012, near_static=True)


def complete(count: int, overlap: float = 0.6):
    return [pair(i, j, overlap) for i in range(1, count + 1) for j in range(i + 1, count + 1)]


def kinds(photos, pairs, motion=MOVED) -> list[str]:
    return [one.kind for one in what_to_shoot_next(photos, pairs, motion)]


def test_nothing_is_made_up_where_all_is_well() -> None:
    pairs = complete(5)
    photos = photos_of(5, pairs)
    assert what_to_shoot_next(photos, pairs, MOVED) == ()
    assert "shares at least 60 %" in nothing_lacking(photos)


def test_a_photo_that_shares_little_is_named_with_its_best_partner_and_the_share() -> None:
    pairs = [*complete(4), pair(3, 5, 0.12), pair(4, 5, 0.11)]
    (said,) = what_to_shoot_next(photos_of(5, pairs), pairs, MOVED)
    assert (said.kind, said.urgency, said.photos) == ("weakly_connected", "helpful", ("e.jpg", "c.jpg"))
    assert said.text == (
        "Take one more photo between e.jpg and c.jpg: they share 12 % of what they show, and e.jpg shares no more "
        "with any other."
    )


def test_two_that_are_each_others_best_are_told_once() -> None:
    pairs = [*complete(3), pair(4, 5, 0.2), pair(3, 4, 0.15), pair(1, 5, 0.15), pair(3, 5, 0.11)]
    found = [one for one in what_to_shoot_next(photos_of(5, pairs), pairs, MOVED) if one.kind == "weakly_connected"]
    assert len(found) == 1
    assert "neither shares more" in found[0].text


def test_the_limit_of_little_overlap() -> None:
    for overlap, expected in ((0.29, ["weakly_connected"]), (0.3, [])):
        pairs = [*complete(4), *(pair(k, 5, overlap) for k in range(1, 5))]
        assert kinds(photos_of(5, pairs), pairs) == expected


def test_groups_apart_come_first_and_name_the_nearest_photo_across() -> None:
    pairs = [*complete(3), pair(4, 5, 0.5), pair(3, 4, 0.05, "little_overlap"), pair(1, 5, 0.02, "little_overlap")]
    photos = photos_of(5, pairs, brightness={1: 0.05})
    found = what_to_shoot_next(photos, pairs, MOVED)
    assert [one.kind for one in found] == ["not_connected", "dark"]
    assert found[0].urgency == "needed"
    assert found[0].photos == ("d.jpg", "e.jpg", "c.jpg")
    assert "from d.jpg to c.jpg" in found[0].text
    assert "5 %" in found[0].text


def test_pairs_that_contradict_the_others_do_not_connect() -> None:
    pairs = [*complete(3), *(pair(k, 4, 0.7, "contradicts") for k in (1, 2, 3))]
    found = what_to_shoot_next(photos_of(4, pairs), pairs, MOVED)
    assert [one.kind for one in found] == ["not_connected"]
    assert "contradict each other" in found[0].text


def test_a_pair_that_was_left_out_does_not_connect() -> None:
    pairs = [*complete(3), pair(3, 4, 0.7, "left_out")]
    assert kinds(photos_of(4, pairs), pairs) == ["not_connected"]


def test_one_pair_between_two_halves() -> None:
    pairs = [pair(1, 2), pair(1, 3), pair(2, 3), pair(3, 4), pair(4, 5), pair(4, 6), pair(5, 6)]
    (said,) = what_to_shoot_next(photos_of(6, pairs), pairs, MOVED)
    assert (said.kind, said.photos) == ("held_by_one_pair", ("c.jpg", "d.jpg"))


def test_one_photo_between_two_halves() -> None:
    pairs = [pair(1, 2), pair(1, 3), pair(2, 3), pair(3, 4), pair(3, 5), pair(4, 5)]
    (said,) = what_to_shoot_next(photos_of(5, pairs), pairs, MOVED)
    assert (said.kind, said.photos) == ("held_by_one_photo", ("c.jpg", "d.jpg", "e.jpg"))
    assert "d.jpg and e.jpg hang on c.jpg alone" in said.text


def test_a_photo_that_hangs_on_one_other() -> None:
    pairs = [*complete(3), pair(3, 4, 0.5)]
    (said,) = what_to_shoot_next(photos_of(4, pairs), pairs, MOVED)
    assert (said.kind, said.photos) == ("held_by_one_photo", ("c.jpg", "d.jpg"))
    assert "d.jpg hangs on c.jpg alone" in said.text


def test_a_weak_photo_on_one_other_is_told_once() -> None:
    pairs = [*complete(3), pair(3, 4, 0.2)]
    assert kinds(photos_of(4, pairs), pairs) == ["weakly_connected"]


def test_a_chain_is_told_in_one_sentence() -> None:
    pairs = [pair(k, k + 1) for k in range(1, 9)]
    (said,) = what_to_shoot_next(photos_of(9, pairs), pairs, MOVED)
    assert said.kind == "chain"
    # Its six inner pairs.
    assert "any of 6 of its" in said.text
    short = [pair(1, 2), pair(2, 3), pair(3, 4)]
    assert kinds(photos_of(4, short), short) == ["held_by_one_pair"]


def test_a_ring_has_no_weak_point() -> None:
    pairs = [pair(1, 2), pair(2, 3), pair(3, 4), pair(1, 4)]
    assert kinds(photos_of(4, pairs), pairs) == []


def test_cameras_that_hardly_moved() -> None:
    pairs = complete(3)
    found = what_to_shoot_next(photos_of(3, pairs), pairs, STATIC)
    assert [(one.kind, one.urgency) for one in found] == [("no_motion", "needed")]
    assert "1.2 %" in found[0].text


def test_thin_parts_are_named_largest_first() -> None:
    pairs = complete(3)
    photos = photos_of(
        3,
        pairs,
        thin_share={1: 0.15, 2: 0.3, 3: 0.09},
        thin_regions={1: ("left third",), 2: ("upper left", "upper middle"), 3: ("middle",)},
    )
    found = what_to_shoot_next(photos, pairs, MOVED)
    assert [one.photos for one in found] == [("b.jpg",), ("a.jpg",)]
    assert "the upper left and the upper middle of b.jpg" in found[0].text
    assert "30 %" in found[0].text
    whole = photos_of(3, pairs, thin_share={1: 0.9}, thin_regions={1: ("most of it",)})
    assert "photo of most of a.jpg from" in what_to_shoot_next(whole, pairs, MOVED)[0].text


def test_thin_parts_of_photos_apart_are_no_news() -> None:
    pairs = [*complete(3), pair(3, 4, 0.02, "little_overlap")]
    photos = photos_of(4, pairs, thin_share={4: 0.9}, thin_regions={4: ("all of it",)})
    (said,) = what_to_shoot_next(photos, pairs, MOVED)
    assert said.kind == "not_connected"
    assert "or leave out d.jpg if it shows something else" in said.text


@pytest.mark.parametrize(
    ("field", "bad", "fine", "kind"),
    [
        ("label_coverage", 0.1, 0.4, "little_learnt"),
        ("moving_share", 0.5, 0.25, "moving"),
        ("focal_spread_percent", 15.0, 9.0, "focal_spread"),
        ("brightness", 0.1, 0.2, "dark"),
    ],
)
def test_what_is_wrong_with_single_photos(field: str, bad: float, fine: float, kind: str) -> None:
    pairs = complete(4)
    assert what_to_shoot_next(photos_of(4, pairs, **{field: {2: fine, 3: None}}), pairs, MOVED) == ()
    (said,) = what_to_shoot_next(photos_of(4, pairs, **{field: {2: bad, 3: bad}}), pairs, MOVED)
    assert (said.kind, said.photos, said.urgency) == (kind, ("b.jpg", "c.jpg"), "helpful")
    assert "b.jpg and c.jpg" in said.text


def test_what_is_needed_comes_before_what_helps() -> None:
    pairs = [*complete(3), pair(3, 4, 0.05, "little_overlap")]
    photos = photos_of(4, pairs, brightness={1: 0.01}, thin_share={2: 0.5}, thin_regions={2: ("all of it",)})
    urgencies = [one.urgency for one in what_to_shoot_next(photos, pairs, STATIC)]
    assert urgencies == sorted(urgencies, key=["needed", "helpful"].index)
    assert urgencies.count("needed") == 2


def test_one_photo_and_two() -> None:
    (said,) = what_to_shoot_next([photo(1)], [], STATIC)
    assert (said.kind, said.urgency) == ("one_photo", "needed")
    pairs = [pair(1, 2)]
    (said,) = what_to_shoot_next(photos_of(2, pairs), pairs, MOVED)
    assert said.kind == "two_photos"
    weak = [pair(1, 2, 0.2)]
    (said,) = what_to_shoot_next(photos_of(2, weak), weak, MOVED)
    assert said.kind == "weakly_connected"
    assert "there is no other pair" in said.text


def test_order_of_photos_does_not_matter_for_groups() -> None:
    pairs = [pair(1, 2), pair(3, 4), pair(4, 5)]
    assert connected_groups(good_graph(6, pairs)) == ((3, 4, 5), (1, 2), (6,))


def test_long_lists_of_names_are_cut() -> None:
    names = [letter(k) for k in range(1, 8)]
    assert listed(names[:1]) == "a.jpg"
    assert listed(names[:4]) == "a.jpg, b.jpg, c.jpg and d.jpg"
    assert listed(names) == "a.jpg, b.jpg, c.jpg and 4 more"
