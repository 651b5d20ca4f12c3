"""Loading and saving networks: every format, both directions, and everything that can be wrong with a file."""

import dataclasses
import errno
import json
import math
import os
import pickle
import shutil
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from checkpoint_samples import (
    TINY,
    TINY_DPT,
    assert_same_weights,
    hub_config,
    model_string,
    random_network,
    write_hub_folder,
    write_pth,
)
from safetensors.torch import load_file, save_file

from lora3d_ns.errors import (
    CheckpointArchitectureError,
    CheckpointKeysError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    CorruptCheckpointError,
    DiskSpaceError,
    SettingsError,
    UnsafeCheckpointError,
)
from lora3d_ns.network import checkpoint_files
from lora3d_ns.network.checkpoint_architecture import (
    config_from_json,
    config_from_official_arguments,
    meta_network,
    parse_model_string,
)
from lora3d_ns.network.checkpoints import (
    DEFAULT_NETWORK,
    load_network,
    network_fingerprint,
    official_state_dict,
    save_network,
    state_dict_from_official,
    weights_licence,
)
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r

# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, TINY_DPT, dataclasses.replace(TINY, descriptor_width=6)])
def test_saved_network_loads_bit_for_bit(tmp_path: Path, config: Dust3rConfig) -> None:
    network = random_network(config)
    save_network(network, tmp_path / "new" / "network.safetensors", metadata={"made_by": "a test"})
    loaded = load_network(tmp_path / "new" / "network.safetensors")
    assert loaded.config == config
    assert not loaded.training
    assert_same_weights(network, loaded)
    with safetensors.safe_open(tmp_path / "new" / "network.safetensors", framework="pt") as file:
        assert file.metadata()["made_by"] == "a test"
    # Readable like any other new file, and no temporary file is left.
    (tmp_path / "plain").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["network.safetensors"]
    assert stat.S_IMODE((tmp_path / "new/network.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_loaded_network_runs_and_trains(tmp_path: Path) -> None:
    network = random_network()
    loaded = load_network(write_pth(network, tmp_path / "network.pth"))
    images = torch.rand(2, 3, 8, 12)
    output, expected = loaded(images, images.flip(0)), network(images, images.flip(0))
    torch.testing.assert_close(output.points_first, expected.points_first, rtol=0, atol=0)
    output.confidence_second.sum().backward()
    assert loaded.decoder_embed.weight.grad is not None


def test_half_precision_halves_the_file_and_loads_as_asked(tmp_path: Path) -> None:
    network = random_network()
    save_network(network, tmp_path / "half.safetensors", dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    rounded = {name: tensor.half() for name, tensor in network.state_dict().items()}
    for dtype in (torch.float32, torch.float16):
        for name, tensor in load_network(tmp_path / "half.safetensors", dtype=dtype).state_dict().items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor.half(), rounded[name])
    assert network.decoder_embed.weight.dtype == torch.float32


@pytest.mark.parametrize("config", [TINY, TINY_DPT])
def test_hub_folder_and_single_file_beside_its_config(tmp_path: Path, config: Dust3rConfig) -> None:
    network = random_network(config)
    folder = tmp_path / "hub"
    folder.mkdir()
    text = hub_config(config) if config.head == "linear" else json.dumps(dataclasses.asdict(config))
    folder.joinpath("config.json").write_text(text)
    save_file(network.state_dict(), folder / "model.safetensors")
    assert_same_weights(load_network(folder), network)
    assert_same_weights(load_network(str(folder)), network)
    (folder / "model.safetensors").rename(folder / "other_name.safetensors")
    assert_same_weights(load_network(folder / "other_name.safetensors"), network)


def test_pth_weights_survive_a_round_trip_through_safetensors(tmp_path: Path) -> None:
    network = random_network()
    loaded = load_network(write_pth(network, tmp_path / "network.pth"))
    assert_same_weights(loaded, network)
    # Tensors mapped from one file are written to another, and then over the very file they are mapped from.
    save_network(loaded, tmp_path / "a.safetensors")
    mapped = load_network(tmp_path / "a.safetensors")
    save_network(mapped, tmp_path / "a.safetensors")
    assert_same_weights(mapped, network)
    assert_same_weights(load_network(tmp_path / "a.safetensors"), network)


@pytest.mark.parametrize("kept", ["layer_rn", "layer"])
def test_either_name_of_a_doubled_tensor_will_do(kept: str) -> None:
    network = random_network(TINY_DPT)
    official = official_state_dict(network)
    doubled = [name for name in official if "_rn." in name]
    assert len(doubled) == 16
    dropped = {name for name in doubled if (".layer_rn." in name) != (kept == "layer_rn")}
    assert len(dropped) == 8
    halved = {name: tensor for name, tensor in official.items() if name not in dropped}
    state = state_dict_from_official(halved, TINY_DPT)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_two_names_with_two_values_are_refused() -> None:
    official = official_state_dict(random_network(TINY_DPT))
    name = "downstream_head1.dpt.scratch.layer_rn.2.weight"
    official[name] = official[name] + 1.0
    with pytest.raises(CheckpointKeysError, match=r"1 with two different values .*head1.dpt.scratch.layer3_rn.weight"):
        state_dict_from_official(official, TINY_DPT)


def test_a_missing_second_decoder_is_a_free_copy_of_the_first(tmp_path: Path) -> None:
    network = random_network()
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("dec_blocks2.")}
    loaded = load_network(write_hub_folder(network, tmp_path, state))
    first, second = loaded.dec_blocks.state_dict(), loaded.dec_blocks2.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert tensor.data_ptr() != second[name].data_ptr()


def test_fingerprint_is_of_the_values_only(tmp_path: Path) -> None:
    network = random_network()
    fingerprint = network_fingerprint(network)
    assert len(fingerprint) == 64
    assert fingerprint == network_fingerprint(load_network(write_pth(network, tmp_path / "network.pth")))
    halved = random_network().half()
    assert network_fingerprint(halved) != fingerprint
    assert network_fingerprint(halved) == network_fingerprint(halved.float())
    with torch.no_grad():
        network.enc_norm.bias[3] += 1e-6
    assert network_fingerprint(network) != fingerprint


# --- the official architecture ------------------------------------------------------------------

OFFICIAL_PARAMETERS = {"dpt": 571_171_208, "linear": 532_342_784}
"""With the 768 of `mask_token` and, in the DPT network, the 2,360,320 of both heads' never used
`refinenet4.resConfUnit1`; each doubled tensor once."""


def _official_model(config: Dust3rConfig, device: str = "cpu") -> Any:
    model = pytest.importorskip("mini_dust3r.model", reason="compares with the official class")
    from lora3d_ns.network.checkpoint_architecture import official_arguments

    with torch.device(device):
        return model.AsymmetricCroCo3DStereo(**official_arguments(config))


@pytest.mark.parametrize("head", ["dpt", "linear"])
def test_parameter_count_of_the_official_networks(head: Any) -> None:
    network = meta_network(Dust3rConfig(head=head))
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == OFFICIAL_PARAMETERS[head]
    never_used = [t.numel() for name, t in network.state_dict().items() if "refinenet4.resConfUnit1" in name]
    assert sum(never_used) == (2_360_320 if head == "dpt" else 0)


@pytest.mark.parametrize("head", ["dpt", "linear"])
def test_official_names_and_shapes_at_full_size(head: Any) -> None:
    config = Dust3rConfig(head=head)
    theirs = _official_model(config, "meta").state_dict()
    ours = official_state_dict(meta_network(config))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    # ... and their configuration in both spellings is our default one.
    assert config_from_json(hub_config(config)) == config
    assert config_from_official_arguments(parse_model_string(model_string(config))) == config


@pytest.mark.parametrize("head", ["dpt", "linear"])
def test_official_model_takes_our_weights_and_gives_them_back(head: Any) -> None:
    config = Dust3rConfig(
        encoder_width=64,
        encoder_depth=2,
        encoder_heads=2,
        decoder_width=64,
        decoder_depth=12 if head == "dpt" else 2,
        decoder_heads=2,
        head=head,
    )
    theirs = _official_model(config)
    ours = Dust3r(config)
    ours.load_state_dict(state_dict_from_official(theirs.state_dict(), config), strict=True)
    back = official_state_dict(ours)
    assert set(back) == set(theirs.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    fresh = _official_model(config)
    assert not torch.equal(fresh.decoder_embed.weight, theirs.decoder_embed.weight)
    fresh.load_state_dict(back, strict=True)
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


# --- configurations -----------------------------------------------------------------------------

REAL_MODEL_STRING = (
    "AsymmetricCroCo3DStereo(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), "
    "head_type='dpt', output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
    "enc_embed_dim=1024, enc_depth=24, enc_num_heads=16, dec_embed_dim=768, dec_depth=12, dec_num_heads=12, "
    "landscape_only=True)"
)


def test_the_real_model_string() -> None:
    assert config_from_official_arguments(parse_model_string(REAL_MODEL_STRING)) == Dust3rConfig()
    assert parse_model_string(REAL_MODEL_STRING)["depth_mode"] == ("exp", -math.inf, math.inf)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("'RoPE100'", "'cosine'", "pos_embed"),
        ("'RoPE100'", "'RoPE'", "pos_embed"),
        ("'RoPE100'", "'RoPE0'", "rope_base"),
        ("pos_embed='RoPE100', ", "", "pos_embed"),
        ("'dpt'", "'catmlp+dpt'", "head_type"),
        ("'pts3d'", "'pts3d+desc24'", "output_mode"),
        ("('exp', 1, inf)", "('sigmoid', 1, inf)", "conf_mode"),
        ("('exp', 1, inf)", "None", "conf_mode"),
        ("('exp', -inf, inf)", "('exp', 0, inf)", "depth_mode"),
        ("('exp', -inf, inf)", "('cube', -inf, inf)", "depth_mode"),
        ("'ManyAR_PatchEmbed'", "'PatchEmbedMlp'", "patch_embed_cls"),
        ("landscape_only=True", "norm_im2_in_dec=False", "norm_im2_in_dec"),
        ("landscape_only=True", "two_confs=True", "two_confs"),
        ("landscape_only=True", "norm_layer=LayerNorm", "norm_layer"),
        ("landscape_only=True", "img_size=__import__('os').system('true')", "img_size"),
        ("landscape_only=True", "freeze=open('/etc/passwd').read()", "freeze"),
        ("landscape_only=True", "**{'freeze': 1}", "without names"),
        ("(pos_embed", "('RoPE100', pos_embed", "without names"),
        ("AsymmetricCroCo3DStereo", "AsymmetricMASt3R", "AsymmetricMASt3R"),
        ("AsymmetricCroCo3DStereo", "eval", "eval"),
        ("AsymmetricCroCo3DStereo", "os.system", "no constructor call"),
        ("landscape_only=True)", "", "no constructor call"),
        ("=1024", "=10**9", "enc_embed_dim"),
        ("=1024", "=1000000000", "enc_embed_dim"),
        ("=1024", "=1024.0", "enc_embed_dim"),
        ("=1024", "=True", "enc_embed_dim"),
        ("=1024", "=-1024", "enc_embed_dim"),
        ("=1024", "=1025", "encoder_width"),
        ("enc_depth=24", "enc_depth=1000000", "enc_depth"),
        ("dec_depth=12", "dec_depth=3", "decoder_depth"),
        ("dec_depth=12", "dec_depth=0", "dec_depth"),
        ("landscape_only=True", "mlp_ratio=inf", "mlp_ratio"),
        ("landscape_only=True", "mlp_ratio=0", "mlp_ratio"),
        ("landscape_only=True", "patch_size=0", "patch_size"),
        ("landscape_only=True", "patch_size='16'", "patch_size"),
        ("landscape_only=True", "freeze=" + "-" * 3000 + "1", "freeze|no constructor call"),
        ("landscape_only=True", "freeze=" + "(" * 3000, "no constructor call"),
        ("landscape_only=True", " " * 4000, "characters"),
        ("landscape_only=True", "freeze='\0'", "no constructor call"),
    ],
)
def test_unsupported_model_strings_name_the_argument(old: str, new: str, named: str) -> None:
    assert old in REAL_MODEL_STRING
    with pytest.raises(CheckpointArchitectureError, match=named):
        config_from_official_arguments(parse_model_string(REAL_MODEL_STRING.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no valid JSON"),
        ("[1, 2]", "no JSON object"),
        ("{" * 100_000, "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('{"encoder_width": 8, "colour": 3}', "colour"),
        ('{"encoder_width": 1e9}', "encoder_width"),
        ('{"encoder_width": 8, "encoder_heads": 2, "dpt_channels": [1, 2]}', "dpt_channels"),
        ('{"encoder_width": 8, "encoder_heads": 2, "head": ["dpt"]}', "head"),
        ('{"encoder_width": 8, "encoder_heads": 2, "rope_base": NaN}', "rope_base"),
        ('{"encoder_width": ' + "9" * 5000 + "}", "no valid JSON|encoder_width"),
        (" " * 1_000_001, "characters"),
    ],
)
def test_unsupported_json_configurations(text: str, named: str) -> None:
    with pytest.raises(CheckpointArchitectureError, match=named):
        config_from_json(text)


def test_absurd_sizes_are_refused_without_building_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network()
    built: list[Dust3rConfig] = []
    monkeypatch.setattr("lora3d_ns.network.checkpoint_architecture.meta_network", lambda config: built.append(config))
    path = write_pth(network, tmp_path / "network.pth", model=model_string(TINY, enc_embed_dim=10**9))
    with pytest.raises(CheckpointArchitectureError, match="enc_embed_dim=1000000000"):
        load_network(path)
    assert built == []
    monkeypatch.undo()
    # Within bounds, but 30 GB of weights that the file does not have: nothing is allocated for them.
    path = write_pth(network, path, model=model_string(TINY, enc_embed_dim=16384, enc_depth=10, mlp_ratio=8))
    with pytest.raises(CheckpointKeysError, match="missing"):
        load_network(path)


# --- tensors that do not fit --------------------------------------------------------------------


def test_missing_superfluous_and_misshapen_tensors_are_counted_and_named(tmp_path: Path) -> None:
    network = random_network()
    state = dict(network.state_dict())
    for name in [name for name in state if name.startswith("enc_blocks.0.attn.")]:
        del state[name]
    state["prediction_head.weight"] = torch.zeros(3)
    state["enc_norm.weight"] = torch.zeros(9)
    with pytest.raises(CheckpointKeysError) as caught:
        load_network(write_hub_folder(network, tmp_path, state))
    message = str(caught.value)
    assert (
        "4 missing (enc_blocks.0.attn.qkv.weight, enc_blocks.0.attn.qkv.bias, enc_blocks.0.attn.proj.weight, ...)"
        in message
    )
    assert "1 not part of the network (prediction_head.weight)" in message
    assert "1 of the wrong shape (enc_norm.weight is 9 instead of 8)" in message
    assert caught.value.path == tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_not_of_floating_point(tmp_path: Path, dtype: torch.dtype) -> None:
    network = random_network()
    state = {**network.state_dict(), "enc_norm.weight": torch.ones(8).to(dtype)}
    with pytest.raises(CheckpointKeysError, match=r"1 not of floating point \(enc_norm.weight is torch\."):
        load_network(write_hub_folder(network, tmp_path, state))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    network = random_network()
    with torch.no_grad():
        network.dec_norm.bias[5] = value
    for path in (write_hub_folder(network, tmp_path / "hub"), write_pth(network, tmp_path / "network.pth")):
        with pytest.raises(CorruptCheckpointError, match=r"dec_norm.bias holds NaN"):
            load_network(path)
    with pytest.raises(CorruptCheckpointError, match=r"dec_norm.bias holds NaN"):
        save_network(network, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_weights_too_large_for_half_precision(tmp_path: Path) -> None:
    network = random_network()
    with torch.no_grad():
        network.dec_norm.bias[5] = 1e6
    path = write_hub_folder(network, tmp_path)
    assert load_network(path).state_dict()["dec_norm.bias"][5] == 1e6
    with pytest.raises(CorruptCheckpointError, match=r"float16.*use float32"):
        load_network(path, dtype=torch.float16)


def test_a_dtype_that_is_no_floating_point(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="int8"):
        load_network(write_hub_folder(random_network(), tmp_path), dtype=torch.int8)


# --- names and paths ----------------------------------------------------------------------------


def test_default_network_and_licences() -> None:
    assert DEFAULT_NETWORK == "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    for name in (DEFAULT_NETWORK, "512_dpt", "512_linear", "224_linear"):
        assert "CC BY-NC-SA 4.0" in weights_licence(name)
    assert "Apache-2.0" in weights_licence("rooms")
    with pytest.raises(CheckpointNotFoundError, match="512_dpt, 512_linear, 224_linear, rooms"):
        weights_licence("something")


def test_the_bundled_network_or_a_clear_word_that_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lora3d_ns.network.checkpoints._BUNDLED_WEIGHTS", tmp_path / "rooms.safetensors")
    with pytest.raises(CheckpointNotFoundError, match="bundled network is not in this version"):
        load_network("rooms")
    network = random_network()
    save_network(network, tmp_path / "rooms.safetensors")
    assert_same_weights(load_network("rooms"), network)


@pytest.mark.parametrize(
    "name", ["", "nothing/here", "512_DPT", "a" * 5000, "nul\0l", "~no-such-user/x", "missing.pth", "naver/else"]
)
def test_unknown_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError):
        load_network(name)


def test_folders_and_files_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no model.safetensors"):
        load_network(tmp_path)
    save_file(random_network().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match=r"Put the config.json"):
        load_network(tmp_path)
    (tmp_path / "network.ckpt").write_bytes(b"abc")
    with pytest.raises(CheckpointArchitectureError, match=r"'.ckpt'"):
        load_network(tmp_path / "network.ckpt")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(CheckpointNotFoundError):
        load_network(tmp_path / "folder.pth")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptCheckpointError, match="no text"):
        load_network(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_files_without_permission(tmp_path: Path) -> None:
    folder = write_hub_folder(random_network(), tmp_path)
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointNotFoundError, match="Permission denied"):
        load_network(folder)


