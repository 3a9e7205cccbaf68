"""Keeps the earlier names of this package's modules importable.

``import ela_mm.engine.record`` still works, and so do pickled models with
classes from there. Attributes of an earlier module are looked up in its present
ones. Importing it gives a DeprecationWarning.
"""
import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any, Dict, Optional, Tuple

# For each earlier module, those that have its contents now.
MOVED: Dict[str, Tuple[str, ...]] = {
    'analysis.benchmark': ('experiments.benchmark', 'timing'),
    'analysis.concatenation': ('experiments.variants', ),
    'analysis.pictures': ('apis.data', ),
    'engine.criteria': ('pruning.build', ),
    'engine.deploy': ('apis.deploy', 'apis.onnx'),
    'engine.grid': ('experiments.grid', ),
    'engine.launch': ('apis.launch', 'apis.data'),
    'engine.loading': ('apis.loading',
                       'models.backbones.layer_attention_mixin'),
    'engine.record': ('engine.journal.record', ),
    'engine.step_timer': ('engine.gain', ),
    'engine.windows': ('pruning.windows', ),
    'models.backbones.ela_resnet': (
        'models.backbones.layer_attention_mixin', 'models.backbones.resnet',
        'models.backbones.stages'),
    'models.backbones.mmdet': ('hosts.mmdet', ),
    'models.backbones.mmpretrain': ('hosts.mmpretrain', ),
    'models.layers.batch_norm': ('models.layers.bank.batch_norm', ),
    'models.layers.retrieval': ('models.layers.bank.values',
                                'models.layers.layer_attention'),
    'models.layers.weighing': ('models.layers.bank.keys', ),
    'visualization': ('engine.journal.table', ),
    'visualization.attention': ('analysis.report.attention', ),
    'visualization.cost': ('analysis.report.cost', ),
    'visualization.decisions': ('engine.journal.picture',
                                'analysis.report.redundancy'),
    'visualization.features': ('analysis.report.features', ),
    'visualization.page': ('analysis.report.page', ),
    'visualization.report': ('analysis.report.report', ),
    'visualization.sections': (
        'analysis.report.redundancy', 'analysis.report.attention',
        'analysis.report.cost', 'analysis.report.features',
        'analysis.report.whatif'),
    'visualization.style': ('plotting', ),
    'visualization.table': ('engine.journal.table', ),
    'visualization.whatif': ('analysis.report.whatif', ),
}
_PACKAGE = 'ela_mm.'


class _MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules under their earlier names, if no other finder does."""

    def find_spec(self,
                  fullname: str,
                  path: Any = None,
                  target: Any = None) -> Optional[Any]:
        if (not fullname.startswith(_PACKAGE)
                or fullname[len(_PACKAGE):] not in MOVED):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        places = [_PACKAGE + n for n in MOVED[spec.name[len(_PACKAGE):]]]
        module = ModuleType(spec.name, f'Now in {", ".join(places)}.')

        def __getattr__(name: str) -> Any:
            if not name.startswith('__'):
                for place in places:
                    found = importlib.import_module(place)
                    if hasattr(found, name):
                        return getattr(found, name)
            raise AttributeError(
                f'{spec.name} is now {" and ".join(places)}, where there is '
                f'no {name!r}')

        module.__getattr__ = __getattr__
        return module

    def exec_module(self, module: ModuleType) -> None:
        warnings.warn(
            f'{module.__name__}: {module.__doc__}',
            DeprecationWarning,
            stacklevel=2)


def install() -> None:
    """Append the finder to ``sys.meta_path``, once."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
