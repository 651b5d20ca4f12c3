"""Fine-tuning: it learns, it can be interrupted, and it survives what goes wrong."""

import dataclasses
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_samples import numbers, relative_difference, same_tensors
from lesson_samples import SHAPE, TINY, TINY_DPT, TWO_SHAPES, random_lessons, tiny_network, without_labels

from lora3d_ns.adapter import finetune as finetune_module
from lora3d_ns.adapter.finetune import FineTuned, FineTuneSettings, finetune, train_in_place
from lora3d_ns.adapter.lessons import Lessons
from lora3d_ns.adapter.lora import LoraSettings, adapted, trainable_parameters, with_adapter
from lora3d_ns.errors import AdapterError, FineTuningError, InsufficientMemoryError, InvalidDataError, SettingsError
from lora3d_ns.network.checkpoints import network_fingerprint
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.types import PseudoLabels, Views

SETTINGS = FineTuneSettings(
    lora=LoraSettings(rank=4, alpha=4.0),
    epochs=4,
    pairs_per_step=4,
    learning_rate=5e-3,
    final_learning_rate=1e-3,
    weight_decay=0.0,
    confidence_alpha=0.2,
    share_encodings=True,
    held_out_share=0.2,
    patience=100,
    precision="float32",
    recompute_activations="auto",
    seed=0,
    show_progress=False,
)


def train(
    network: Dust3r | None = None,
    lessons: tuple[Views, PseudoLabels] | None = None,
    *,
    checkpoint: Path | None = None,
    **changes: Any,
) -> FineTuned:
    views, labels = random_lessons(4) if lessons is None else lessons
    network = tiny_network() if network is None else network
    return finetune(
        views,
        labels,
        network,
        dataclasses.replace(SETTINGS, **changes),
        base_name="tiny",
        checkpoint=checkpoint,
    )


def tensors(tuned: FineTuned) -> list[torch.Tensor]:
    return list(tuned.adapter.tensors.values())


def same(first: FineTuned, second: FineTuned) -> bool:
    """Whether two trainings came to the same, bit for bit, but for the time."""
    plain = [
        (tuned.losses, tuned.held_out, tuned.held_out_errors, tuned.best_epoch, tuned.rollbacks)
        for tuned in (first, second)
    ]
    return plain[0] == plain[1] and same_tensors(tensors(first), tensors(second))


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shapes", [(SHAPE,), TWO_SHAPES], ids=["one shape", "two shapes"])
def test_it_learns_what_also_helps_pairs_it_does_not_see(shapes, precision) -> None:
    # The heads of a random network say nothing: it takes an adapter of all layers to change that.
    everything = ("qkv", "projq", "projk", "projv", "attn.proj", "fc1", "fc2")
    heads = ("downstream_head1.proj", "downstream_head2.proj")
    tuned = train(
        lessons=random_lessons(5, shapes, labelled=0.9),
        epochs=10,
        learning_rate=1e-2,
        lora=LoraSettings(rank=16, alpha=16.0, targets=(*everything, *heads)),
        precision=precision,
    )
    assert len(tuned.held_out) == 4
    # Eight unordered pairs are left, two to a step.
    assert len(tuned.losses) == 10 * 4
    assert len(tuned.held_out_errors) == 11
    # To 0.35 and 0.27 of what they were; the best epoch is the one with the least error.
    assert min(tuned.held_out_errors) < 0.5 * tuned.held_out_errors[0]
    assert sum(tuned.losses[-4:]) < 0.4 * sum(tuned.losses[:4])
    assert tuned.held_out_errors[tuned.best_epoch] == min(tuned.held_out_errors)
    assert tuned.rollbacks == 0
    assert not tuned.recomputed
    assert tuned.seconds > 0


