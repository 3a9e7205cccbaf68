"""torch's counter of operations, where there is one."""
from importlib.util import find_spec

import pytest

needs_counter = pytest.mark.skipif(
    find_spec('torch.utils.flop_counter') is None, reason='torch >= 2.1')
