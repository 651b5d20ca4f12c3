"""Scenes with their photos: made once from photos of a room, and left as files that other programs read right."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from test_images import exif_bytes, half_mask, save_heic, swapped_channels_profile

import lora3d_ns.stages.stages as stages_module
from lora3d_ns import photo_scene as module
from lora3d_ns.commands import Source
from lora3d_ns.errors import DamagedFileError, NoPhotosError, StorageError, TooFewLabelsError
from lora3d_ns.images import PhotoSettings, load_source_image, load_views
from lora3d_ns.photo_scene import (
    PHOTOS_FILE,
    SCENE_SUBFOLDER,
    PhotoScene,
    load_photo_scene,
    make_photo_scene,
    photo_scene_key,
    save_photo_scene,
)
from lora3d_ns.reconstruct import Reconstruction, ReconstructSettings, reconstruct
from lora3d_ns.rooms.benchmark_scenes import make_scene
from lora3d_ns.scene_io.scenes import load_details
from lora3d_ns.splits import SplitSettings
from lora3d_ns.types import Cameras, Scene, Views

PHOTOS = 5
HELD_OUT = 2
QUICK = ReconstructSettings(arm="pretrained").silent()
LEARNING = dataclasses.replace(
    ReconstructSettings(),
    alignment=dataclasses.replace(ReconstructSettings().alignment, matches="off"),
    finetune=dataclasses.replace(ReconstructSettings().finetune, epochs=1),
).silent()
"""One epoch instead of ten, and no matches."""


def source_of(photos: Path, **others: Any) -> Source:
    return Source(photos=photos, network="rooms", device="cpu", **others)


def same_scene(first: Scene, second: Scene) -> bool:
    names = ("points", "colors", "point_weights", "point_views")
    same = all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)
    same &= torch.equal(first.cameras.T_world_camera, second.cameras.T_world_camera)
    return same and torch.equal(first.cameras.K, second.cameras.K) and first.names == second.names


def same_photos(first: PhotoScene, second: PhotoScene) -> bool:
    return all(
        a.name == b.name and torch.equal(a.K, b.K) and torch.equal(a.T_world_camera, b.T_world_camera)
        for a, b in zip(first.photos, second.photos, strict=True)
    )


# --- made from photos of a room -----------------------------------------------------------------


@pytest.fixture(scope="module")
def room() -> list[Image.Image]:
    views = make_scene("tele", 1, size=(64, 64), seed_offset=700).calibration.views
    return [Image.fromarray((image.permute(1, 2, 0) * 255.0).round().byte().numpy()) for image in views.images]


def write_room(folder: Path, room: list[Image.Image], count: int = PHOTOS) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        room[number].save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(room: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_room(tmp_path_factory.mktemp("room") / "photos", room)


@pytest.fixture(scope="module")
def made(photos: Path) -> PhotoScene:
    return make_photo_scene(source_of(photos), photos.parent / "scene", QUICK)


def test_photos_are_split_and_keep_their_order(made: PhotoScene, photos: Path) -> None:
    assert [photo.name for photo in made.photos] == [f"{number}.png" for number in range(PHOTOS)]
    assert [photo.held_out for photo in made.photos] == [number == HELD_OUT for number in range(PHOTOS)]
    assert made.held_out == (made.photos[HELD_OUT],)
    assert made.scene.names == tuple(photo.name for photo in made.training)
    assert len(made.scene.points) > 1000
    for photo in made.photos:
        # Plain files stay where they are, and where no photo has a mask there is none.
        assert photo.image == (photos / photo.name).resolve()
        assert photo.mask is None
        assert photo.size == (64, 64)
    assert {path.name for path in made.folder.iterdir()} == {PHOTOS_FILE, SCENE_SUBFOLDER}
    with Image.open(made.folder / SCENE_SUBFOLDER / "scene.png") as picture:
        assert picture.width > 500
    details = load_details(made.folder / SCENE_SUBFOLDER)
    assert details is not None
    assert details.names == made.scene.names
    assert len(details.edges) == (PHOTOS - 1) * (PHOTOS - 2)


def test_cameras_in_the_file_are_the_scenes_own(made: PhotoScene) -> None:
    content = json.loads((made.folder / PHOTOS_FILE).read_text())
    entries = [entry for entry in content["photos"] if not entry["held_out"]]
    for view, (entry, photo) in enumerate(zip(entries, made.training, strict=True)):
        for name in ("K", "T_world_camera"):
            own = getattr(made.scene.cameras, name)[view].double()
            assert torch.equal(torch.tensor(entry[name], dtype=torch.float64), own)
            assert torch.equal(getattr(photo, name), own)
    # The held-out one is somewhere among the others, not left at the origin.
    moved = made.held_out[0].T_world_camera - torch.eye(4).double()
    assert float(moved.abs().max()) > 1e-3


def test_it_is_made_once(made: PhotoScene, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lora3d_ns.photo_scene.open_source", "lora3d_ns.commands.load_network"):
        monkeypatch.setattr(name, lambda *_args, **_kwargs: pytest.fail("made again"))
    files = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = make_photo_scene(source_of(photos), made.folder, QUICK)
    assert same_scene(again.scene, made.scene)
    assert same_photos(again, made)
    assert again.photos[0].image == made.photos[0].image
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == files


def test_a_held_out_photo_changes_nothing(
    room: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders that differ in this photo only, each with stages of its own: all is computed twice."""
    seen: list[Reconstruction] = []

    def kept(*args: Any, **options: Any) -> Reconstruction:
        seen.append(reconstruct(*args, **options))
        return seen[-1]

    monkeypatch.setattr(module, "reconstruct", kept)
    scenes = []
    for number, other in enumerate((room[1], room[7])):
        folder = write_room(tmp_path / str(number) / "photos", room, 3)
        other.save(folder / "1.png")
        scenes.append(make_photo_scene(source_of(folder), tmp_path / str(number) / "scene", LEARNING))
    assert [photo.name for photo in scenes[0].held_out] == ["1.png"]
    assert same_scene(scenes[0].scene, scenes[1].scene)
    for first, second in zip(scenes[0].training, scenes[1].training, strict=True):
        assert torch.equal(first.T_world_camera, second.T_world_camera)
        assert torch.equal(first.K, second.K)
    assert not torch.equal(scenes[0].held_out[0].T_world_camera, scenes[1].held_out[0].T_world_camera)
    tuned = []
    for one in seen:
        assert one.calibration is not None
        tuned.append(one.calibration.finetuned.adapter)
    assert len(tuned) == 2
    assert tuned[0].tensors.keys() == tuned[1].tensors.keys()
    assert all(torch.equal(tensor, tuned[1].tensors[name]) for name, tensor in tuned[0].tensors.items())
    assert any(bool(tensor.any()) for name, tensor in tuned[0].tensors.items() if "lora_B" in name)


PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from lora3d_ns import photo_scene
from lora3d_ns.commands import CACHE_FOLDER, Source
from lora3d_ns.reconstruct import ReconstructSettings
torch.set_num_threads(1)
source, folder = Source(photos=Path(sys.argv[1]), network="rooms", device="cpu"), Path(sys.argv[2])
def die(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)
# Forks, so that torch is imported once.
for place in ("registered_cameras", "_write_pixels"):
    victim = os.fork()
    if victim == 0:
        setattr(photo_scene, place, die)
        photo_scene.make_photo_scene(source, folder, ReconstructSettings(arm="pretrained").silent())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL, place
    assert not folder.exists(), place
    assert len(list((folder.parent / CACHE_FOLDER).glob("*.safetensors"))) == 2, place
"""


def test_what_was_killed_goes_on(
    made: PhotoScene, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the registration, and once more while the folder is written."""
    folder = tmp_path / "scene"
    subprocess.run([sys.executable, "-c", PROGRAM, str(photos), str(folder)], timeout=200, check=True)
    # Half of it was there when the second one died.
    assert len(list(tmp_path.glob(".lora3d-*.partial"))) == 1
    for name in ("predict_pairs", "align"):
        monkeypatch.setattr(stages_module, name, lambda *_args, **_options: pytest.fail("computed again"))
    finished = make_photo_scene(source_of(photos), folder, QUICK)
    assert same_scene(finished.scene, made.scene)
    assert same_photos(finished, made)


