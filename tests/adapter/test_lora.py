"""LoRA on a network: what it adds, and that the base never notices."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from adapter_samples import (
    DPT,
    LINEAR,
    attention_parameter_count,
    numbers,
    pictures,
    random_adapter,
    relative_difference,
    said,
    same_tensors,
    small_network,
)

from lora3d_ns.adapter import adapter as adapter_module
from lora3d_ns.adapter.lora import (
    Adapter,
    LoraSettings,
    adapted,
    adapter_of,
    base_disabled,
    merged,
    trainable_parameters,
    unmerged,
    with_adapter,
)
from lora3d_ns.errors import AdapterBaseError, AdapterError, SettingsError
from lora3d_ns.network.checkpoint_architecture import meta_network
from lora3d_ns.network.checkpoints import load_network, network_fingerprint
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import predict_pairs

CLOSE = 1e-5
"""Of the outputs' scale, as the project asks; the worst measured over three seeds of both networks is 7.4e-7."""


def train(network: Dust3r, steps: int = 1) -> None:
    """Gradient steps towards other outputs."""
    optimizer = torch.optim.SGD(trainable_parameters(network), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        numbers(network(*pictures())).square().mean().backward()
        optimizer.step()


def taken_apart(network: Dust3r, **changes: object) -> Adapter:
    return adapter_of(
        network,
        **{"base_name": "small", "base_fingerprint": "", "provenance": {}, **changes},  # pyright: ignore[reportArgumentType]
    )


# --- size -----------------------------------------------------------------------------------------


def test_on_the_official_network_it_has_4521984_parameters_and_needs_no_memory() -> None:
    config = Dust3rConfig()
    network = adapted(meta_network(config), LoraSettings(), seed=0)
    trainable = trainable_parameters(network)
    assert sum(parameter.numel() for parameter in trainable) == 4_521_984 == attention_parameter_count(config, 16)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert {id(parameter) for parameter in trainable} == {
        id(parameter) for parameter in network.parameters() if parameter.requires_grad
    }


def test_on_the_bundled_network_it_has_as_many_parameters_as_the_configuration_says() -> None:
    network = load_network("rooms")
    config = network.config
    encoder = config.encoder_depth * 16 * 4 * config.encoder_width
    decoders = 2 * config.decoder_depth * 16 * (4 + 3 * 2) * config.decoder_width
    adapter = taken_apart(adapted(network, LoraSettings(), seed=0))
    assert adapter.parameter_count == encoder + decoders == attention_parameter_count(config, 16)
    assert adapter.nbytes == 4 * adapter.parameter_count
    assert len(adapter.layers) == config.encoder_depth + 2 * 4 * config.decoder_depth


# --- a fresh adapter ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LINEAR, DPT])
def test_a_fresh_adapter_changes_no_bit(config: Dust3rConfig) -> None:
    network = small_network(config)
    student = adapted(network, LoraSettings(), seed=0)
    assert isinstance(student, Dust3r)
    assert not student.training
    assert torch.equal(said(student), said(network))


def test_matrices_are_float32_beside_a_base_in_half_precision() -> None:
    network = small_network().to(torch.bfloat16)
    student = adapted(network, LoraSettings(), seed=0)
    assert {parameter.dtype for parameter in trainable_parameters(student)} == {torch.float32}
    assert torch.equal(said(student), said(network))
    train(student)
    assert not torch.equal(said(student), said(network))


def test_pairs_are_predicted_with_an_adapted_network_as_with_any(make_views: Callable) -> None:
    views = make_views([(32, 48), (48, 32), (32, 32)])
    graph = build_pair_graph(CompleteGraph(), 3)
    network = small_network()
    ours = predict_pairs(views, graph, adapted(network, LoraSettings(), seed=0)).pairs
    theirs = predict_pairs(views, graph, network).pairs
    assert len(ours) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.points_first, other.points_first)
        assert torch.equal(one.confidence_second, other.confidence_second)


