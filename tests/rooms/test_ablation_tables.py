"""Summaries and tables of the studies, by hand."""

import pytest

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.rooms.ablation_tables import CHOSEN_BY_GATE, ablations_markdown, chosen_by_gate, summarize_ablations
from lora3d_ns.rooms.ablations import STUDIES

TRUTH = "true depths and cameras"


def row(
    scene: str, variant: str, before: float, after: float, *, study: str = "reference", **others: object
) -> dict[str, object]:
    return {
        "study": study,
        "scene": scene,
        "variant": variant,
        "point_error_before": before,
        "point_error": after,
        "accepted": after < before,
        "parameters": 7,
        **others,
    }


def without_labels(scene: str, variant: str, before: float) -> dict[str, object]:
    """What `run_ablations` says of a room that left too few labels: the network as it was, and little else."""
    return {
        "study": "reference",
        "scene": scene,
        "variant": variant,
        "point_error_before": before,
        "point_error": before,
        "too_few_labels": True,
    }


def test_summaries_by_hand() -> None:
    rows = [
        row("a", "default", 1.0, 0.6),
        row("b", "default", 2.0, 2.2),
        row("a", TRUTH, 1.0, 0.4),
        row("b", TRUTH, 2.0, 1.6),
    ]
    entry = summarize_ablations(rows)["reference"]["default"]
    assert entry["rooms"] == 2
    assert entry["point_error"] == {"mean": pytest.approx(1.4), "median": pytest.approx(1.4)}
    assert (entry["improved"], entry["worse"], entry["accepted"], entry["parameters"]) == (1, 1, 1, 7)
    # (1.5 - 1.4) / (1.5 - 1.0)
    assert entry["gap_closure"] == pytest.approx(0.2)
    assert entry["label_error"] == {"mean": None, "median": None}
    assert summarize_ablations(rows)["reference"][TRUTH]["gap_closure"] == pytest.approx(1.0)


def test_rooms_with_too_few_labels_count_as_they_were() -> None:
    rows = [
        row("a", "default", 1.0, 0.4, label_error=0.1),
        without_labels("b", "default", 2.0),
        row("a", TRUTH, 1.0, 0.4),
        row("b", TRUTH, 2.0, 1.6),
    ]
    entry = summarize_ablations(rows)["reference"]["default"]
    assert (entry["improved"], entry["worse"], entry["accepted"], entry["too_few_labels"]) == (1, 0, 1, 1)
    assert entry["point_error"] == {"mean": pytest.approx(1.2), "median": pytest.approx(1.2)}
    # Of the one room that has any.
    assert entry["label_error"] == {"mean": 0.1, "median": 0.1}
    # (1.5 - 1.2) / (1.5 - 1.0)
    assert entry["gap_closure"] == pytest.approx(0.6)
    assert entry["parameters"] == 7
    assert "default (too few labels in 1)" in ablations_markdown({"studies": summarize_ablations(rows)})


@pytest.mark.parametrize("truth", [without_labels("a", TRUTH, 1.0), row("a", TRUTH, 1.0, 1.2)], ids=["none", "worse"])
def test_where_truth_is_no_help_there_is_no_gap_to_close(truth: dict[str, object]) -> None:
    studies = summarize_ablations([row("a", "default", 1.0, 0.6), truth])
    assert [entry["gap_closure"] for entry in studies["reference"].values()] == [None, None]
    lines = ablations_markdown({"studies": studies}).splitlines()
    assert lines[2].endswith("| gap closure |")
    assert all(line.endswith("| - |") for line in lines[4:])


def test_gaps_are_of_the_study_that_has_the_truth() -> None:
    studies = summarize_ablations([row("a", "default", 1.0, 0.6), row("a", "rank 4", 1.0, 0.7, study="rank")])
    assert all("gap_closure" not in entry for by_variant in studies.values() for entry in by_variant.values())


