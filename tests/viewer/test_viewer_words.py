"""What the viewer says, and that nobody's file name is run as a program."""

import dataclasses
import html
import re

import pytest
from report.report_samples import scene_and_details

from lora3d_ns.viewer.colours import legend_of
from lora3d_ns.viewer.pairs import ViewedPair, pairs_of
from lora3d_ns.viewer.state import viewed_scene
from lora3d_ns.viewer.words import (
    addresses,
    cloud_words,
    colour_words,
    headline,
    measure_words,
    number,
    pair_label,
    pair_words,
    pairs_words,
    photo_label,
    photo_words,
    plain,
    warnings_of,
)

HOSTILE = ("{alert(1)}.jpg", "![x](https://example.invalid/a.png) <img src=x>.jpg", "a\n# b\udce9 **c**.jpg")


def test_names_lose_all_meaning_they_could_have() -> None:
    for name in (*HOSTILE, "import x from 'y'", "`${1}`", "<b>\\{", "&#123;"):
        shown = plain(name)
        assert re.fullmatch(r"(?:[A-Za-z0-9 ]|&#[0-9]+;)*", shown)
        assert html.unescape(shown) == "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    scene, details = scene_and_details(3, names=HOSTILE)
    pairs = pairs_of(details)
    details = dataclasses.replace(details, dropped={(0, 1): HOSTILE[0], (1, 0): HOSTILE[1]})
    cloud = viewed_scene(scene, details, most_points=1000).cloud
    said = [headline(scene, details, pairs), pairs_words(pairs), cloud_words(cloud, 3, before=True)]
    said += [photo_words(scene, details, view, pairs) for view in range(3)]
    said += [colour_words("pair", None, pair, scene.names) for pair in pairs_of(details)]
    said += [colour_words(by, legend_of(cloud, by), None, scene.names) for by in ("photo", "weight", "confidence")]
    for words in said:
        without_ours = re.sub(r"!\[\]\(data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]+\)", "", words)
        assert not re.search(r"[{}<>\[\]`\\]|https?:", without_ours)
    assert photo_label(2, HOSTILE[2]) == "3  a\N{REPLACEMENT CHARACTER}# b\N{REPLACEMENT CHARACTER} **c**.jpg"


def test_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert addresses("127.0.0.1", 8765) == ("Viewer:   http://localhost:8765",)
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    monkeypatch.setenv("USER", "ann")
    first, second = addresses("127.0.0.1", 9000)
    assert first == "Viewer:   http://localhost:9000"
    assert re.search(r"ssh -L 9000:localhost:9000 ann@\S+, then open http://localhost:9000$", second)
    everybody = addresses("0.0.0.0", 9000)
    assert "Everybody" in everybody[1]
    assert "ssh -L" in everybody[2]
    assert addresses("::1", 80)[0] == "Viewer:   http://localhost:80"
    assert addresses("2001:db8::1", 80)[0] == "Viewer:   http://[2001:db8::1]:80"


def test_a_scene_in_a_few_words() -> None:
    scene, details = scene_and_details(3)
    pairs = pairs_of(details)
    assert headline(scene, details, pairs) == "**3 photos** · 150 points · 3 pairs, none bad · scale arbitrary"
    known = dataclasses.replace(scene, provenance={**scene.provenance, "scale": {"known": True}})
    bad = [dataclasses.replace(pairs[0], kind="bad"), *pairs[1:]]
    assert headline(known, details, bad).endswith("3 pairs, **1 bad** · scale known")
    assert headline(scene, None, ()) == "**3 photos** · 150 points · scale arbitrary"
    assert warnings_of(dataclasses.replace(scene, provenance={"warnings": ["cold", 3]}), None) == ("cold", "3")
    assert warnings_of(scene, details) == details.diagnosis.warnings


def test_pairs_are_told_apart() -> None:
    good = ViewedPair(views=(0, 3), overlap=0.5, residual=0.0213, kind="good", reasons=())
    left_out = ViewedPair(views=(1, 2), overlap=0.1, residual=None, kind="bad", reasons=("far off", "far off"))
    contradicts = dataclasses.replace(good, kind="bad", residual=0.8)
    assert [pair_label(pair) for pair in (good, left_out, contradicts)] == [
        "1-4: 2.1 %",
        "2-3: left out !",
        "1-4: 80.0 % !",
    ]
    assert "contradicts the others" in pair_words(contradicts)
    assert pair_words(left_out).count("Far off") == 1
    assert "Bad" not in pair_words(good)
    assert pairs_words([good, good]) == "All 2 pairs agree."
    assert pairs_words([left_out, good]) == "**Bad:** 2-3 (of 2)."


def test_numbers_are_short() -> None:
    values = (0.0, 0.012345, 1.0, 4.5, 19.19, 123.4, 98765.4, 1e-7, 3e9)
    assert [number(value) for value in values] == [
        "0",
        "0.0123",
        "1.00",
        "4.50",
        "19.2",
        "123",
        "98765",
        "1.00e-07",
        "3.00e+09",
    ]
    assert "first" in measure_words(0, True, None, False)
    assert "second" in measure_words(1, True, None, False)
    assert measure_words(2, False, 2.0, True) == "**2.00** in the scene's unit."
    assert "nobody knows" in measure_words(2, False, 2.0, False)
