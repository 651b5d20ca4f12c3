"""Adapters on disk: exactly what was saved comes back, peft reads ours and we read peft's, and damage is noticed."""

import dataclasses
import errno
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_samples import (
    DPT,
    LINEAR,
    numbers,
    pictures,
    random_adapter,
    relative_difference,
    said,
    same_tensors,
    small_network,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora3d_ns.adapter.lora import (
    Adapter,
    LoraSettings,
    adapted,
    load_adapter,
    save_adapter,
    trainable_parameters,
    with_adapter,
)
from lora3d_ns.errors import (
    AdapterBaseError,
    AdapterError,
    AdapterNotFoundError,
    CorruptAdapterError,
    Lora3dError,
    StorageError,
    StorageFullError,
)
from lora3d_ns.network.checkpoint_architecture import meta_network, official_arguments, official_state_dict
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.network.official import OfficialDust3r, official_class

CONFIG, WEIGHTS, OWN = "adapter_config.json", "adapter_model.safetensors", "lora3d.json"


@pytest.fixture(name="saved")
def _saved(tmp_path: Path) -> Path:
    """An adapter's folder."""
    save_adapter(random_adapter(small_network()), tmp_path / "adapter")
    return tmp_path / "adapter"


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_our_file(folder: Path) -> Path:
    """As peft leaves a folder."""
    folder.joinpath(OWN).unlink()
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the matrices in a folder that is not ours any more."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# --- back and forth -------------------------------------------------------------------------------


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network = small_network()
    settings = LoraSettings(rank=3, alpha=2.5, targets=("projv", "qkv"))
    adapter = random_adapter(network, settings=settings)
    save_adapter(adapter, tmp_path / "of" / "kitchen")
    assert {path.name for path in (tmp_path / "of" / "kitchen").iterdir()} == {CONFIG, WEIGHTS, OWN}
    assert [path.name for path in tmp_path.joinpath("of").iterdir()] == ["kitchen"]
    loaded = load_adapter(tmp_path / "of" / "kitchen", network)
    assert loaded.settings == adapter.settings
    assert (loaded.base_name, loaded.base_fingerprint) == ("small", adapter.base_fingerprint)
    assert loaded.provenance == {"scene": "kitchen", "epochs": 10}
    assert list(loaded.tensors) == list(adapter.tensors)
    assert same_tensors(list(loaded.tensors.values()), list(adapter.tensors.values()))
    assert torch.equal(said(with_adapter(network, loaded)), said(with_adapter(network, adapter)))


def test_training_goes_on_after_loading(saved: Path) -> None:
    network = small_network()
    student = with_adapter(network, load_adapter(saved))
    before = said(student)
    optimizer = torch.optim.AdamW(trainable_parameters(student), lr=1e-3)
    numbers(student(*pictures())).square().mean().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in trainable_parameters(student))
    assert not torch.equal(said(student), before)


def test_an_adapter_of_the_official_network_takes_18_1_mb(tmp_path: Path) -> None:
    student = adapted(meta_network(Dust3rConfig()), LoraSettings(), seed=0)
    tensors = {
        name.replace(".adapter.", "."): torch.zeros(parameter.shape)
        for name, parameter in student.named_parameters()
        if ".lora_" in name
    }
    adapter = Adapter(settings=LoraSettings(), tensors=tensors, base_name="512_dpt", base_fingerprint="f" * 64)
    assert adapter.parameter_count == 4_521_984
    save_adapter(adapter, tmp_path / "adapter")
    assert tmp_path.joinpath("adapter", WEIGHTS).stat().st_size == pytest.approx(18.1e6, rel=0.01)
    assert sum(path.stat().st_size for path in tmp_path.joinpath("adapter").iterdir()) == pytest.approx(
        18.1e6, rel=0.01
    )
    assert load_adapter(tmp_path / "adapter").parameter_count == 4_521_984


def test_an_adapter_of_ours_is_replaced(saved: Path) -> None:
    network = small_network()
    save_adapter(random_adapter(network, seed=5), saved)
    expected = random_adapter(network, seed=5)
    assert same_tensors(list(load_adapter(saved).tensors.values()), list(expected.tensors.values()))
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


