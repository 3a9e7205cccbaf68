"""What running.py imports once for all processes; before any host, ela_mm."""
# ruff: noqa: F401, I001
import support.noisy

import mmdet.apis
import mmdet.engine
import mmdet.evaluation
import mmdet.models
import mmdet.visualization
import mmpretrain.apis
import mmpretrain.engine
import mmpretrain.evaluation
import mmpretrain.models
import mmpretrain.visualization

from importlib.util import find_spec

if find_spec('mmseg') is not None:
    import mmseg.apis
    import mmseg.engine
    import mmseg.evaluation
    import mmseg.models
    import mmseg.visualization