def test_a_is_drawn_from_the_seed_alone() -> None:
    network = small_network()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = taken_apart(adapted(network, LoraSettings(), seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (taken_apart(adapted(network, LoraSettings(), seed=seed)) for seed in (3, 4))
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
        if ".lora_A." in name:
            assert not torch.equal(tensor, other.tensors[name])
            bound = 1 / math.sqrt(tensor.shape[1])
            assert 0.9 * bound < float(tensor.abs().max()) <= bound
            assert abs(float(tensor.mean())) < 0.2 * bound
        else:
            assert not tensor.any()


def test_the_base_is_shared_and_untouched() -> None:
    network = small_network()
    adapter = random_adapter(network)
    for parameter in list(network.parameters())[::3]:
        parameter.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    modules, identities = list(network.modules()), [id(parameter) for parameter in network.parameters()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attributes = set(vars(network))
    student = adapted(network, LoraSettings(), seed=0)
    train(student)
    with base_disabled(student):
        pass
    unmerged(merged(network, adapter), adapter)
    train(with_adapter(network, adapter))

    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert [id(parameter) for parameter in network.parameters()] == identities
    assert all(ours is theirs for ours, theirs in zip(network.modules(), modules, strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert set(vars(network)) == attributes
    assert list(network.state_dict()) == list(state)
    assert same_tensors(list(network.state_dict().values()), list(state.values()))
    # One base in memory.
    places = {tensor.data_ptr() for tensor in network.state_dict().values()}
    others = [tensor for name, tensor in student.state_dict().items() if ".lora_" not in name]
    assert {tensor.data_ptr() for tensor in others} == places
    assert not any(p.requires_grad for name, p in student.named_parameters() if ".lora_" not in name)


# --- training -------------------------------------------------------------------------------------


def test_one_step_changes_what_is_said_and_switched_off_it_is_the_base() -> None:
    network = small_network()
    student = adapted(network, LoraSettings(), seed=0)
    train(student)
    changed = said(student)
    assert relative_difference(changed, said(network)) > 1e-4
    frozen = trainable_parameters(student)[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in student.parameters()]
    with base_disabled(student):
        assert torch.equal(said(student), said(network))
        with base_disabled(student):
            assert torch.equal(said(student), said(network))
        assert torch.equal(said(student), said(network))
    assert torch.equal(said(student), changed)
    assert not frozen.requires_grad
    assert [parameter.requires_grad for parameter in student.parameters()] == flags


def test_switched_on_again_after_an_error() -> None:
    student = with_adapter(network := small_network(), random_adapter(network))
    before = said(student)

    def fail() -> None:
        with base_disabled(student):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(said(student), before)


def test_switching_off_between_forward_and_backward_leaves_the_gradients_right() -> None:
    network = small_network()
    adapter = random_adapter(network)
    gradients = []
    for switch in (False, True):
        student = with_adapter(network, adapter)
        loss = numbers(student(*pictures())).square().mean()
        if switch:
            with base_disabled(student):
                loss = loss + 0.0 * said(student).mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in trainable_parameters(student)])
    assert same_tensors(*gradients)


def test_a_plain_network_has_nothing_to_train_or_to_switch_off() -> None:
    network = small_network()
    assert trainable_parameters(network) == []
    with base_disabled(network):
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_what_was_learned_can_be_put_on_the_base_again_and_trained_further() -> None:
    network = small_network()
    straight = adapted(network, LoraSettings(rank=3, alpha=7.0), seed=0)
    train(straight, steps=2)
    interrupted = adapted(network, LoraSettings(rank=3, alpha=7.0), seed=0)
    train(interrupted)
    halfway = taken_apart(interrupted, base_fingerprint=network_fingerprint(network))
    kept = {name: tensor.clone() for name, tensor in halfway.tensors.items()}
    continued = with_adapter(network, halfway)
    assert torch.equal(said(continued), said(interrupted))
    train(continued)
    assert torch.equal(said(continued), said(straight))
    # Further training of either is not that of the adapter taken out.
    train(interrupted)
    assert same_tensors(list(halfway.tensors.values()), list(kept.values()))


# --- merging and adding ---------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LINEAR, DPT])
def test_merged_says_what_the_adapter_says_and_unmerged_what_the_base_says(config: Dust3rConfig) -> None:
    network = small_network(config)
    adapter = random_adapter(network)
    plain = merged(network, adapter)
    assert list(plain.state_dict()) == list(network.state_dict())
    assert {type(module) for module in plain.modules()} == {type(module) for module in network.modules()}
    assert relative_difference(said(plain), said(network)) > 1e-2
    assert relative_difference(said(plain), said(with_adapter(network, adapter))) < CLOSE
    back = unmerged(plain, adapter)
    assert relative_difference(said(back), said(network)) < CLOSE
    for name, tensor in plain.state_dict().items():
        adapted_here = name.removesuffix(".weight") in adapter.layers
        assert (tensor.data_ptr() != network.state_dict()[name].data_ptr()) == adapted_here
    torch.testing.assert_close(dict(back.state_dict()), dict(network.state_dict()), rtol=0, atol=1e-6)


def test_the_change_is_alpha_over_rank_b_a() -> None:
    network = small_network()
    adapter = random_adapter(network, settings=LoraSettings(rank=4, alpha=6.0, targets=("projk",)))
    a = adapter.tensors["dec_blocks2.1.cross_attn.projk.lora_A.weight"].double()
    b = adapter.tensors["dec_blocks2.1.cross_attn.projk.lora_B.weight"].double()
    weight = network.get_parameter("dec_blocks2.1.cross_attn.projk.weight").double()
    ours = merged(network, adapter).get_parameter("dec_blocks2.1.cross_attn.projk.weight")
    torch.testing.assert_close(ours.double(), weight + 1.5 * b @ a, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", [None, (0.25, -2.0)])
def test_several_adapters_add(weights: tuple[float, float] | None) -> None:
    network = small_network()
    one = random_adapter(network, seed=1)
    two = random_adapter(network, seed=2, settings=LoraSettings(rank=7, alpha=3.0, targets=("qkv", "mlp.fc1")))
    together = with_adapter(network, one, two, weights=weights)
    assert torch.equal(said(with_adapter(network, (one, two), weights=weights)), said(together))
    base = network.state_dict()
    expected = {name: tensor.clone() for name, tensor in base.items()}
    for adapter, weight in zip((one, two), weights or (1.0, 1.0), strict=True):
        for name, tensor in merged(network, adapter).state_dict().items():
            expected[name] += weight * (tensor - base[name])
    summed = small_network()
    summed.load_state_dict(expected)
    assert relative_difference(said(summed), said(network)) > 1e-2
    assert relative_difference(said(together), said(summed)) < CLOSE
    with base_disabled(together):
        assert torch.equal(said(together), said(network))
    assert len(trainable_parameters(together)) == len(one.tensors) + len(two.tensors)


def test_a_weight_becomes_part_of_alpha() -> None:
    network = small_network()
    one, two = random_adapter(network, seed=1), random_adapter(network, seed=2)
    network_of_both = with_adapter(network, one, two, weights=(1.0, 0.5))
    first = taken_apart(network_of_both)
    second = taken_apart(network_of_both, name="adapter_2")
    assert (first.settings, second.settings) == (one.settings, dataclasses.replace(two.settings, alpha=3.0))
    assert same_tensors(list(second.tensors.values()), list(two.tensors.values()))
    assert torch.equal(said(with_adapter(network, two, weights=[0.5])), said(with_adapter(network, second)))
    assert torch.equal(said(with_adapter(network, one, weights=[0.0])), said(network))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0), (1.0, math.nan)])
def test_weights_are_one_number_for_each(weights: tuple[float, ...]) -> None:
    network = small_network()
    with pytest.raises(SettingsError, match="2 adapters with weights"):
        with_adapter(network, random_adapter(network), random_adapter(network), weights=weights)
    with pytest.raises(SettingsError, match="0 adapters"):
        with_adapter(network)


# --- the wrong base -------------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_refused() -> None:
    network, other = small_network(), small_network(seed=1)
    adapter = random_adapter(network)
    for put_on in (with_adapter, merged):
        with pytest.raises(AdapterBaseError, match="made for 'small'") as caught:
            put_on(other, adapter)
        for base in (network, other):
            assert network_fingerprint(base)[:12] in str(caught.value)
        assert "calibrate this one" in caught.value.way_out
        with pytest.raises(AdapterBaseError):
            put_on(network, adapter, fingerprint=network_fingerprint(other))
        put_on(other, dataclasses.replace(adapter, base_fingerprint=""))


def test_the_base_is_read_once_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    adapter, fingerprint = random_adapter(network), network_fingerprint(network)
    calls = []
    monkeypatch.setattr(adapter_module, "network_fingerprint", lambda network: calls.append(network) or fingerprint)
    with_adapter(network, adapter, adapter)
    assert calls == [network]
    with_adapter(network, adapter, fingerprint=fingerprint)
    merged(network, adapter, fingerprint=fingerprint)
    with_adapter(network, dataclasses.replace(adapter, base_fingerprint=""))
    assert calls == [network]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"encoder_width": 128}, "enc_blocks.0.attn.qkv maps 64 to 192 values in the adapter and 128 to 384"),
        ({"encoder_depth": 1}, "enc_blocks.1.attn.qkv is to be adapted, but only the adapter"),
        ({"decoder_depth": 3}, "dec_blocks.2.attn.qkv is to be adapted, but only the network"),
    ],
)
def test_an_adapter_of_unknown_base_has_to_fit_at_least(changes: dict[str, int], problem: str) -> None:
    adapter = dataclasses.replace(random_adapter(small_network()), base_fingerprint="")
    other = small_network(dataclasses.replace(LINEAR, **changes))  # pyright: ignore[reportArgumentType]
    for put_on in (with_adapter, merged, unmerged):
        with pytest.raises(AdapterBaseError, match=problem.replace(".", r"\.")):
            put_on(other, adapter)