@pytest.mark.parametrize("names", [("photo.png",), (CONFIG, WEIGHTS, OWN, "photo.png"), (CONFIG, WEIGHTS)])
def test_files_that_are_not_ours_are_left_alone(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        folder.joinpath(name).write_text(name)
    with pytest.raises(
        StorageError, match=r"no adapter of ours, such as '(photo\.png|adapter_config\.json)'"
    ) as caught:
        save_adapter(random_adapter(small_network()), folder)
    assert caught.value.path == folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: name for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_empty_folder_is_filled_and_a_file_is_not_replaced(tmp_path: Path) -> None:
    adapter = random_adapter(small_network())
    tmp_path.joinpath("empty").mkdir()
    save_adapter(adapter, tmp_path / "empty")
    assert load_adapter(tmp_path / "empty").parameter_count == adapter.parameter_count
    tmp_path.joinpath("file").write_text("mine")
    with pytest.raises(StorageError, match="file"):
        save_adapter(adapter, tmp_path / "file")
    assert tmp_path.joinpath("file").read_text() == "mine"


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, OWN])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, there_before: bool
) -> None:
    network = small_network()
    old = random_adapter(network, seed=1)
    folder = tmp_path / "adapter"
    if there_before:
        save_adapter(old, folder)
    true_open = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name == name and "w" in mode:
            with true_open(path, "wb") as file:
                file.write(b"half of i")
            raise OSError(errno.ENOSPC, "No space left on device")
        return true_open(path, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(StorageFullError) as caught:
            save_adapter(random_adapter(network, seed=2), folder)
    assert caught.value.path == folder
    assert [path.name for path in tmp_path.iterdir()] == (["adapter"] if there_before else [])
    if there_before:
        assert same_tensors(list(load_adapter(folder).tensors.values()), list(old.tensors.values()))


# --- peft -----------------------------------------------------------------------------------------


def _peft_of(network: torch.nn.Module, **changes: Any) -> Any:
    """A network wrapped by peft itself, with matrices that are not zero."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["qkv", "projq", "projk", "projv"]} | changes
    wrapped = get_peft_model(network, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped.eval()


def _saved_by_peft(folder: Path, **changes: Any) -> tuple[Path, Tensor]:
    """A folder that peft wrote for a small network, and what the network said with the adapter."""
    wrapped = _peft_of(small_network(), **changes)
    with warnings.catch_warnings():
        # Of the base's name, which peft does not know.
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder)
    return folder, said(wrapped.get_base_model())


def test_the_files_are_what_peft_writes(saved: Path, tmp_path: Path) -> None:
    folder, _ = _saved_by_peft(tmp_path / "theirs")
    contents = []
    for path in (saved / WEIGHTS, folder / WEIGHTS):
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            contents.append((file.metadata(), [(name, file.get_slice(name).get_shape()) for name in names]))
    assert contents[0] == contents[1]
    assert contents[0][1][0][0] == "base_model.model.dec_blocks.0.attn.qkv.lora_A.weight"
    ours, theirs = (json.loads(path.joinpath(CONFIG).read_text()) for path in (saved, folder))
    assert ours.pop("base_model_name_or_path") == "small"
    assert sorted(ours.pop("target_modules")) == sorted(theirs["target_modules"])
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("config", [LINEAR, DPT])
@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
@torch.no_grad()
def test_peft_puts_our_adapter_on_the_official_network(
    tmp_path: Path, config: Dust3rConfig, shape: tuple[int, int]
) -> None:
    pytest.importorskip("mini_dust3r", reason="compares with the official class")
    from peft import PeftModel

    network = small_network(config)
    adapter = random_adapter(network)
    save_adapter(adapter, tmp_path / "adapter")
    official = _official(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = PeftModel.from_pretrained(official, str(tmp_path / "adapter"))
    assert wrapped.peft_config["default"].base_model_name_or_path == "small"
    theirs = _said_by_official(wrapped.get_base_model(), shape)
    ours = numbers(with_adapter(network, adapter)(*pictures(shape=shape)))
    # The tolerance of the comparison without adapters, and far less than what the adapter changes.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with wrapped.disable_adapter():
        assert relative_difference(theirs, _said_by_official(wrapped.get_base_model(), shape)) > 1e-2


@pytest.mark.filterwarnings("ignore::FutureWarning")
@torch.no_grad()
def test_an_adapter_that_peft_saved_of_the_official_network_loads_here(tmp_path: Path) -> None:
    pytest.importorskip("mini_dust3r", reason="compares with the official class")
    network = small_network()
    wrapped = _peft_of(_official(network))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter", network)
    assert (adapter.base_name, adapter.base_fingerprint, adapter.provenance) == ("", "", {})
    assert adapter.settings == LoraSettings(rank=4, alpha=6.0, targets=("projk", "projq", "projv", "qkv"))
    ours = said(with_adapter(network, adapter))
    torch.testing.assert_close(ours, _said_by_official(wrapped.get_base_model()), rtol=1e-4, atol=1e-5)
    assert relative_difference(ours, said(network)) > 1e-2


def _official(network: Dust3r) -> Any:
    with torch.random.fork_rng(devices=[]):
        model = official_class()(**official_arguments(network.config)).eval()
    # A copy, since peft changes the model that it is given.
    model.load_state_dict(official_state_dict(network), strict=True)
    return model


def _said_by_official(model: Any, shape: tuple[int, int] = (32, 48)) -> Tensor:
    official = OfficialDust3r(model)
    first, second = (official.encode(images) for images in pictures(shape=shape))
    return numbers(official.decode(first, second))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"target_modules": r".*dec_blocks\.\d\.attn\.qkv"},
        {"exclude_modules": ["enc_blocks.1.attn.qkv"]},
        {"lora_alpha": 9.25, "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"target_modules": ["enc_blocks.0.mlp.fc1", "cross_attn.proj"]},
    ],
)
def test_plain_lora_of_peft_in_all_its_spellings(tmp_path: Path, changes: dict[str, object]) -> None:
    folder, expected = _saved_by_peft(tmp_path / "theirs", **changes)
    network = small_network()
    ours = said(with_adapter(network, load_adapter(folder, network)))
    assert relative_difference(expected, said(network)) > 1e-3
    assert relative_difference(ours, expected) < 1e-5
    # And once more through our own files.
    save_adapter(load_adapter(folder), tmp_path / "ours")
    assert torch.equal(said(with_adapter(network, load_adapter(tmp_path / "ours"))), ours)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"projq": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"projq": 2}}, "alpha_pattern"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["dec_norm"]}, "modules_to_save"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
def test_more_than_plain_lora_is_refused_by_name(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    folder, _ = _saved_by_peft(tmp_path / "theirs", **changes)
    with pytest.raises(AdapterError, match=f"no plain LoRA: .*{problem}"):
        load_adapter(folder)


def test_another_method_of_peft_is_refused(saved: Path) -> None:
    change_json(saved / CONFIG, peft_type="IA3")
    with pytest.raises(AdapterError, match="no plain LoRA: its type is 'IA3'"):
        load_adapter(saved)


# --- the wrong base -------------------------------------------------------------------------------


def test_a_network_given_has_to_be_the_base(saved: Path) -> None:
    with pytest.raises(AdapterBaseError, match="made for 'small'"):
        load_adapter(saved, small_network(seed=1))
    load_adapter(without_our_file(saved), small_network(seed=1))
    with pytest.raises(AdapterBaseError, match=r"enc_blocks\.0\.attn\.qkv maps"):
        load_adapter(saved, small_network(dataclasses.replace(LINEAR, encoder_width=128)))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_files(saved: Path, name: str) -> None:
    saved.joinpath(name).unlink()
    with pytest.raises(AdapterNotFoundError, match=f"no {name}") as caught:
        load_adapter(saved)
    assert caught.value.path == saved


def test_nothing_there(tmp_path: Path, saved: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", saved / CONFIG):
        with pytest.raises(AdapterNotFoundError):
            load_adapter(folder)
    saved.joinpath(WEIGHTS).rename(saved / "adapter_model.bin")
    with pytest.raises(AdapterNotFoundError, match="safe_serialization=True"):
        load_adapter(saved)


@pytest.mark.parametrize(
    ("name", "ours"), [(CONFIG, True), (WEIGHTS, True), (OWN, True), (CONFIG, False), (WEIGHTS, False)]
)
def test_files_cut_off_anywhere(saved: Path, name: str, ours: bool) -> None:
    if not ours:
        without_our_file(saved)
    path = saved / name
    whole = path.read_bytes()
    # The last character of the JSON files is the end of a line, which may be missing.
    last = len(whole) - 2
    for length in sorted({0, 1, 7, 8, 9, *range(0, last, max(1, last // 25)), last}):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptAdapterError) as caught:
            load_adapter(saved)
        assert caught.value.path == path
        assert "again" in caught.value.way_out
    path.write_bytes(whole)
    load_adapter(saved)


def test_every_changed_byte_of_the_matrices_is_noticed(saved: Path) -> None:
    path = saved / WEIGHTS
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptAdapterError, match=r"checksum.*delete lora3d\.json"):
            load_adapter(saved)


def test_changed_bytes_anywhere_raise_nothing_but_named_errors(saved: Path) -> None:
    network = small_network()
    for ours in (True, False):
        if not ours:
            without_our_file(saved)
        for path in sorted(saved.iterdir()):
            whole = path.read_bytes()
            # The header of the matrices' file; their values are what they are.
            end = min(len(whole), 2000)
            for place in range(0, end, max(1, end // 80)):
                for value in (0, ord("9"), ord('"'), 0xFF):
                    path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
                    try:
                        load_adapter(saved, network)
                    except Lora3dError:
                        continue
            path.write_bytes(whole)
    load_adapter(saved, network)


def nan(tensors: dict[str, Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = torch.nan


def one_less(tensors: dict[str, Tensor]) -> None:
    tensors.pop("base_model.model.enc_blocks.0.attn.qkv.lora_B.weight")


def one_more(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.enc_blocks.0.attn.qkv.lora_magnitude_vector"] = torch.zeros(3)


def another_layer(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.dec_norm.lora_A.weight"] = torch.zeros(4, 3)
    tensors["base_model.model.dec_norm.lora_B.weight"] = torch.zeros(3, 4)


def another_rank(tensors: dict[str, Tensor]) -> None:
    name = "base_model.model.enc_blocks.0.attn.qkv.lora_B.weight"
    tensors[name] = tensors[name][:, :3].contiguous()


def whole_numbers(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.long()


def twice(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("base_model.model.")] = tensors[name].clone()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (nan, "holds NaN"),
        (one_less, "no counterpart"),
        (one_more, "no LoRA matrix"),
        (another_layer, "'dec_norm' is adapted, but not among the target_modules"),
        (another_rank, "does not fit rank 4"),
        (whole_numbers, "of type torch.int64"),
        (twice, "twice"),
        (dict.clear, "empty"),
    ],
)
def test_matrices_that_contradict(saved: Path, change: Callable[[dict[str, Tensor]], object], problem: str) -> None:
    without_our_file(saved)
    rewrite(saved, change)
    with pytest.raises(CorruptAdapterError, match=problem):
        load_adapter(saved)


def test_half_precision_is_widened(saved: Path) -> None:
    without_our_file(saved)
    expected = load_adapter(saved)
    rewrite(saved, lambda tensors: tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()}))
    loaded = load_adapter(saved)
    for name, tensor in loaded.tensors.items():
        assert torch.equal(tensor, expected.tensors[name].bfloat16().float())


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 5},
        {"r": -4, "use_rslora": True},
        {"r": "4"},
        {"r": True},
        {"r": None},
        {"lora_alpha": "6"},
        {"lora_alpha": 0},
        {"lora_alpha": 10**400},
        {"lora_alpha": float("nan")},
        {"target_modules": ["projq"]},
        {"target_modules": []},
        {"target_modules": [1]},
        {"target_modules": None},
        {"target_modules": 3},
        {"base_model_name_or_path": 3},
    ],
)
def test_a_configuration_that_contradicts(saved: Path, changes: dict[str, object]) -> None:
    change_json(saved / CONFIG, **changes)
    with pytest.raises(CorruptAdapterError) as caught:
        load_adapter(saved)
    assert caught.value.path in (saved / CONFIG, saved / WEIGHTS)


@pytest.mark.parametrize("text", ["[1]", "{}", "3", "[" * 100_000, '{"a": ' * 50_000, '{"r": 1e999'])
@pytest.mark.parametrize("name", [CONFIG, OWN])
def test_json_of_another_kind(saved: Path, name: str, text: str) -> None:
    saved.joinpath(name).write_text(text)
    with pytest.raises(CorruptAdapterError):
        load_adapter(saved)


@pytest.mark.parametrize("changes", [{"base_fingerprint": 3}, {"provenance": [1]}, {"weights_sha256": None}])
def test_our_own_file_contradicts(saved: Path, changes: dict[str, object]) -> None:
    change_json(saved / OWN, **changes)
    with pytest.raises(CorruptAdapterError):
        load_adapter(saved)


def test_a_later_version_is_refused_by_name(saved: Path) -> None:
    change_json(saved / OWN, version=2)
    with pytest.raises(AdapterError, match="format version 2, and this package reads 1"):
        load_adapter(saved)


def test_a_replacement_that_was_killed_half_way_is_settled(saved: Path) -> None:
    # The moment between the two renames of `replace_folder`.
    saved.rename(saved.parent / ".adapter.lora3d-old")
    assert load_adapter(saved).parameter_count > 0
    shutil.rmtree(saved)
