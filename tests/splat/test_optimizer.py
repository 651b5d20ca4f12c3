"""Adam with a unit and a factor per row, beside plain Adam."""

import io
from collections.abc import Callable, Sequence

import pytest
import torch
from gsplat.strategy.ops import duplicate, remove
from torch import Tensor
from torch.nn import Parameter

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.splat.optimizer import RATES, ScaledAdam

ROWS = 6


def gradients(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def beginning() -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def path(optimizer: torch.optim.Optimizer, parameter: Parameter, given: Sequence[Tensor]) -> list[Tensor]:
    """Where the parameter is after each step."""
    places = []
    for gradient in given:
        parameter.grad = gradient.to(parameter)
        optimizer.step()
        places.append(parameter.detach().clone())
    return places


@pytest.mark.parametrize("unit", [1.0, 0.02, 700.0])
def test_the_unit_scales_every_step(unit: float) -> None:
    plain, scaled = Parameter(beginning()), Parameter(beginning())
    optimizer = ScaledAdam([scaled], lr=0.01, eps=1e-15)
    optimizer.unit = unit
    given = gradients(20, ROWS, 3)
    expected = path(torch.optim.Adam([plain], lr=0.01, eps=1e-15), plain, given)
    for place, ours in zip(expected, path(optimizer, scaled, given), strict=True):
        torch.testing.assert_close(ours - beginning(), unit * (place - beginning()), rtol=1e-12, atol=1e-12)


def test_at_unit_one_without_rates_it_is_plain_adam_bit_for_bit() -> None:
    plain, scaled = Parameter(beginning().float()), Parameter(beginning().float())
    given = gradients(10, ROWS, 3)
    expected = path(torch.optim.Adam([plain], lr=0.01), plain, given)
    for place, ours in zip(expected, path(ScaledAdam([scaled], lr=0.01), scaled, given), strict=True):
        assert torch.equal(ours, place)


def test_the_learning_rate_that_schedulers_see_stays() -> None:
    parameter = Parameter(beginning())
    optimizer = ScaledAdam([parameter], lr=0.01)
    optimizer.unit = 50.0
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    before = beginning()
    for rate in (0.01, 0.005, 0.0025):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        path(optimizer, parameter, [torch.ones(ROWS, 3)])
        # A constant gradient moves Adam by the learning rate.
        torch.testing.assert_close(before - parameter.detach(), torch.full((ROWS, 3), 50.0 * rate).double())
        before = parameter.detach().clone()
        scheduler.step()


def test_a_scene_in_millimetres_moves_as_one_in_metres() -> None:
    """In float32, far from the origin: plain Adam's step of 1.6e-4 is less than the rounding of a coordinate there."""
    metres, millimetres = Parameter(torch.full((1, 3), 5.0)), Parameter(torch.full((1, 3), 5000.0))
    given = gradients(50, 1, 3)
    moved = []
    for parameter, unit in ((metres, 1.0), (millimetres, 1000.0)):
        optimizer = ScaledAdam([parameter], lr=1.6e-4, eps=1e-15)
        optimizer.unit = unit
        before = parameter.detach().clone()
        moved.append((path(optimizer, parameter, given)[-1] - before) / unit)
    assert float(moved[0].abs().max()) > 3e-4
    # 50 steps, each rounded to half of 4.8e-7 m: worst measured 1.9e-6 m.
    torch.testing.assert_close(moved[1], moved[0], atol=5e-6, rtol=0.0)


def test_rates_scale_rows() -> None:
    rates = torch.linspace(0.25, 1.5, ROWS, dtype=torch.float64)
    plain, scaled, vector = Parameter(beginning()), Parameter(beginning()), Parameter(beginning()[:, 0].clone())
    optimizer = ScaledAdam([scaled, vector], lr=0.01)
    optimizer.unit = 3.0
    optimizer.set_rates(scaled, rates)
    optimizer.set_rates(vector, rates.float())
    given = gradients(20, ROWS, 3)
    expected = path(torch.optim.Adam([plain], lr=0.01), plain, given)
    for gradient, place in zip(given, expected, strict=True):
        vector.grad = gradient[:, 0].clone()
        path(optimizer, scaled, [gradient])
        wanted = 3.0 * rates[:, None] * (place - beginning())
        torch.testing.assert_close(scaled.detach() - beginning(), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(vector.detach() - beginning()[:, 0], wanted[:, 0], rtol=1e-6, atol=1e-12)


def test_rates_are_set_once() -> None:
    parameter = Parameter(beginning())
    optimizer = ScaledAdam([parameter], lr=0.01)
    optimizer.set_rates(parameter, torch.full((ROWS,), 0.5))
    path(optimizer, parameter, gradients(3, ROWS, 3))
    before = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    optimizer.set_rates(parameter, torch.full((ROWS,), 0.9))
    assert set(before) == {"step", "exp_avg", "exp_avg_sq", RATES}
    for name, value in before.items():
        assert torch.equal(optimizer.state[parameter][name], value)
    assert bool((optimizer.state[parameter][RATES] == 0.5).all())


def test_rates_may_come_after_the_first_steps() -> None:
    plain, scaled = Parameter(beginning()), Parameter(beginning())
    given = gradients(6, ROWS, 3)
    expected = path(torch.optim.Adam([plain], lr=0.01), plain, given)
    optimizer = ScaledAdam([scaled], lr=0.01)
    path(optimizer, scaled, given[:3])
    assert torch.equal(scaled.detach(), expected[2])
    optimizer.set_rates(scaled, torch.full((ROWS,), 0.5))
    last = path(optimizer, scaled, given[3:])[-1]
    torch.testing.assert_close(last - expected[2], 0.5 * (expected[5] - expected[2]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "rates", [torch.ones(ROWS - 1), torch.zeros(ROWS), torch.full((ROWS,), torch.nan), -torch.ones(ROWS)]
)
def test_wrong_rates_are_refused(rates: Tensor) -> None:
    parameter = Parameter(beginning())
    optimizer = ScaledAdam([parameter], lr=0.01)
    with pytest.raises(InvalidDataError, match="rates"):
        optimizer.set_rates(parameter, rates)
    assert RATES not in optimizer.state[parameter]


def test_parameters_without_gradient_stay() -> None:
    still, rated, moving = (Parameter(beginning()) for _ in range(3))
    optimizer = ScaledAdam([{"params": [still, moving], "lr": 0.01}, {"params": [rated], "lr": 0.02}])
    optimizer.unit = 2.0
    optimizer.set_rates(rated, torch.full((ROWS,), 0.5))
    path(optimizer, moving, gradients(3, ROWS, 3))
    assert torch.equal(still.detach(), beginning())
    assert torch.equal(rated.detach(), beginning())
    assert not torch.equal(moving.detach(), beginning())
    assert int(optimizer.state[rated]["step"]) == 0


def test_a_closure_is_called_once_and_its_gradients_are_scaled() -> None:
    plain, scaled = Parameter(beginning()), Parameter(beginning())
    optimizer = ScaledAdam([scaled], lr=0.01)
    optimizer.unit = 5.0
    optimizer.set_rates(scaled, torch.full((ROWS,), 0.5))
    calls: list[Parameter] = []

    def closure_of(parameter: Parameter) -> Callable[[], float]:
        def closure() -> float:
            calls.append(parameter)
            loss = (parameter**3).sum()
            parameter.grad = torch.autograd.grad(loss, parameter)[0]
            return float(loss.detach())

        return closure

    torch.optim.Adam([plain], lr=0.01).step(closure_of(plain))
    assert optimizer.step(closure_of(scaled)) == pytest.approx(float((beginning() ** 3).sum()))
    assert len(calls) == 2
    torch.testing.assert_close(
        scaled.detach() - beginning(), 2.5 * (plain.detach() - beginning()), rtol=1e-12, atol=1e-12
    )


def test_rows_that_gsplat_adds_move_at_full_rate() -> None:
    rates = torch.linspace(0.25, 0.75, ROWS, dtype=torch.float64)
    parameters = {"means": Parameter(beginning())}
    optimizer = ScaledAdam([parameters["means"]], lr=0.01)
    optimizer.unit = 2.0
    optimizer.set_rates(parameters["means"], rates)
    path(optimizer, parameters["means"], gradients(3, ROWS, 3))
    # Rows 1 and 4 once more at the end; then row 0 goes.
    duplicate(parameters, {"means": optimizer}, {}, torch.tensor([False, True, False, False, True, False]))  # pyright: ignore[reportArgumentType]
    remove(parameters, {"means": optimizer}, {}, torch.tensor([True] + [False] * (ROWS + 1)))  # pyright: ignore[reportArgumentType]
    means = parameters["means"]
    assert means.shape == (ROWS + 1, 3)
    state = optimizer.state[means]
    # The same by plain Adam, from the same memory.
    plain = Parameter(means.detach().clone())
    adam = torch.optim.Adam([plain], lr=0.01)
    adam.state[plain] = {name: state[name].clone() for name in ("step", "exp_avg", "exp_avg_sq")}
    before = means.detach().clone()
    given = gradients(5, ROWS + 1, 3)
    last, expected = path(optimizer, means, given)[-1], path(adam, plain, given)[-1]
    factor = 2.0 * torch.cat([rates[1:], torch.ones(2).double()])[:, None]
    torch.testing.assert_close(last - before, factor * (expected - before), rtol=1e-12, atol=1e-12)


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    given = gradients(12, ROWS, 3)
    rates = torch.linspace(0.25, 1.0, ROWS)
    first = Parameter(beginning().float())
    optimizer = ScaledAdam([first], lr=0.01)
    optimizer.unit = 0.3
    optimizer.set_rates(first, rates)
    path(optimizer, first, given[:5])
    file = io.BytesIO()
    torch.save({"parameter": first.detach(), "optimizer": optimizer.state_dict()}, file)
    uninterrupted = path(optimizer, first, given[5:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Parameter(saved["parameter"].clone())
    resumed = ScaledAdam([again], lr=0.5)
    resumed.load_state_dict(saved["optimizer"])
    resumed.unit = 0.3
    # What a model says before each step: the loaded rates count.
    resumed.set_rates(again, torch.ones(ROWS))
    for place, ours in zip(uninterrupted, path(resumed, again, given[5:]), strict=True):
        assert torch.equal(ours, place)