def test_the_adapter_on_the_base_makes_the_errors_it_says() -> None:
    lessons = random_lessons(4, TWO_SHAPES)
    network = tiny_network()
    tuned = train(network, lessons)
    with torch.no_grad():
        errors = Lessons(*lessons, torch.device("cpu"), confidence_alpha=0.2).errors(
            with_adapter(network, tuned.adapter), tuned.held_out
        )
    assert float(errors.mean()) == pytest.approx(tuned.held_out_errors[tuned.best_epoch], rel=1e-5)
    assert tuned.adapter.base_name == "tiny"
    assert tuned.adapter.base_fingerprint == network_fingerprint(network)
    provenance = tuned.adapter.provenance
    assert provenance["epochs"] == tuned.best_epoch
    assert provenance["label_cutoff"] == 1.0
    assert provenance["seed"] == 0


def test_training_in_place_is_the_same_training() -> None:
    views, labels = random_lessons(4)
    tuned = train(lessons=(views, labels))
    network = adapted(tiny_network(), SETTINGS.lora, seed=SETTINGS.seed)
    errors = train_in_place(views, labels, network, SETTINGS)
    assert errors == tuned.held_out_errors
    matrices = dict(with_adapter(tiny_network(), tuned.adapter).named_parameters())
    assert all(torch.equal(value, matrices[name]) for name, value in network.named_parameters())


def test_training_in_place_changes_what_asks_for_gradients_and_nothing_else() -> None:
    network = tiny_network()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("downstream_head" in name)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    errors = train_in_place(*random_lessons(4), network, SETTINGS)
    changed = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all("downstream_head" in name for name in changed)
    assert min(errors) < errors[0]


def test_a_triplet_weight_reaches_the_steps() -> None:
    lessons = random_lessons(4)
    plain, drawn = (train(lessons=lessons, triplet_weight=weight) for weight in (0.0, 0.5))
    assert plain.losses[0] < drawn.losses[0]
    assert not same_tensors(tensors(plain), tensors(drawn))


def test_the_network_is_left_as_it_is() -> None:
    network = tiny_network()
    network.decoder_embed.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    random_state = torch.get_rng_state()
    train(network, recompute_activations="on")
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert not network.recompute_activations
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    first, again, other = train(), train(), train(seed=1)
    assert same(first, again)
    assert not same_tensors(tensors(first), tensors(other))
    assert first.losses != other.losses


def test_training_ends_when_held_out_pairs_stop_gaining_and_the_best_epoch_counts(monkeypatch) -> None:
    errors = iter([0.9, 0.5, 0.4, 0.6, 0.45, 0.5, 0.1])
    monkeypatch.setattr(finetune_module._Run, "_held_out_error", lambda _self: next(errors))
    stopped = train(epochs=30, patience=3)
    assert stopped.best_epoch == 2
    assert stopped.held_out_errors == (0.9, 0.5, 0.4, 0.6, 0.45, 0.5)
    # Three steps an epoch.
    assert len(stopped.losses) == 5 * 3
    errors = iter([0.9, 0.5, 0.4, 0.6])
    whole = train(epochs=30, patience=1)
    assert whole.best_epoch == 2
    assert same_tensors(tensors(whole), tensors(stopped))


def test_a_training_that_never_helps_leaves_the_network_as_it_was(monkeypatch) -> None:
    errors = iter([0.1, 0.5, 0.4, 0.6])
    monkeypatch.setattr(finetune_module._Run, "_held_out_error", lambda _self: next(errors))
    network = tiny_network()
    tuned = train(network, patience=2)
    assert tuned.best_epoch == 0
    views, _ = random_lessons(4)
    pair = views.images[0][None], views.images[1][None]
    with torch.no_grad():
        assert torch.equal(numbers(with_adapter(network, tuned.adapter)(*pair)), numbers(network(*pair)))


def test_without_held_out_pairs_the_last_epoch_counts() -> None:
    tuned = train(held_out_share=0.0, patience=1)
    assert tuned.best_epoch == SETTINGS.epochs
    assert tuned.held_out == ()
    assert tuned.held_out_errors == ()
    assert len(tuned.losses) == 3 * SETTINGS.epochs


