"""Adam whose step is scaled: for all rows by a unit of length, and for each row by what it deserves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RATES = "rates"
"""Key of the per-row factors in the optimizer's state, where densification and checkpoints find them."""


class ScaledAdam(torch.optim.Adam):
    """Adam, `x <- x + unit * r_i * step_i` for row i of every parameter.

    Adam forgets the size of gradients, so neither the unit of a scene nor the trust in a point can be told to it by
    scaling the loss. Rows that densification adds have the factor 1.

    Attributes:
        unit: Length that the learning rate refers to.
    """

    unit: float = 1.0

    def set_rates(self, parameter: Tensor, rates: Tensor) -> None:
        """Factors of the rows of a parameter, unless some were loaded with a checkpoint.

        Args:
            parameter: One of the optimizer's.
            rates: One factor per row.
        """
        state = self.state[parameter]
        if RATES not in state:
            shape = (len(rates),) + (1,) * (parameter.dim() - 1)
            state[RATES] = rates.to(parameter).reshape(shape).expand_as(parameter).contiguous()
            self._complete(state, parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of Adam, scaled."""
        before = {p: p.detach().clone() for group in self.param_groups for p in group["params"] if p.grad is not None}
        result = super().step(closure)
        for parameter, old in before.items():
            rates = self.state[parameter].get(RATES)
            if rates is None:
                parameter.sub_(old).mul_(self.unit).add_(old)
            else:
                # New rows come with zeros for all that Adam remembers.
                factor = torch.where(rates > 0, rates, torch.ones_like(rates)) * self.unit
                parameter.sub_(old).mul_(factor).add_(old)
        return result

    def _complete(self, state: dict[str, Any], parameter: Tensor) -> None:
        # Adam takes a state that is not empty for one of its own.
        state.setdefault("step", torch.tensor(0.0))
        for name in ("exp_avg", "exp_avg_sq"):
            state.setdefault(name, torch.zeros_like(parameter))
