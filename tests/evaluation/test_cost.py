"""The cost of a model."""

from __future__ import annotations

from torch import Tensor, nn

import ndm
from ndm.evaluation.cost import cost


def test_the_cost_of_a_step_is_that_of_its_products() -> None:
    class Product(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.weight = nn.Linear(d, d)

        def forward(self, z: Tensor, level) -> Tensor:
            return self.weight(z)

    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Product(12))
    assert cost(model, (12,)) == 2 * 12 * 12