def test_rows_of_one_name_in_two_studies_stay_apart() -> None:
    studies = summarize_ablations(
        [row("a", "default", 1.0, 0.6, study="cutoff"), row("a", "default", 1.0, 0.8, study="recipe")]
    )
    assert [studies[study]["default"]["point_error"] for study in ("cutoff", "recipe")] == [
        {"mean": 0.6, "median": 0.6},
        {"mean": 0.8, "median": 0.8},
    ]


def test_every_variant_of_every_study_is_in_the_tables() -> None:
    rows = [
        row(scene, variant.name, 1.0, 0.5, study=study, seconds=3.0)
        for study, asked in STUDIES.items()
        for variant in asked.variants
        for scene in ("a", "b")
    ]
    rows.append(row("a", "one adapter for all rooms", 1.0, 0.75, study="reuse", own_adapter=0.625))
    text = ablations_markdown({"studies": summarize_ablations(rows)})
    tables = dict(zip([*STUDIES, "reuse"], text.split("\n\n**"), strict=True))
    for study, asked in STUDIES.items():
        table = tables[study]
        assert asked.question in table
        lines = [line for line in table.splitlines() if line.startswith("| ")]
        assert [line.split(" | ")[0].removeprefix("| ") for line in lines[1:]] == [v.name for v in asked.variants]
        for line in lines[1:]:
            assert " | 1.000 | 0.500 | 2 / 0 | 7 |" in line
        # What nobody measured has no column.
        assert "little overlap" not in table
        assert "moving" not in lines[0]
    assert "| one adapter for all rooms | 1.000 | 0.750 | 0.625 | 1 / 0 | 7 |" in tables["reuse"]


def test_what_moves_has_columns_of_its_own() -> None:
    moving = {"moving_labelled": 0.25, "static_labelled": 0.5, "moving_in_cloud": None, "static_in_cloud": 0.75}
    still = dict.fromkeys(moving)
    text = ablations_markdown(
        {
            "studies": summarize_ablations(
                [
                    row("a", "default", 1.0, 0.5, study="moving", **moving),
                    row("a", "other", 1.0, 0.5, study="moving", **still),
                ]
            )
        }
    )
    assert "| moving pixels labelled | static pixels labelled | static pixels in the cloud |" in text
    assert "| default | 1.000 | 0.500 | 0.250 | 0.500 | 0.750 | 1 / 0 | 7 |" in text
    assert "| other | 1.000 | 0.500 | - | - | - | 1 / 0 | 7 |" in text


def test_rows_and_records_of_something_else_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="no point error"):
        summarize_ablations([{"study": "rank", "variant": "rank 4", "point_error_before": None, "point_error": 1.0}])
    with pytest.raises(InvalidDataError, match="no studies"):
        ablations_markdown({"studies": None})


def test_what_the_gate_likes_best_is_chosen_room_by_room() -> None:
    rows = [
        row("a", "3 epochs", 1.0, 0.5, study="epochs", gate_label_error=0.5, gate_match_error=1.0),
        row("a", "10 epochs", 1.0, 0.4, study="epochs", gate_label_error=0.4, gate_match_error=1.5),
        row("a", "20 epochs", 1.0, 0.1, study="epochs", gate_label_error=None, gate_match_error=0.1),
        # Without matches the orders decide.
        row("b", "3 epochs", 1.0, 0.7, study="epochs", gate_label_error=0.5, gate_order_error=1.0),
        row("b", "10 epochs", 1.0, 0.6, study="epochs", gate_label_error=0.4, gate_order_error=1.1),
        without_labels("c", "3 epochs", 2.0) | {"study": "epochs"},
    ]
    chosen = chosen_by_gate(rows)
    assert [(entry["scene"], entry["chosen"], entry["point_error"]) for entry in chosen] == [
        ("a", "3 epochs", 0.5),
        ("b", "10 epochs", 0.6),
    ]
    summary = summarize_ablations([*rows, *chosen])["epochs"]
    assert summary[CHOSEN_BY_GATE]["point_error"] == {"mean": pytest.approx(0.55), "median": pytest.approx(0.55)}
    assert chosen_by_gate([]) == []
