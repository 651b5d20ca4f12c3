"""The studies: what they compare, what they measure, and that an interrupted one goes on."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from adapter.lesson_samples import tiny_network
from alignment.aligned_rooms import room
from PIL import Image

from lora3d_ns.adapter.adapter import target_layers
from lora3d_ns.cli import main
from lora3d_ns.cli_benchmarks import BenchmarkAblations
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.pseudo_labels import label_points, labels_from_depths
from lora3d_ns.rooms import ablation_tables, benchmark_ablations, benchmark_scenes
from lora3d_ns.rooms.ablation_pictures import draw_studies
from lora3d_ns.rooms.ablation_tables import ablations_markdown, summarize_ablations
from lora3d_ns.rooms.ablations import ABLATION_ROOMS, STUDIES, VALIDATION_OFFSET, Study, Variant, changed
from lora3d_ns.rooms.benchmark import mean_point_error, measure
from lora3d_ns.rooms.benchmark_ablations import (
    AblationSettings,
    _chosen,
    layers_of,
    moving_shares,
    pair_point_errors,
    run_ablations,
    true_overlaps,
)
from lora3d_ns.rooms.benchmark_arms import ArmResult
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.label_errors import label_error_m, prediction_error_m
from lora3d_ns.types import PairPrediction, PairPredictions

# --- what is compared -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_compares_different_things(name: str) -> None:
    variants = STUDIES[name].variants
    assert len(variants) > 1
    assert len({variant.name for variant in variants}) == len(variants)
    assert len({dataclasses.replace(variant, name="-") for variant in variants}) == len(variants)
    # One of them is what is done by default, so that the others have something to be compared with.
    usual = Variant(name="-")
    alike = [variant for variant in variants if dataclasses.replace(variant, name="-") == usual]
    assert len(alike) == (0 if name == "choice" else 1)


def test_the_rooms_are_one_of_each_main_domain() -> None:
    assert [room_name.rpartition("-")[0] for room_name in ABLATION_ROOMS] == ["nominal", "dark", "sparse", "tele"]


def test_changed_settings_change_what_they_name() -> None:
    settings = changed(
        alignment={"mu": 0.3},
        stereo={"use": "off"},
        labels={"weights": "pair"},
        finetune={"epochs": 2},
        lora={"rank": 4},
    )
    assert settings.alignment.mu == 0.3
    assert settings.stereo.use == "off"
    assert settings.labels.weights == "pair"
    assert (settings.finetune.epochs, settings.finetune.lora.rank) == (2, 4)
    assert settings.finetune.learning_rate == changed().finetune.learning_rate


@pytest.mark.parametrize(
    "wrong",
    [
        {"studies": ("nothing",)},
        {"studies": ()},
        {"studies": ("rank",), "rooms": ()},
        {"studies": ("rank",), "rooms": ("nominal",)},
        {"studies": ("rank",), "rooms": ("nominal-x",)},
        {"studies": ("reuse",), "rooms": ("nominal-1",)},
    ],
    ids=str,
)
def test_impossible_runs_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError):
        AblationSettings(**wrong)


def test_a_variant_needs_its_photos() -> None:
    with pytest.raises(SettingsError):
        Variant(name="too many", photos=12)


def test_layers_by_name() -> None:
    network = tiny_network()
    decoders = layers_of(network, "decoders")
    # Two decoders of two blocks, each with qkv and three projections.
    assert len(decoders) == 2 * 2 * 4
    assert all(name.startswith("dec_blocks") for name in decoders)
    assert layers_of(network, "qkv") == ("qkv",)
    assert set(layers_of(network, "attention")) < set(layers_of(network, "attention_and_mlps"))
    # What the names mean: per block of the encoder 1, 2 or 3 layers, of the decoders 4, 6 or 6.
    counts = {name: len(target_layers(network, layers_of(network, name))) for name in ("qkv", "attention", "decoders")}
    assert counts == {"qkv": 5, "attention": 1 + 4 * 4, "decoders": 4 * 4}
    assert len(target_layers(network, layers_of(network, "attention_and_outputs"))) == 2 + 4 * 6
    assert len(target_layers(network, layers_of(network, "attention_and_mlps"))) == 3 + 4 * 6
    with pytest.raises(SettingsError):
        layers_of(network, "heads")


# --- what is measured -----------------------------------------------------------------------------


def naive_overlap(photos: RoomPhotos, i: int, j: int) -> float:
    """Pixel by pixel: whether the point of photo i is what photo j shows there, up to a tenth of its depth."""
    points = photos.true_points((j, i))[1]
    affine = photos.views.source_from_network[j]
    K = affine.K_network_from_source(photos.cameras.K[j])
    depth = photos.depths_m[j]
    height, width = depth.shape
    seen = 0
    for point in points.reshape(-1, 3):
        x, y, z = (K.double() @ point.double()).tolist()
        if z <= 0:
            continue
        column, row = int(x // z), int(y // z)
        if 0 <= column < width and 0 <= row < height:
            seen += abs(float(depth[row, column]) - z) < 0.1 * float(depth[row, column])
    return seen / points[..., 0].numel()


def test_overlaps_are_those_of_the_loops() -> None:
    photos = room(3, shapes=((24, 32), (32, 24)))
    overlaps = true_overlaps(photos)
    assert len(overlaps) == 6
    for (i, j), overlap in overlaps.items():
        # A point on the edge of a pixel may fall on either side.
        assert overlap == pytest.approx(naive_overlap(photos, i, j), abs=2 / (24 * 32))
    # Another photo from the same place with the same lens shows all of the first.
    twice = dataclasses.replace(
        photos,
        cameras=dataclasses.replace(
            photos.cameras,
            T_world_camera=photos.cameras.T_world_camera[[0, 0, 2]],
            K=photos.cameras.K[[0, 0, 2]],
        ),
        depths_m=(photos.depths_m[0], photos.depths_m[0], photos.depths_m[2]),
    )
    same = true_overlaps(twice)
    assert same[0, 1] == same[1, 0] == 1.0
    assert same[0, 2] == overlaps[0, 2]


def test_true_labels_have_no_error() -> None:
    photos = room(3)
    graph = build_pair_graph(CompleteGraph(), 3)
    cameras = photos.cameras
    true = labels_from_depths(
        photos.views, graph, T_world_camera=cameras.T_world_camera, K=cameras.K, depths=photos.depths_m
    )
    error_m = label_error_m(true, photos)
    assert error_m is not None
    assert error_m < 1e-4
    bent = labels_from_depths(
        photos.views,
        graph,
        T_world_camera=cameras.T_world_camera,
        K=cameras.K,
        depths=[depth * (1.0 + 0.1 * (depth > depth.median())) for depth in photos.depths_m],
    )
    bent_m = label_error_m(bent, photos)
    assert bent_m is not None
    assert bent_m > 0.05
    nothing = labels_from_depths(
        photos.views,
        graph,
        T_world_camera=cameras.T_world_camera,
        K=cameras.K,
        depths=[torch.zeros_like(depth) for depth in photos.depths_m],
    )
    assert label_error_m(nothing, photos) is None
    # Predictions that say what such labels say are as far off.
    said = PairPredictions(
        graph=graph,
        pairs=tuple(
            PairPrediction(
                points_first=first, points_second=second,
                confidence_first=torch.ones(first.shape[:2]), confidence_second=torch.ones(second.shape[:2]),
            )
            for first, second in (label_points(bent, edge) for edge in graph.edges)
        ),
    )  # fmt: skip
    assert prediction_error_m(said, photos) == pytest.approx(bent_m, rel=1e-4)


def test_shares_of_what_moves_by_hand() -> None:
    photos = room(2, shapes=((8, 10),))
    static = [torch.ones(8, 10, dtype=torch.bool) for _ in range(2)]
    static[0][0] = False
    photos = dataclasses.replace(photos, static=tuple(static))
    cameras = photos.cameras
    labels = labels_from_depths(
        photos.views,
        build_pair_graph(CompleteGraph(), 2),
        T_world_camera=cameras.T_world_camera,
        K=cameras.K,
        depths=photos.depths_m,
    )
    valid, nothing = torch.ones(8, 10, dtype=torch.bool), torch.zeros(8, 10, dtype=torch.bool)
    valid[0, :3] = False
    labels = dataclasses.replace(labels, valid_first=(valid, valid), valid_second=(nothing, nothing))
    first = torch.ones(8, 10, dtype=torch.bool)
    first[0, 0] = False
    shares = moving_shares(labels, photos, [first, valid])
    # Of photo 0 the first row moves: seven of its ten pixels are labelled, nine in the cloud.
    assert shares["moving_labelled"] == pytest.approx(0.7)
    assert shares["moving_in_cloud"] == pytest.approx(0.9)
    # Of the 150 others, three of photo 1 are not labelled, and these are not in the cloud either.
    assert shares["static_labelled"] == pytest.approx(147 / 150)
    assert shares["static_in_cloud"] == pytest.approx(147 / 150)


def test_errors_of_every_ordered_pair_are_in_the_mean_those_of_the_benchmark() -> None:
    network, photos = tiny_network(), room(3, shapes=((16, 24),))
    static = [torch.ones(16, 24, dtype=torch.bool) for _ in range(3)]
    static[1][:, :9] = False
    photos = dataclasses.replace(photos, static=tuple(static))
    errors = pair_point_errors(network, photos)
    assert set(errors) == {(i, j) for i in range(3) for j in range(3) if i != j}
    assert len(set(errors.values())) == 6
    graph = build_pair_graph(CompleteGraph(), 3)
    predictions = predict_pairs(photos.views, graph, network, PredictionSettings(show_progress=False))
    measured = measure(ArmResult(predictions=predictions, cameras=photos.cameras), photos)
    assert measured["point_error"] == pytest.approx(sum(errors.values()) / 6)
    assert mean_point_error(predictions, photos) == pytest.approx(sum(errors.values()) / 6)


@pytest.mark.parametrize(("count", "chosen"), [(2, [0, 6]), (3, [0, 3, 6]), (4, [0, 2, 4, 6]), (7, list(range(7)))])
def test_photos_are_chosen_evenly_with_all_that_belongs_to_them(count: int, chosen: list[int]) -> None:
    photos = room(7, shapes=((8, 10),))
    some = _chosen(photos, Variant(name="some", photos=count, chosen_from=7))
    assert some.views.names == tuple(photos.views.names[view] for view in chosen)
    assert torch.equal(some.cameras.T_world_camera, photos.cameras.T_world_camera[chosen])
    assert torch.equal(some.cameras.K, photos.cameras.K[chosen])
    for ours, view in enumerate(chosen):
        assert torch.equal(some.views.images[ours], photos.views.images[view])
        assert torch.equal(some.depths_m[ours], photos.depths_m[view])
        assert torch.equal(some.static[ours], photos.static[view])


def test_random_choices_repeat_no_photo_and_depend_on_their_seed_alone() -> None:
    photos = room(7, shapes=((8, 10),))
    choices = [
        _chosen(photos, Variant(name="some", photos=4, chosen_from=7, choice_seed=seed)).views.names
        for seed in (0, 1, 2, 3, 0, 1, 2, 3)
    ]
    assert choices[:4] == choices[4:]
    assert len(set(choices)) == 4
    for names in choices:
        assert len(set(names)) == 4
        # In the order along the path.
        assert list(names) == [name for name in photos.views.names if name in names]


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(name="quick_studies")
def _quick_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(**finetune: object) -> Variant:
        settings = changed(
            finetune={"epochs": 1, "held_out_share": 0.0, **finetune},
            labels={"least_coverage": 1e-6},
            lora={"rank": 2},
            alignment={"matches": "off", "coarse_iterations": 3, "full_iterations": 1},
        )
        return Variant(name=str(finetune), settings=settings, photos=3, chosen_from=3)

    few = Study(question="How long?", variants=(quick(),))
    no_labels = dataclasses.replace(
        quick(), name="none", settings=changed(labels={"least_coverage": 1.0, "aimed_coverage": 0.0})
    )
    others = Study(
        question="Otherwise?",
        variants=(
            dataclasses.replace(quick(), name="every weight", learner="all_weights"),
            no_labels,
        ),
    )
    for module in (benchmark_ablations, ablation_tables):
        monkeypatch.setattr(module, "STUDIES", {"quick": few, "others": others})
    # To be tested on; 90 pairs take long.
    monkeypatch.setattr(benchmark_scenes, "PHOTOS", 4)


@pytest.mark.usefixtures("quick_studies")
def test_a_run_its_tables_and_a_second_run_that_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_network("rooms")
    settings = AblationSettings(
        studies=("quick", "others"),
        rooms=("nominal-1", "tele-1"),
        seed_offset=700,
        cache=tmp_path / "cache",
        json_file=tmp_path / "ablations.json",
        show_progress=False,
    )
    record = run_ablations(network, settings)
    written = json.loads((tmp_path / "ablations.json").read_text())
    assert written["rows"] == record["rows"]
    assert len(written["rows"]) == 2 * 3
    assert set(written["studies"]) == {"quick", "others"}
    row = written["rows"][0]
    assert {"study", "variant", "scene", "point_error", "label_error", "elsewhere", "little_overlap"} <= set(row)
    base = {row["scene"]: row["point_error_before"] for row in written["rows"]}
    for row in written["rows"]:
        # What the network says without an adapter is the same in every variant, and in the room looked at elsewhere.
        assert row["point_error_before"] == base[row["scene"]]
        assert row["elsewhere_before"] == base["tele-1" if row["scene"] == "nominal-1" else "nominal-1"]
        if row["variant"] == "none":
            assert row["too_few_labels"]
            assert row["point_error"] == row["point_error_before"]
        else:
            assert row["point_error"] != row["point_error_before"]
    every_weight = [row for row in written["rows"] if row["variant"] == "every weight"]
    assert every_weight[0]["parameters"] == sum(parameter.numel() for parameter in network.parameters())

    text = ablations_markdown(record)
    assert "How long?" in text
    assert "none (too few labels in 2)" in text

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in ("self_calibrate", "predict_pairs", "make_scene"):
        monkeypatch.setattr(benchmark_ablations, name, never)
    again = run_ablations(network, settings)
    assert again["rows"] == record["rows"]


def test_pictures_of_the_studies_that_have_one(tmp_path: Path) -> None:
    rows = [
        {
            "study": study,
            "scene": "a",
            "variant": variant,
            "point_error_before": 1.0,
            "point_error": error,
            "label_error": None,
            "prediction_error": 1.0,
            "seconds": 3.0,
        }
        for study, variant, error in (
            ("photos", "3 photos", 0.8),
            ("photos", "10 photos", 0.5),
            ("rank", "rank 4", 0.6),
        )
    ]
    drawn = draw_studies({"studies": summarize_ablations(rows)}, tmp_path / "pictures")
    assert [path.name for path in drawn] == ["photos.png"]
    with Image.open(drawn[0]) as picture:
        # Not all of one colour: something is drawn in each half.
        halves = [picture.convert("L").crop((x, 40, x + 300, 300)).getextrema() for x in (60, 460)]
    assert all(low < 128 < high for low, high in halves)
    with pytest.raises(InvalidDataError):
        draw_studies({"studies": {"rank": {}}}, tmp_path)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_explains_itself(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "ablations", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--studies", "--rooms", "--cache", "--json", "--pictures"))


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "ablations", "--studies", "nonsense"])
    assert stopped.value.code == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_command_runs_what_the_studies_are_meant_for_by_default() -> None:
    # What moves needs rooms of its own.
    assert set(BenchmarkAblations().studies) == set(STUDIES) - {"moving"}
    assert BenchmarkAblations().rooms == AblationSettings(studies=("rank",)).rooms == ABLATION_ROOMS
    assert BenchmarkAblations().seed_offset == VALIDATION_OFFSET