def test_one_photo_alone(room: list[Image.Image], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_room(tmp_path / "photos", room, 1)
    with caplog.at_level(logging.WARNING):
        alone = make_photo_scene(source_of(folder), tmp_path / "scene", ReconstructSettings().silent())
    assert "one photo alone" in caplog.text
    assert "none is held out" in caplog.text
    assert [photo.name for photo in alone.photos] == ["0.png"]
    assert alone.held_out == ()
    scene = alone.scene
    assert scene.names == ("0.png",)
    assert scene.cameras.sizes == ((64, 64),)
    assert scene.provenance["photos"] == 1
    assert torch.equal(scene.cameras.T_world_camera[0], torch.eye(4, dtype=scene.cameras.T_world_camera.dtype))
    # Each believed pixel once, before the camera.
    assert 1000 < len(scene.points) <= 64 * 64
    assert bool((scene.point_views == 0).all())
    assert bool((scene.points[:, 2] > 0).all())
    # Nothing is told of the twin that the network saw it beside.
    details = load_details(tmp_path / "scene" / SCENE_SUBFOLDER)
    assert details is not None
    assert details.names == ("0.png",)
    assert len(details.images) == len(details.depths) == len(details.diagnosis.weighted_share) == 1
    assert details.edges == ()
    assert len(details.overlap) == len(details.diagnosis.edge_residuals) == 0


@pytest.mark.parametrize(("count", "split", "held_out"), [(2, "interval", []), (3, "interval", [1]), (3, "all", [])])
def test_few_photos(
    room: list[Image.Image],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    count: int,
    split: Any,
    held_out: list[int],
) -> None:
    folder = write_room(tmp_path / "photos", room, count)
    with caplog.at_level(logging.INFO):
        few = make_photo_scene(source_of(folder), tmp_path / "scene", QUICK, SplitSettings(mode=split))
    assert [number for number, photo in enumerate(few.photos) if photo.held_out] == held_out
    assert len(few.scene.names) == count - len(held_out)
    said = {"interval": "none is held out below 3", "all": "split mode all"}[split]
    assert (said in caplog.text) == (not held_out)
    assert ("Held out for evaluation: 1.png" in caplog.text) == bool(held_out)


def test_names_say_what_is_held_out(room: list[Image.Image], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("eval-0", "eval-1", "train-0", "train-1")):
        room[number].save(folder / f"{name}.png")
    split = SplitSettings(mode="filename")
    named = make_photo_scene(source_of(folder), tmp_path / "scene", QUICK, split)
    assert [photo.name for photo in named.held_out] == ["eval-0.png", "eval-1.png"]
    # The world is that of the first photo which is not held out.
    assert torch.equal(named.training[0].T_world_camera, torch.eye(4).double())


def test_too_little_to_learn_from_leaves_the_network_as_it_is(
    room: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arms: list[str] = []

    def unsure(views: Views, network: Any, settings: ReconstructSettings, **options: Any) -> Reconstruction:
        arms.append(settings.arm)
        if settings.arm == "self_calibrated":
            raise TooFewLabelsError("3 % of the pixels have a label", way_out="Use the arm robust")
        return reconstruct(views, network, settings, **options)

    monkeypatch.setattr(module, "reconstruct", unsure)
    folder = write_room(tmp_path / "photos", room, 3)
    with caplog.at_level(logging.WARNING):
        scene = make_photo_scene(source_of(folder), tmp_path / "scene", LEARNING)
    assert arms == ["self_calibrated", "robust"]
    assert "3 % of the pixels have a label: going on with the network as it is" in caplog.text
    assert scene.scene.provenance["arm"] == "robust"
    assert len(scene.held_out) == 1


def test_a_folder_with_other_files_is_refused(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_source", lambda *_args, **_options: pytest.fail("long work began"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(StorageError, match=r"taken.*such as holiday\.jpg"):
        make_photo_scene(source_of(photos), taken, QUICK)
    assert (taken / "holiday.jpg").read_bytes() == b"precious"
    with pytest.raises(StorageError, match="no folder"):
        make_photo_scene(source_of(photos), taken / "holiday.jpg", QUICK)
    assert (taken / "holiday.jpg").read_bytes() == b"precious"


# --- the key ------------------------------------------------------------------------------------


def test_the_key_is_of_contents_and_settings_not_of_places(photos: Path, tmp_path: Path) -> None:
    split = SplitSettings()
    key = photo_scene_key(source_of(photos), QUICK, split)
    assert len(key) == 10
    assert key.isalnum()
    copy = tmp_path / "elsewhere"
    shutil.copytree(photos, copy)
    same = [
        source_of(copy),
        source_of(copy, cache=tmp_path / "cache"),
        dataclasses.replace(source_of(copy), device="auto"),
    ]
    assert {photo_scene_key(source, QUICK, split) for source in same} == {key}
    shown = dataclasses.replace(QUICK, prediction=dataclasses.replace(QUICK.prediction, show_progress=True))
    assert photo_scene_key(source_of(copy), shown, split) == key

    keys = [key]

    def new(source: Source, settings: ReconstructSettings = QUICK, split: SplitSettings = split) -> None:
        keys.append(photo_scene_key(source, settings, split))
        assert keys[-1] not in keys[:-1]

    new(source_of(copy), dataclasses.replace(QUICK, arm="robust"))
    new(source_of(copy), dataclasses.replace(QUICK, alignment=dataclasses.replace(QUICK.alignment, mu=0.2)))
    new(source_of(copy), split=SplitSettings(interval=3))
    new(source_of(copy), split=SplitSettings(mode="all"))
    new(dataclasses.replace(source_of(copy), network="other"))
    new(source_of(copy, every=2))
    new(source_of(copy, at_most=4))
    known = tmp_path / "known"
    known.mkdir()
    for content in (b"1", b"2"):
        (known / "cameras.bin").write_bytes(content)
        new(source_of(copy, known_cameras=known))
        new(source_of(copy, known_cameras=known / "cameras.bin"), split=SplitSettings(mode="all"))
    (copy / "masks").mkdir()
    Image.new("L", (64, 64), 255).save(copy / "masks" / "3.png")
    new(source_of(copy))
    half_mask(64, 64).save(copy / "masks" / "3.png")
    new(source_of(copy))
    shutil.rmtree(copy / "masks")
    assert photo_scene_key(source_of(copy), QUICK, split) == key
    content = bytearray((copy / "4.png").read_bytes())
    (copy / "4.png").write_bytes(content + b"\0")
    new(source_of(copy))
    (copy / "4.png").write_bytes(content)
    (copy / "4.png").rename(copy / "5.png")
    new(source_of(copy))


def test_no_photos_have_no_key(tmp_path: Path) -> None:
    with pytest.raises(NoPhotosError):
        photo_scene_key(source_of(tmp_path), QUICK, SplitSettings())


# --- files that any program reads right ---------------------------------------------------------


@pytest.fixture(name="undrawn")
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of scenes take a second each."""
    monkeypatch.setattr(module, "draw_scene", lambda _scene, path, **_options: path.write_bytes(b""))


def picture(seed: int = 0) -> Image.Image:
    """Smooth colours without any symmetry, 96 x 64."""
    y, x = np.mgrid[:64, :96]
    channels = [40 + 2 * x, 230 - 3 * y, 20 + x + y + 5 * seed]
    return Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))


def saved(photos: Path, folder: Path, held_out: tuple[int, ...] = ()) -> PhotoScene:
    """A scene of all photos of a folder, with made-up points and cameras."""
    views = load_views(photos, PhotoSettings(size=64, patch_size=8, at_least=1))
    count, generator = len(views), torch.Generator().manual_seed(0)
    T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    T[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    cameras = Cameras(
        T_world_camera=T,
        K=torch.tensor([[80.0, 0.0, 48.0], [0.0, 80.0, 32.0], [0.0, 0.0, 1.0]]).double().repeat(count, 1, 1),
        sizes=views.source_sizes,
    )
    kept = [view for view in range(count) if view not in held_out]
    scene = Scene(
        names=tuple(views.names[view] for view in kept),
        cameras=Cameras(
            T_world_camera=T[kept], K=cameras.K[kept], sizes=tuple(views.source_sizes[view] for view in kept)
        ),
        points=torch.randn(20, 3, generator=generator),
        colors=torch.zeros(20, 3, dtype=torch.uint8),
        point_weights=torch.ones(20),
        point_views=torch.zeros(20, dtype=torch.int32),
        provenance={},
        format_version=1,
    )
    return save_photo_scene(folder, scene, views, cameras, held_out, photos=photos, show_progress=False)


def write_16_bit(path: Path) -> None:
    values = (np.asarray(picture().convert("L")).astype(np.uint16)) * 257 + 100
    assert cv2.imwrite(str(path), values)


def write_16_bit_color(path: Path) -> None:
    assert cv2.imwrite(str(path), np.asarray(picture()).astype(np.uint16)[..., ::-1] * 257)


def write_transparent(path: Path) -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))))
    image.save(path)


def write_bad_profile(path: Path) -> None:
    picture(2).save(path, icc_profile=b"no profile at all")


def write_turned(path: Path) -> None:
    picture().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif_bytes(6), quality=95)


def write_many_frames(path: Path) -> None:
    picture().save(path, format="MPO", save_all=True, append_images=[picture(1)], quality=95)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

# Name, how to write it, whether it is copied.
KINDS: list[tuple[str, Callable[[Path], None], bool]] = [
    ("plain.png", lambda path: picture().save(path), False),
    ("plain.jpg", lambda path: picture().save(path, quality=90), False),
    ("grey.png", lambda path: picture().convert("L").save(path), False),
    ("grey.jpg", lambda path: picture().convert("L").save(path, quality=90), False),
    ("color16.png", write_16_bit_color, False),
    ("several.jpg", write_many_frames, False),
    ("turned.jpg", write_turned, True),
    ("turned.png", write_turned, True),
    ("photo.heic", lambda path: save_heic(picture(), path), True),
    (
        "turned.heic",
        lambda path: save_heic(picture().transpose(Image.Transpose.ROTATE_90), path, exif=exif_bytes(6)),
        True,
    ),
    ("transparent.png", write_transparent, True),
    ("palette.png", lambda path: picture().quantize(16).save(path), True),
    ("onebit.png", lambda path: picture().convert("1").save(path), True),
    ("grey16.png", write_16_bit, True),
    ("cmyk.jpg", lambda path: picture().convert("CMYK").save(path, quality=90), True),
    ("profile.png", lambda path: picture().save(path, icc_profile=swapped_channels_profile()), True),
    ("profile.jpg", lambda path: picture().save(path, icc_profile=SRGB, quality=90), True),
    ("noprofile.png", write_bad_profile, True),
    ("photo.tif", lambda path: picture().save(path), True),
    ("photo.webp", lambda path: picture().save(path, lossless=True), True),
    ("named.png", lambda path: picture(1).save(path, format="TIFF"), True),
]


@pytest.mark.usefixtures("undrawn")
def test_every_kind_of_photo_is_read_right_by_plain_pillow(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    copied = {}
    for name, write, copied[name] in KINDS:
        write(photos / name)
    scene = saved(photos, tmp_path / "scene")
    assert {photo.name for photo in scene.photos} == set(copied)
    for photo in scene.photos:
        expected = load_source_image(photos / photo.name)
        with Image.open(photo.image) as image:
            assert image.size == photo.size == (96, 64), photo.name
            assert image.mode in ("RGB", "L"), photo.name
            assert image.getexif().get(0x0112, 1) == 1, photo.name
            assert "icc_profile" not in image.info, photo.name
            assert "transparency" not in image.info, photo.name
            assert np.array_equal(np.asarray(image.convert("RGB")), expected), photo.name
        assert photo.image.is_relative_to((tmp_path / "scene" / "images").resolve()) == copied[photo.name], photo.name
        if not copied[photo.name]:
            assert photo.image == photos.resolve() / photo.name
    # The transparent one has a mask, so all have.
    assert all(photo.mask is not None for photo in scene.photos)


@pytest.mark.usefixtures("undrawn")
def test_masks_of_some_are_masks_of_all(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "masks").mkdir(parents=True)
    for name in ("1.png", "2.png", "3.png"):
        picture(int(name[0])).save(photos / name)
    write_turned(photos / "4.jpg")
    save_heic(picture(5), photos / "5.heic")
    half_mask().save(photos / "masks" / "2.png")
    # In the photo's stored pixels, 64 x 96: it turns with it.
    half_mask().transpose(Image.Transpose.ROTATE_90).save(photos / "masks" / "4.png")
    Image.new("L", (96, 64), 255).save(photos / "masks" / "3.png")
    scene = saved(photos, tmp_path / "scene", held_out=(2,))
    half = np.asarray(half_mask())
    for photo in scene.photos:
        assert photo.mask is not None
        assert photo.mask.is_relative_to((tmp_path / "scene").resolve())
        with Image.open(photo.mask) as mask:
            assert mask.mode == "L"
            assert mask.size == photo.size == (96, 64)
            expected = half if photo.name in ("2.png", "4.jpg") else np.full((64, 96), 255)
            assert np.array_equal(np.asarray(mask), expected), photo.name
    assert len({photo.mask for photo in scene.photos}) == 5


@pytest.mark.usefixtures("undrawn")
def test_masks_that_leave_everything_are_none(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "masks").mkdir(parents=True)
    picture(1).convert("RGBA").save(photos / "1.png")
    picture(2).save(photos / "2.png")
    Image.new("L", (96, 64), 255).save(photos / "masks" / "2.png")
    scene = saved(photos, tmp_path / "scene")
    assert [photo.mask for photo in scene.photos] == [None, None]
    assert not (tmp_path / "scene" / "masks").exists()
    assert [photo.image.suffix for photo in scene.photos] == [".png", ".png"]


@pytest.mark.usefixtures("undrawn")
def test_names_of_every_kind(tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "images"
    photos.mkdir(parents=True)
    # As long as file systems allow, with letters of two bytes, and alike but for their endings.
    names = ["a" * 250 + ".webp", "ü" * 125 + ".webp", "Küche 1.tif", "Küche 1.webp", "50%_{x}.png"]
    for number, name in enumerate(names):
        picture(number).save(photos / name, lossless=True)
    scene = saved(tmp_path / "photos", tmp_path / "scene")
    assert {photo.name for photo in scene.photos} == set(names)
    assert len({photo.image for photo in scene.photos}) == 5
    for photo in scene.photos:
        assert np.array_equal(np.asarray(Image.open(photo.image)), np.asarray(picture(names.index(photo.name))))


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_links_can_be_moved(tmp_path: Path) -> None:
    store, photos = tmp_path / "store", tmp_path / "photos"
    store.mkdir()
    photos.mkdir()
    for number in range(2):
        picture(number).save(store / f"object{number}.png")
        (photos / f"{number}.png").symlink_to(store / f"object{number}.png")
    saved(photos, tmp_path / "scene")
    moved = tmp_path / "far" / "away" / "photos"
    moved.parent.mkdir(parents=True)
    photos.rename(moved)
    loaded = load_photo_scene(tmp_path / "scene", moved)
    assert [photo.image for photo in loaded.photos] == [
        (store / f"object{number}.png").resolve() for number in range(2)
    ]


@pytest.mark.usefixtures("undrawn")
def test_photos_above_pillows_own_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    picture(0).save(photos / "0.png")
    picture(1).save(photos / "1.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    scene = saved(photos, tmp_path / "scene")
    assert [photo.image.parent for photo in scene.photos] == [photos.resolve()] * 2
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]


@pytest.mark.usefixtures("undrawn")
def test_views_that_are_no_files_are_refused(tmp_path: Path, make_views: Callable[..., Views]) -> None:
    views = make_views([(64, 96), (64, 96)])
    cameras = Cameras(
        T_world_camera=torch.eye(4).repeat(2, 1, 1), K=torch.eye(3).repeat(2, 1, 1), sizes=views.source_sizes
    )
    scene = Scene(
        names=views.names,
        cameras=cameras,
        points=torch.zeros(0, 3),
        colors=torch.zeros(0, 3, dtype=torch.uint8),
        point_weights=torch.zeros(0),
        point_views=torch.zeros(0, dtype=torch.int32),
        provenance={},
        format_version=1,
    )
    with pytest.raises(StorageError, match=r"0\.png is no file"):
        save_photo_scene(tmp_path / "scene", scene, views, cameras, (), photos=tmp_path)
    assert not (tmp_path / "scene").exists()


# --- what can be wrong with the files -----------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and their `scene`, one photo copied, all with masks, one held out."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "photos" / "masks").mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder / "photos" / f"{number}.{'webp' if number == 2 else 'png'}")
    half_mask().save(folder / "photos" / "masks" / "0.png")
    saved(folder / "photos", folder / "scene", held_out=(1,))
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def test_scene_and_photos_can_be_moved(copy: Path) -> None:
    loaded = load_photo_scene(copy / "scene", copy / "photos")
    for photo in loaded.photos:
        assert photo.image.is_relative_to(copy.resolve())
        assert photo.mask is not None
        assert photo.mask.is_relative_to(copy.resolve())


def changed(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["photos"][1].update(changes)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["photos"][1].pop(name)


def swapped(content: dict[str, Any]) -> None:
    content["photos"].reverse()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(format_version=2), "format version 2.*reads 1"),
        (lambda content: content.pop("format_version"), "damaged"),
        (lambda content: content.pop("photos"), "damaged"),
        (without("name"), "damaged"),
        (without("K"), "damaged"),
        (changed(size=[]), "damaged"),
        (changed(size=[1e999, 2]), "damaged"),
        (changed(size=None), "damaged"),
        (changed(K=[[1.0, 0.0], [0.0, 1.0]]), "3x3"),
        (changed(K=[[1.0], [0.0, 1.0]]), "damaged"),
        (changed(K="sharp"), "damaged"),
        (changed(T_world_camera=[[float("nan")] * 4] * 4), "4x4"),
        (changed(photo=7), "damaged"),
        (changed(photo="1\0.png"), "damaged|no longer there"),
        (changed(held_out=False), "not those of the scene"),
        (swapped, "not those of the scene"),
    ],
)
def test_a_changed_file_is_named(copy: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    path = copy / "scene" / PHOTOS_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedFileError, match=said) as raised:
        load_photo_scene(copy / "scene", copy / "photos")
    assert raised.value.path == path
    # Nothing is made anew over it without being asked.
    with pytest.raises(DamagedFileError, match=said):
        make_photo_scene(source_of(copy / "photos"), copy / "scene", QUICK)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b'{"format_version": 1, "photos": 3}']
)
def test_a_damaged_file_is_named(copy: Path, content: bytes) -> None:
    (copy / "scene" / PHOTOS_FILE).write_bytes(content)
    with pytest.raises(DamagedFileError, match="damaged"):
        load_photo_scene(copy / "scene", copy / "photos")


@pytest.mark.parametrize("gone", ["photos/1.png", "scene/images/0002_2.png", "scene/masks/0001_1.png"])
def test_a_photo_or_mask_that_is_gone_is_named(copy: Path, gone: str) -> None:
    (copy / gone).unlink()
    with pytest.raises(DamagedFileError, match=rf"{Path(gone).name} is no longer there"):
        load_photo_scene(copy / "scene", copy / "photos")


def test_a_scene_that_is_gone_or_damaged_is_named(copy: Path) -> None:
    scene = copy / "scene" / SCENE_SUBFOLDER / "scene.safetensors"
    content = bytearray(scene.read_bytes())
    content[len(content) // 2] ^= 1
    scene.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"scene\.safetensors"):
        load_photo_scene(copy / "scene", copy / "photos")
    scene.unlink()
    with pytest.raises(StorageError, match=r"scene\.safetensors"):
        load_photo_scene(copy / "scene", copy / "photos")
    (copy / "scene" / PHOTOS_FILE).unlink()
    with pytest.raises(StorageError, match="there is no scene here"):
        load_photo_scene(copy / "scene", copy / "photos")
    # What is left of it is not made over either.
    with pytest.raises(StorageError, match="belong to no scene"):
        make_photo_scene(source_of(copy / "photos"), copy / "scene", QUICK)


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_leaves_what_was_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match="full"):
        saved(copy / "photos", copy / "scene")
    assert [photo.held_out for photo in load_photo_scene(copy / "scene", copy / "photos").photos] == [
        False,
        True,
        False,
    ]
    assert {path.name for path in copy.iterdir()} == {"photos", "scene"}