def test_a_hand_filled_folder_with_the_full_official_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = random_network()
    write_hub_folder(network, Path(DEFAULT_NETWORK))
    assert_same_weights(load_network(DEFAULT_NETWORK), network)


# --- damaged files ------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, kept: float) -> None:
    network = random_network()
    save_network(network, tmp_path / "network.safetensors")
    for path in (tmp_path / "network.safetensors", write_pth(network, tmp_path / "network.pth")):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(CorruptCheckpointError) as caught:
            load_network(path)
        assert caught.value.path == path


def test_a_flipped_bit_in_a_weight_of_a_pth(tmp_path: Path) -> None:
    path = write_pth(random_network(), tmp_path / "network.pth")
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size if "/data/" in record.filename else 0)
    whole[record.header_offset + 128 + record.file_size // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CorruptCheckpointError):
        load_network(path)


def test_pth_files_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    for content, named in (
        (OrderedDict(a=torch.zeros(2)), "no entry `model`"),
        ([1, 2, 3], "no entry `model`"),
        ({"model": {"a": torch.zeros(2)}}, r"no `args.model`"),
        ({"model": {"a": torch.zeros(2)}, "args": {"model": "x"}}, r"no `args.model`"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointArchitectureError, match=named):
            load_network(path)
    write_pth(random_network(), path, state={"a": 3})
    with pytest.raises(CorruptCheckpointError, match="no plain tensors"):
        load_network(path)
    torch.save({"model": {"a": torch.zeros(2)}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CorruptCheckpointError, match=r"before version 1.6"):
        load_network(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = write_pth(random_network(), tmp_path / "network.pth")
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
        archive.writestr("archive/data/bomb", bytes(50_000_000))
    with pytest.raises(CorruptCheckpointError):
        load_network(path)


# --- hostile files ------------------------------------------------------------------------------


class _Payload:
    """Unpickled without care, runs some code that creates the file `marker`."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> Any:
        return self.call


def _payloads(marker: Path) -> dict[str, _Payload]:
    return {
        "system": _Payload(os.system, f"touch '{marker}'"),
        "eval": _Payload(eval, f"open({str(marker)!r}, 'w').close()"),
        "exec": _Payload(exec, f"open({str(marker)!r}, 'w').close()"),
        "mkdir": _Payload(os.mkdir, str(marker)),
    }


def _write_hostile(path: Path, payload: _Payload, where: str) -> None:
    from argparse import Namespace

    network = random_network()
    args = Namespace(model=model_string(TINY))
    state: Any = official_state_dict(network)
    if where == "namespace":
        args.nested = {"deep": [(1, Namespace(inner=payload))]}
    if where == "weights":
        state = {**state, "enc_norm.weight": payload}
    if where == "key":
        args.nested = OrderedDict([("a", 1)])
    content: Any = {"args": args, "model": state}
    if where in ("beside", "legacy", "raw", "raw protocol 0", "raw protocol 4", "key"):
        content["epoch"] = payload
    if where.startswith("raw"):
        protocol = int(where.removeprefix("raw protocol ")) if "protocol" in where else 2
        path.write_bytes(pickle.dumps({"epoch": payload}, protocol=protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=where != "legacy")


@pytest.mark.parametrize(
    "where", ["beside", "namespace", "weights", "key", "legacy", "raw", "raw protocol 0", "raw protocol 4"]
)
@pytest.mark.parametrize("kind", ["system", "eval", "exec", "mkdir"])
def test_hostile_pickles_are_named_and_not_executed(tmp_path: Path, where: str, kind: str) -> None:
    marker = tmp_path / "executed"
    payload = _payloads(marker)[kind]
    path = tmp_path / "hostile.pth"
    _write_hostile(path, payload, where)
    with pytest.raises(UnsafeCheckpointError, match=rf"asks for '\w+\.{kind}'") as caught:
        load_network(path)
    assert not marker.exists()
    assert caught.value.path == path
    # The payload is a real one: careless unpickling does run it.
    pickle.loads(pickle.dumps(payload))  # noqa: S301
    assert marker.exists()


@pytest.mark.parametrize("kind", ["system", "eval", "exec"])
def test_torch_itself_is_asked_not_to_execute(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second line of defence, with the scan switched off.
    monkeypatch.setattr(checkpoint_files, "refuse_unsafe_pickle", lambda *_: None)
    marker, path = tmp_path / "executed", tmp_path / "hostile.pth"
    _write_hostile(path, _payloads(marker)[kind], "namespace")
    with pytest.raises(CorruptCheckpointError):
        load_network(path)
    assert not marker.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nest", [lambda inner: (inner, inner), lambda inner: (inner, inner, inner, 0)], ids=["2", "4"])
def test_tuples_nested_in_themselves_do_not_hang(tmp_path: Path, nest: Callable[[tuple], tuple]) -> None:
    bomb: tuple = ("grows",)
    for _ in range(60):
        bomb = nest(bomb)

    class Key:
        """Unpickles to a dictionary with the bomb as key, which has to be hashed; pickling it does not hash it."""

        def __reduce__(self) -> tuple:
            return (OrderedDict, ([[bomb, 0]],))

    path = tmp_path / "bomb.pth"
    torch.save({"model": {}, "args": Key()}, path)
    with pytest.raises(UnsafeCheckpointError, match="over and over"):
        load_network(path)


def test_allow_listing_is_undone(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    load_network(write_pth(random_network(), tmp_path / "network.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


# --- writing ------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.safetensors"
    save_network(random_network(), path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_in_rust(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for failure in (full, full_in_rust):
        monkeypatch.setattr("safetensors.torch.save_file", failure)
        with pytest.raises(DiskSpaceError, match="no room"):
            save_network(random_network(seed=1), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_disk_without_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError, match="Free some space"):
        save_network(random_network(), tmp_path / "deep" / "network.safetensors")
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointWriteError):
        save_network(random_network(), tmp_path / "file" / "network.safetensors")
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(CheckpointWriteError):
        save_network(random_network(), tmp_path / "taken.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.safetensors"]


def test_settings_of_saving(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="end in"):
        save_network(random_network(), tmp_path / "network.pth")
    with pytest.raises(SettingsError, match="lora3d_config is taken"):
        save_network(random_network(), tmp_path / "network.safetensors", metadata={"lora3d_config": "{}"})