def test_a_network_that_carries_an_adapter_is_no_base() -> None:
    network = small_network()
    adapter = random_adapter(network)
    student = adapted(network, LoraSettings(), seed=0)
    for put_on in (with_adapter, merged, unmerged):
        with pytest.raises(AdapterError, match="already carries"):
            put_on(student, adapter)
    with pytest.raises(AdapterError, match="already carries"):
        adapted(student, LoraSettings(), seed=0)


# --- settings and contradictions ------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"rank": -1},
        {"rank": True},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"targets": ()},
        {"targets": ("",)},
        {"targets": ("qkv", "qkv")},
    ],
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))):
        LoraSettings(**settings)  # pyright: ignore[reportArgumentType]


def test_layers_are_named_by_the_end_of_their_names() -> None:
    network = small_network()
    adapter = random_adapter(network, settings=LoraSettings(targets=("attn.proj", "dec_blocks.1.mlp.fc2")))
    assert adapter.layers == (
        "dec_blocks.0.attn.proj",
        "dec_blocks.1.attn.proj",
        "dec_blocks.1.mlp.fc2",
        "dec_blocks2.0.attn.proj",
        "dec_blocks2.1.attn.proj",
        "enc_blocks.0.attn.proj",
        "enc_blocks.1.attn.proj",
    )
    assert relative_difference(said(with_adapter(network, adapter)), said(merged(network, adapter))) < CLOSE
    with pytest.raises(SettingsError, match=r"'proj' also means patch_embed\.proj, which is no linear layer"):
        adapted(network, LoraSettings(targets=("proj",)), seed=0)
    with pytest.raises(SettingsError, match="no layer called 'kv'"):
        adapted(network, LoraSettings(targets=("qkv", "kv")), seed=0)