def test_without_any_label_the_adapter_is_zero() -> None:
    views, labels = random_lessons(3)
    tuned = train(lessons=(views, without_labels(labels, labels.graph.edges)))
    assert tuned.best_epoch == 0
    assert tuned.losses == ()
    changes = [tensor for name, tensor in tuned.adapter.tensors.items() if ".lora_B." in name]
    assert changes
    assert all(not bool(tensor.any()) for tensor in changes)


def test_a_pair_without_labels_is_neither_learnt_nor_held_out() -> None:
    views, labels = random_lessons(3)
    alone = without_labels(labels, [edge for edge in labels.graph.edges if edge not in ((0, 1), (1, 0))])
    for seed in range(4):
        tuned = train(lessons=(views, alone), held_out_share=0.5, seed=seed, epochs=1)
        assert tuned.held_out == ()
        assert len(tuned.losses) == 1


def test_labels_of_other_photos_are_refused() -> None:
    views, labels = random_lessons(4)
    with pytest.raises(InvalidDataError):
        train(lessons=(views.select([0, 1]), labels))


# --- going on from an adapter ---------------------------------------------------------------------


def test_learning_goes_on_where_it_was() -> None:
    views, labels = random_lessons(4)
    first = train(lessons=(views, labels))
    second = finetune(
        views, labels, tiny_network(), dataclasses.replace(SETTINGS, seed=5), base_name="tiny", begun_from=first
    )
    # Another seed would hold out other pairs, and those have been learnt.
    assert train(lessons=(views, labels), seed=5, epochs=1).held_out != first.held_out
    assert second.held_out == first.held_out
    assert second.held_out_errors[0] == pytest.approx(min(first.held_out_errors), rel=1e-5)
    assert min(second.held_out_errors) < second.held_out_errors[0]
    assert sum(second.losses[:3]) < sum(first.losses[:3])
    assert not same_tensors(tensors(first), tensors(second))


def test_what_no_epoch_makes_better_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    views, labels = random_lessons(4)
    first = train(lessons=(views, labels))
    errors = iter([1.0, 1.1, 1.2, 1.3, 1.4])
    monkeypatch.setattr(finetune_module._Run, "_held_out_error", lambda _run: next(errors))
    second = finetune(views, labels, tiny_network(), SETTINGS, base_name="tiny", begun_from=first)
    assert second.best_epoch == 0
    assert len(second.losses) > 0
    assert same_tensors(tensors(first), tensors(second))


def test_pairs_held_out_that_have_lost_their_labels_are_not_replaced() -> None:
    views, labels = random_lessons(4)
    first = train(lessons=(views, labels), epochs=1)
    assert len(first.held_out) > 1
    for lost in (1, len(first.held_out)):
        fewer = without_labels(labels, first.held_out[:lost])
        second = finetune(views, fewer, tiny_network(), SETTINGS, base_name="tiny", begun_from=first)
        assert second.held_out == first.held_out[lost:]
    assert second.held_out_errors == ()


def test_an_interrupted_training_is_not_taken_for_one_that_began_elsewhere(tmp_path: Path) -> None:
    views, labels = random_lessons(4)
    first, other = train(lessons=(views, labels)), train(lessons=(views, labels), seed=5)

    def on_from(begun_from: FineTuned, checkpoint: Path | None) -> FineTuned:
        return finetune(
            views, labels, tiny_network(), SETTINGS, base_name="tiny", checkpoint=checkpoint, begun_from=begun_from
        )

    on_from(first, tmp_path / "training.pt")
    assert same(on_from(other, tmp_path / "training.pt"), on_from(other, None))


def test_an_adapter_of_another_rank_does_not_go_on() -> None:
    views, labels = random_lessons(4)
    first = train(lessons=(views, labels), epochs=1)
    of_rank_2 = dataclasses.replace(SETTINGS, lora=LoraSettings(rank=2, alpha=4.0))
    with pytest.raises(AdapterError, match=r"rank=4.*rank=2"):
        finetune(views, labels, tiny_network(), of_rank_2, base_name="tiny", begun_from=first)


