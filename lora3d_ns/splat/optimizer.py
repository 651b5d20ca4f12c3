"""Adam whose step is scaled: for all rows by a unit of length, and for each row by what it deserves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lora3d_ns.errors import InvalidDataError

RATES = "rates"
"""Key of the per-row factors in the optimizer's state, where densification and checkpoints find them."""


class ScaledAdam(torch.optim.Adam):
    """Adam, `x <- x + unit * r_i * step_i` for row i of every parameter.

    Adam forgets the size of gradients, so neither the unit of a scene nor the trust in a point can be told to it by
    scaling the loss. Rows that densification adds have the factor 1. The unit is no part of the state: it is the
    scene's, and has to be said again after a checkpoint was loaded.

    Attributes:
        unit: Length that the learning rate refers to.
    """

    unit: float = 1.0

    def set_rates(self, parameter: Tensor, rates: Tensor) -> None:
        """Factors of the rows of a parameter, unless some were loaded with a checkpoint.

        Args:
            parameter: One of the optimizer's.
            rates: One factor per row, greater than 0.

        Raises:
            InvalidDataError: They are not.
        """
        state = self.state[parameter]
        if RATES not in state:
            if rates.shape != parameter.shape[:1] or not bool((rates > 0).all()):
                raise InvalidDataError(
                    f"{len(rates)} rates for {len(parameter)} rows, the least {float(rates.min()):g}",
                    way_out="Give each row a factor greater than 0",
                )
            shape = (len(rates),) + (1,) * (parameter.dim() - 1)
            state[RATES] = rates.to(parameter).reshape(shape).expand_as(parameter).contiguous()
            self._complete(state, parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of Adam, scaled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rated = [
            (parameter, parameter.detach().clone(), self.state[parameter][RATES])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and RATES in self.state[parameter]
        ]
        # Through the learning rate: a step of plain Adam would be lost in the rounding of large coordinates.
        learning_rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * self.unit
        try:
            super().step()
        finally:
            for group, rate in zip(self.param_groups, learning_rates, strict=True):
                group["lr"] = rate
        for parameter, before, rates in rated:
            # New rows come with zeros for all that Adam remembers.
            factor = torch.where(rates > 0, rates, torch.ones_like(rates))
            parameter.sub_(before).mul_(factor).add_(before)
        return loss

    def _complete(self, state: dict[str, Any], parameter: Tensor) -> None:
        # Adam takes a state that is not empty for one of its own.
        state.setdefault("step", torch.tensor(0.0))
        for name in ("exp_avg", "exp_avg_sq"):
            state.setdefault(name, torch.zeros_like(parameter))
