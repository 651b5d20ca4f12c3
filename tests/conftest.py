from collections.abc import Callable

import pytest
from view_samples import make_views

from lora3d_ns.types import Views


@pytest.fixture(name="make_views")
def _make_views() -> Callable[..., Views]:
    return make_views