# --- settings -------------------------------------------------------------------------------------


def test_further_rounds_are_never_longer_or_bolder_than_the_first() -> None:
    usual = FineTuneSettings().further()
    assert (usual.epochs, usual.learning_rate, usual.final_learning_rate) == (5, 1e-3, 1e-5)
    short = FineTuneSettings(epochs=2, learning_rate=1e-4, final_learning_rate=1e-4).further()
    assert (short.epochs, short.learning_rate, short.final_learning_rate) == (2, 1e-4, 1e-4)
    tiny = FineTuneSettings(further_learning_rate=1e-6).further()
    assert (tiny.learning_rate, tiny.final_learning_rate) == (1e-6, 1e-6)


def test_the_papers_recipe() -> None:
    paper = FineTuneSettings.paper()
    assert (paper.epochs, paper.pairs_per_step, paper.learning_rate, paper.final_learning_rate) == (10, 2, 1e-3, 1e-5)
    assert (paper.lora.rank, paper.confidence_alpha) == (16, 0.2)
    assert not paper.share_encodings
    assert paper.held_out_share == 0.0
    changed = FineTuneSettings.paper(epochs=2, seed=5, show_progress=False)
    assert (changed.epochs, changed.seed, changed.pairs_per_step) == (2, 5, 2)
    views, labels = random_lessons(4)
    tuned = finetune(views, labels, tiny_network(), changed, base_name="tiny")
    # Twelve ordered pairs, two at a time.
    assert len(tuned.losses) == 2 * 6
    assert tuned.best_epoch == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"pairs_per_step": 0},
        {"patience": 0},
        {"further_epochs": 0},
        {"further_learning_rate": 0.0},
        {"further_learning_rate": math.nan},
        {"learning_rate": 1e-6, "final_learning_rate": 1e-5},
        {"final_learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"learning_rate": math.nan},
        {"weight_decay": -0.1},
        {"confidence_alpha": 0.0},
        {"held_out_share": 0.6},
        {"held_out_share": math.nan},
        {"triplet_weight": -0.1},
        {"triplet_weight": math.inf},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError):
        dataclasses.replace(SETTINGS, **wrong)


# --- interruptions --------------------------------------------------------------------------------


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int, run: Callable[[], FineTuned]) -> None:
    """Runs until the step of this number, counted from 0, would begin."""
    original, done = finetune_module._Run._step, 0

    def counting(self, edges, rate) -> float:
        nonlocal done
        if done == step:
            raise KeyboardInterrupt
        done += 1
        return original(self, edges, rate)

    with monkeypatch.context() as patch:
        patch.setattr(finetune_module._Run, "_step", counting)
        with pytest.raises(KeyboardInterrupt):
            run()