@pytest.mark.parametrize("name", ["", "a.b", "keys"])
def test_names_that_no_module_can_have(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be called"):
        adapted(small_network(), LoraSettings(), seed=0, name=name)


def test_an_adapter_goes_by_its_name() -> None:
    student = adapted(small_network(), LoraSettings(), seed=0, name="kitchen")
    assert taken_apart(student, name="kitchen").settings == LoraSettings()
    with pytest.raises(AdapterError, match="no adapter called 'adapter'"):
        taken_apart(student)
    with pytest.raises(AdapterError, match="no adapter called 'adapter'"):
        taken_apart(small_network())


A, B = "enc_blocks.0.attn.qkv.lora_A.weight", "enc_blocks.0.attn.qkv.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({}, "empty"),
        ({A: torch.zeros(2, 5)}, "no counterpart lora_B"),
        ({B: torch.zeros(5, 2)}, "no counterpart lora_A"),
        ({A: torch.zeros(3, 5), B: torch.zeros(5, 2)}, r"lora_A.* \(3, 5\), which does not fit rank 2"),
        ({A: torch.zeros(2, 5), B: torch.zeros(2, 5)}, r"lora_B.* \(2, 5\), which does not fit rank 2"),
        ({A: torch.zeros(2, 5), B: torch.full((5, 2), math.nan)}, "lora_B.weight holds NaN"),
        ({A: torch.full((2, 5), math.inf), B: torch.zeros(5, 2)}, "lora_A.weight holds NaN or inf"),
        ({"qkv.weight": torch.zeros(2, 5)}, "no LoRA matrix"),
        ({A.replace("weight", "bias"): torch.zeros(2, 5)}, "no LoRA matrix"),
        ({".lora_A.weight": torch.zeros(2, 5), ".lora_B.weight": torch.zeros(5, 2)}, "no LoRA matrix"),
    ],
)
def test_matrices_that_contradict_each_other(tensors: dict[str, torch.Tensor], problem: str) -> None:
    with pytest.raises(AdapterError, match=problem):
        Adapter(settings=LoraSettings(rank=2), tensors=tensors, base_name="", base_fingerprint="")


def test_a_network_that_diverged_gives_no_adapter() -> None:
    student = adapted(small_network(), LoraSettings(), seed=0)
    with torch.no_grad():
        trainable_parameters(student)[5].fill_(math.inf)
    with pytest.raises(AdapterError, match="NaN or infinite"):
        taken_apart(student)


def test_provenance_is_plain_json() -> None:
    adapter = random_adapter(small_network())
    for value in (math.nan, {1, 2}, torch.ones(1)):
        with pytest.raises(AdapterError, match="no plain JSON"):
            dataclasses.replace(adapter, provenance={"value": value})
