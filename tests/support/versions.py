"""What older versions cannot do, where no other name says it."""
import inspect
from importlib.util import find_spec

import mmengine
import pytest
import torch
from mmengine.runner import IterBasedTrainLoop
from mmengine.utils import digit_version

TORCH_2_1 = digit_version(torch.__version__) >= digit_version('2.1')
needs_torch_2_1 = pytest.mark.skipif(not TORCH_2_1, reason='torch >= 2.1')
needs_checked_loading = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='older ones load without the check, and mmengine does not ask for it')
needs_mmengine_0_9 = pytest.mark.skipif(  # with activation_checkpointing
    digit_version(mmengine.__version__) < digit_version('0.9'),
    reason='mmengine >= 0.9')
RESUMES_ITERATIONS = 'self._iter > 0' in inspect.getsource(
    IterBasedTrainLoop.run)
STARTS_OVER = ('mmengine 0.8.3 does not advance the data loader when it '
               'resumes iterations')


def with_its_host(path):
    """A config as a parameter, skipped where a host that it names is missing."""
    missing = [host for host in ('mmdet', 'mmpretrain', 'mmseg')
               if host in path.read_text() and find_spec(host) is None]
    return pytest.param(path, id=path.stem, marks=pytest.mark.skipif(
        bool(missing), reason=f'not installed: {missing}'))