@pytest.mark.parametrize("steps", [(0,), (3,), (4, 1, 2), (11,)], ids=str)
@pytest.mark.parametrize("save_every_s", [0.0, 1e9], ids=["saved each step", "saved each epoch"])
def test_an_interrupted_training_ends_bit_for_bit_like_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: tuple[int, ...], save_every_s: float
) -> None:
    whole = train()
    monkeypatch.setattr(finetune_module, "_SAVE_EVERY_S", save_every_s)
    checkpoint = tmp_path / "state"
    for step in steps:
        interrupted_at(monkeypatch, step, lambda: train(checkpoint=checkpoint))
    calls = counted_steps(monkeypatch)
    resumed = train(checkpoint=checkpoint)
    assert same(resumed, whole)
    done = sum(steps) if save_every_s == 0.0 else sum(step // 3 * 3 for step in steps)
    assert len(calls) == len(whole.losses) - done
    # The file of a training that has ended gives the same again, without a step.
    calls.clear()
    assert same(train(checkpoint=checkpoint), whole)
    assert calls == []


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates of the steps from here on."""
    original, rates = finetune_module._Run._step, []

    def counting(self, edges, rate) -> float:
        rates.append(rate)
        return original(self, edges, rate)

    monkeypatch.setattr(finetune_module._Run, "_step", counting)
    return rates


KILLED = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from lora3d_ns.adapter import finetune as module
import test_finetune
module._SAVE_EVERY_S = 0.0
step = module._Run._step
def announced(self, edges, rate):
    print("step", flush=True)
    return step(self, edges, rate)
module._Run._step = announced
test_finetune.train(checkpoint=Path({checkpoint!r}), epochs=10)
"""


def test_a_killed_training_goes_on_and_ends_bit_for_bit_like_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps, checkpoint = 8, tmp_path / "state"
    folder = Path(__file__).parent
    program = KILLED.format(paths=[str(folder), str(folder.parent)], checkpoint=str(checkpoint))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    for _ in range(steps):
        assert process.stdout.readline() == b"step\n"
    # In the middle of a step, or of writing.
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    rates = counted_steps(monkeypatch)
    resumed = train(checkpoint=checkpoint, epochs=10)
    # It may have got on a little before the signal reached it.
    assert 0 < len(rates) <= 10 * 3 - (steps - 1)
    assert same(resumed, train(epochs=10))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:3000] + bytes(2000) + content[5000:],
        lambda _content: b"",
        lambda _content: b"no archive at all",
    ],
    ids=["cut off", "overwritten", "empty", "something else"],
)
def test_a_damaged_file_means_beginning_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage
) -> None:
    checkpoint = tmp_path / "state"
    whole = train(checkpoint=checkpoint, epochs=2)
    assert not caplog.records
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    rates = counted_steps(monkeypatch)
    with caplog.at_level(logging.WARNING):
        anew = train(checkpoint=checkpoint, epochs=2)
    assert same(anew, whole)
    assert len(rates) == len(whole.losses)
    assert ["damaged" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "content",
    [{"format": 1}, [1, 2], {"format": 1, "key": None, "state": {}, "good": None}],
    ids=["no key", "list", "other key"],
)
def test_a_file_of_something_else_is_not_used(tmp_path: Path, content: object) -> None:
    checkpoint = tmp_path / "state"
    torch.save(content, checkpoint)
    assert same(train(checkpoint=checkpoint, epochs=1), train(epochs=1))


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    checkpoint, trace = tmp_path / "state", tmp_path / "trace"

    class Bad:
        def __reduce__(self):
            return (Path.touch, (trace,))

    torch.save({"format": 1, "key": "", "state": Bad(), "good": None}, checkpoint)
    train(checkpoint=checkpoint, epochs=1)
    assert not trace.exists()


@pytest.mark.parametrize("changed", ["labels", "photos", "settings", "network", "nothing", "bar"])
def test_only_the_state_of_the_same_training_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    checkpoint = tmp_path / "state"
    views, labels = random_lessons(4)
    network, settings = tiny_network(), dict[str, Any](epochs=2)
    train(network, (views, labels), checkpoint=checkpoint, **settings)
    if changed == "labels":
        labels = without_labels(labels, [(0, 1)])
    elif changed == "photos":
        views = dataclasses.replace(views, images=tuple(image.flip(0) for image in views.images))
    elif changed == "settings":
        settings["weight_decay"] = 0.02
    elif changed == "network":
        network = tiny_network(seed=1)
    elif changed == "bar":
        settings["show_progress"] = True
    rates = counted_steps(monkeypatch)
    again = train(network, (views, labels), checkpoint=checkpoint, **settings)
    assert same(again, train(network, (views, labels), **settings))
    assert len(rates) == (6 if changed in ("nothing", "bar") else 12)


# --- what is not finite ---------------------------------------------------------------------------


def spoiled(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[int], bool], *, how: str = "loss") -> list[float]:
    """From here on, objectives of the calls with such numbers are spoilt; returns the rates of all steps."""
    original, calls = Lessons.objective, iter(range(10**9))

    def objective(self, network, edges, *, share_encodings):
        loss = original(self, network, edges, share_encodings=share_encodings)
        if not wrong(next(calls)):
            return loss
        if how == "gradient":
            # Zero, with a gradient that is not finite.
            return loss + (loss - loss.detach()).abs().sqrt() * 0.0
        return loss * (math.nan if how == "loss" else math.inf)

    monkeypatch.setattr(Lessons, "objective", objective)
    return counted_steps(monkeypatch)


