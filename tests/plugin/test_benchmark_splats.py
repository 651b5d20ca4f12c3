"""The benchmark of splats: its sums, its stock arm, and one small run of it."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora3d_ns.errors import SettingsError
from lora3d_ns.photo_scene import PhotoScene
from lora3d_ns.plugin.benchmark_splats import (
    METRICS,
    _Room,
    refinement_gains_db,
    run_splat_benchmark,
    splat_table,
    stock_settings,
    summary,
)
from lora3d_ns.plugin.method import lora3d_splat


def row(scene: str, arm: str, psnr: float) -> dict[str, Any]:
    return {"scene": scene, "arm": arm, **{metric: psnr if "psnr" in metric else psnr / 40.0 for metric in METRICS}}


ROWS = [
    row("a", "pretrained", 18.0),
    row("b", "pretrained", 22.0),
    row("c", "pretrained", 20.0),
    row("a", "fixed_cameras", 22.0),
    row("b", "fixed_cameras", 20.0),
    row("c", "fixed_cameras", 24.0),
    row("a", "self_calibrated", 24.0),
    row("b", "self_calibrated", 21.0),
    row("c", "self_calibrated", 24.0),
    row("a", "true_poses", 25.0),
    row("b", "true_poses", 25.0),
    row("c", "true_poses", 28.0),
]


def test_the_summary_counts_scenes_by_name() -> None:
    # Rows in another order than the base's.
    found = summary([*reversed(ROWS)])
    assert found["self_calibrated"]["psnr"] == {"mean": 23.0, "median": 24.0}
    assert (found["self_calibrated"]["improved"], found["self_calibrated"]["worse"]) == (2, 1)
    assert (found["pretrained"]["improved"], found["pretrained"]["worse"]) == (0, 0)
    assert found["true_poses"]["ssim"]["mean"] == pytest.approx(0.65)


def test_what_refinement_gains() -> None:
    # Fixed 22, refined 23, true 26.
    arms = ("fixed_cameras", "self_calibrated")
    assert refinement_gains_db(summary(ROWS), "psnr", arms) == pytest.approx((1.0, 4.0))
    assert refinement_gains_db(summary(ROWS[:6]), "psnr", arms) is None
    table = splat_table({"summary": summary(ROWS)})
    assert "| self_calibrated | 23.00 (24.00) | 0.575 | 23.00 (24.00) | 0.575 | 2 / 1 |" in table
    assert "Refining the scene's cameras: +1.00 dB, true ones: +4.00 dB (registered)." in table
    assert "Refining" not in splat_table({"summary": summary(ROWS[:6])})


def test_stock_settings_are_splatfactos_own(scene: PhotoScene) -> None:
    from nerfstudio.configs.method_configs import method_configs

    config: Any = copy.deepcopy(lora3d_splat.config)
    stock_settings(config, scene)
    splatfacto: Any = method_configs["splatfacto"]
    for name in ("sh_degree", "ssim_lambda", "cull_alpha_thresh", "warmup_length", "refine_every"):
        assert getattr(config.pipeline.model, name) == getattr(splatfacto.pipeline.model, name), name
    for name in ("means", "scales", "opacities", "features_dc", "features_rest", "quats"):
        assert config.optimizers[name]["optimizer"].lr == splatfacto.optimizers[name]["optimizer"].lr, name
    assert config.optimizers["means"]["scheduler"].max_steps == 30_000
    assert config.pipeline.model.camera_optimizer.mode == "off"
    assert config.pipeline.model.densify
    # nerfstudio scales a scene so that its farthest camera is at distance 1.
    centres = torch.stack([photo.T_world_camera[:3, 3] for photo in scene.training])
    assert config.pipeline.model.length_unit == pytest.approx(float((centres - centres.mean(dim=0)).abs().max()))


@pytest.mark.parametrize("given", [{"arms": ["best"]}, {"scenes": ["nominal-7"]}])
def test_names_that_are_none(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no (arm best|scene nominal-7)"):
        run_splat_benchmark(folder=tmp_path, **given)
    assert not any(tmp_path.iterdir())


def test_a_small_run(tmp_path: Path) -> None:
    record: Any = run_splat_benchmark(
        scenes=["tele-1"],
        arms=["pretrained", "robust"],
        size=(64, 48),
        iterations=4,
        test_photos=1,
        seed_offset=700,
        folder=tmp_path / "runs",
        json_path=tmp_path / "record.json",
    )
    assert json.loads((tmp_path / "record.json").read_text())["rows"] == record["rows"]
    assert [entry["arm"] for entry in record["rows"]] == ["pretrained", "robust"]
    for entry in record["rows"]:
        assert 0 < entry["gaussians"] <= 10 * 64 * 48
        assert 5.0 < entry["psnr"] < 40.0
        assert 0.0 <= entry["ate_m"] < 1.0
    files = sorted((tmp_path / "runs" / "tele-1" / "photos").glob("*.png"))
    assert [path.name[:4] for path in files] == ["eval"] + ["trai"] * 10


def test_what_moves_has_true_masks_in_the_photos_that_are_measured(tmp_path: Path) -> None:
    room = _Room(tmp_path / "moving", "moving", 0, (64, 48), 2, 700, "rooms")
    for source, words in ((room.source, {"eval"}), (room.knowing, {"eval", "train"})):
        files = sorted(path.relative_to(source.photos).as_posix() for path in source.photos.rglob("*.png"))
        assert sum(name.startswith("train-") for name in files) == 10
        assert {name.split("/")[1][:-7] for name in files if name.startswith("masks/")} == words
    for word, photos, number in (("eval", room.truth[1], room.test[1]), ("train", room.truth[0], 3)):
        with Image.open(room.knowing.photos / "masks" / f"{word}-{number:02d}.png") as mask:
            still = torch.from_numpy(np.array(mask)) > 127
        assert torch.equal(still, photos.static[number])
    assert any(not bool(still.all()) for still in room.truth[0].static)
    still_room = _Room(tmp_path / "still", "tele", 0, (64, 48), 2, 700, "rooms")
    assert not list(still_room.folder.rglob("masks"))
