"""What older versions of torch cannot do, where no other name says it."""
import pytest
import torch
from mmengine.utils import digit_version

needs_torch_2_1 = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.1'),
    reason='torch >= 2.1')