@pytest.mark.parametrize("how", ["loss", "infinite", "gradient"])
def test_a_loss_that_is_not_finite_takes_training_back_with_half_the_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    # The second step of the second epoch, three steps each.
    rates = spoiled(monkeypatch, lambda call: call == 4, how=how)
    with caplog.at_level(logging.WARNING):
        tuned = train()
    assert ["back to epoch 1" in record.message for record in caplog.records] == [True]
    assert tuned.rollbacks == 1
    assert len(tuned.losses) == len(tuned.held_out_errors[1:]) * 3 == 12
    assert all(math.isfinite(loss) for loss in tuned.losses)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors(tuned))
    # Steps 3 and 4 again, at half the rate they had.
    assert len(rates) == 14
    assert rates[5] == pytest.approx(rates[3] / 2)
    assert rates[6] == pytest.approx(rates[4] / 2)


def test_the_first_step_may_be_the_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch, lambda call: call == 0)
    tuned = train()
    assert tuned.rollbacks == 1
    assert len(tuned.losses) == 12
    assert min(tuned.held_out_errors) < tuned.held_out_errors[0]


def test_a_loss_that_is_never_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = spoiled(monkeypatch, lambda _call: True)
    with pytest.raises(FineTuningError) as caught:
        train()
    assert len(rates) == 5
    assert rates[-1] == pytest.approx(rates[0] / 16)
    assert "robust" in caught.value.way_out


def test_going_back_is_the_same_whether_interrupted_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Step 5, the last of its epoch, told by its rate and not by its number: an interruption must not shift it.
    monkeypatch.setattr(finetune_module, "_SAVE_EVERY_S", 0.0)
    original = finetune_module._Run._step
    monkeypatch.setattr(
        finetune_module._Run,
        "_step",
        lambda self, edges, rate: math.nan if 3.4e-3 < rate < 3.6e-3 else original(self, edges, rate),
    )
    whole = train()
    assert whole.rollbacks == 1
    # In the middle of the epoch that goes wrong, just before it does.
    checkpoint = tmp_path / "state"
    interrupted_at(monkeypatch, 5, lambda: train(checkpoint=checkpoint))
    assert torch.load(checkpoint, weights_only=True)["state"]["position"] == 2
    assert same(train(checkpoint=checkpoint), whole)


# --- memory ---------------------------------------------------------------------------------------


def short_of_memory(monkeypatch: pytest.MonkeyPatch, fits: Callable[[int, bool], bool], error=torch.OutOfMemoryError):
    """From here on, objectives fit where `fits(pairs, recomputed)`; returns all that were tried."""
    original, tried = Lessons.objective, []

    def objective(self, network, edges, *, share_encodings):
        tried.append((len(edges), network.recompute_activations))
        loss = original(self, network, edges, share_encodings=share_encodings)
        if not fits(*tried[-1]):
            raise error("[enforce fail at alloc_cpu.cpp] not enough memory: you tried to allocate 1 bytes")
        return loss

    monkeypatch.setattr(Lessons, "objective", objective)
    return tried


def gradient_of_a_step(**changes: Any) -> torch.Tensor:
    """Of six pairs of a network that is at the beginning of its training."""
    views, labels = random_lessons(4, TWO_SHAPES)
    settings = dataclasses.replace(SETTINGS, pairs_per_step=6, **changes)
    lessons = Lessons(views, labels, torch.device("cpu"), confidence_alpha=0.2)
    run = finetune_module._Run(
        settings, lessons, adapted(tiny_network(), settings.lora, seed=0), labels.graph.edges, ()
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    assert math.isfinite(run._step(labels.graph.edges[:6], 1e-3))
    return torch.cat([parameter.grad.flatten() for parameter in run.parameters if parameter.grad is not None])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError], ids=["CUDA", "CPU"])
@pytest.mark.parametrize(
    ("fits", "tried"),
    [
        (lambda _pairs, recomputed: recomputed, [(6, False), (6, True)]),
        (lambda pairs, _recomputed: pairs < 6, [(6, False), (6, True), (3, True), (3, True)]),
        (
            lambda pairs, _recomputed: pairs < 2,
            [(6, False), (6, True), (3, True), (2, True)] + [(1, True)] * 6,
        ),
    ],
    ids=["recomputed", "halves", "one by one"],
)
def test_out_of_memory_first_recomputes_then_halves_and_the_gradient_stays(
    monkeypatch: pytest.MonkeyPatch, fits, tried, error
) -> None:
    before = gradient_of_a_step()
    seen = short_of_memory(monkeypatch, fits, error)
    # The worst seen is 4e-7 of the largest entry.
    assert relative_difference(gradient_of_a_step(), before) < 1e-5
    assert seen == tried


def test_memory_saved_once_is_saved_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = short_of_memory(monkeypatch, lambda pairs, recomputed: pairs <= 2 and recomputed)
    tuned = train(epochs=2)
    assert tuned.recomputed
    assert tried == [(4, False), (4, True)] + [(2, True)] * (len(tried) - 2)
    plain = train(epochs=2, recompute_activations="on")
    assert relative_difference(torch.tensor(tuned.losses), torch.tensor(plain.losses)) < 1e-4


def test_held_out_pairs_may_run_out_of_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original, tried = Lessons.errors, []

    def errors(self, network, edges):
        tried.append(len(edges))
        if len(edges) > 1:
            raise torch.OutOfMemoryError
        return original(self, network, edges)

    plain = train(epochs=1)
    monkeypatch.setattr(Lessons, "errors", errors)
    tuned = train(epochs=1)
    # Both fail with four pairs at once, recomputed or not, and with two; one by one they fit, then and at the end.
    assert tried == [2, 2, 2, 1, 1, 1, 1]
    assert tuned.held_out_errors == pytest.approx(plain.held_out_errors, rel=1e-4)


@pytest.mark.parametrize("recompute_activations", ["auto", "on", "off"])
def test_where_not_even_one_pair_fits_it_says_so(monkeypatch: pytest.MonkeyPatch, recompute_activations) -> None:
    tried = short_of_memory(monkeypatch, lambda _pairs, _recomputed: False)
    with pytest.raises(InsufficientMemoryError) as caught:
        train(recompute_activations=recompute_activations)
    assert "photo size" in caught.value.way_out
    first = {"auto": [(4, False), (4, True)], "on": [(4, True)], "off": [(4, False)]}[recompute_activations]
    recomputed = recompute_activations != "off"
    assert tried == [*first, (2, recomputed), (1, recomputed)]


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def objective(*_arguments, **_options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Lessons, "objective", objective)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [TINY, TINY_DPT], ids=["linear", "dpt"])
def test_recomputed_activations_give_the_same_gradients_and_keep_less(config, precision) -> None:
    deep = dataclasses.replace(config, encoder_depth=6, decoder_depth=6)
    network = adapted(tiny_network(deep), LoraSettings(rank=2, alpha=2.0), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable_parameters(network):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    views, labels = random_lessons(3, [(32, 48)])
    lessons = Lessons(views, labels, torch.device("cpu"), confidence_alpha=0.2)
    results = []
    for network.recompute_activations in (False, True):
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            loss = lessons.objective(network, [(0, 1), (1, 0), (2, 1)], share_encodings=True)
        results.append((loss, torch.autograd.grad(loss, trainable_parameters(network)), kept))
    (plain, plain_gradient, plain_kept), (recomputed, gradient, recomputed_kept) = results
    assert torch.equal(plain, recomputed)
    assert same_tensors(list(plain_gradient), list(gradient))
    assert all(bool(part.any()) for part in gradient)
    assert recomputed_kept < 0.5 * plain_kept
