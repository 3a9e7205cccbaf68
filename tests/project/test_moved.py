"""Modules under their earlier names."""
import importlib
import pickle
import subprocess
import sys

import pytest

import ela_mm
from ela_mm.compat.moved import MOVED

# What each earlier module offered to others.
OFFERED = {
    'analysis.benchmark': ['build_backbone', 'time_in_turns', 'ratio'],
    'analysis.pictures': ['dataset_batches', 'network_inputs'],
    'engine.criteria': ['build_criterion'],
    'engine.deploy': ['write_deploy_checkpoint', 'export_onnx', 'part_of'],
    'engine.launch': ['load_config', 'prepare_config', 'check_data', 'run'],
    'engine.loading': ['load_model', 'find_backbone', 'with_all_layers'],
    'engine.record': ['read_record', 'FILE_NAME'],
    'engine.step_timer': ['StepTimer'],
    'engine.windows': ['check_windows', 'window_of'],
    'models.backbones.ela_resnet': ['LayerAttentionMixin', 'AttentionStage',
                                    'AttentionLayerInfo', 'SKIP_MODES'],
    'models.backbones.mmdet': ['ELAResNet', 'ELAResNeXt', 'ELAResNetV1d'],
    'models.backbones.mmpretrain': ['ELAResNet', 'ELAResNet_CIFAR'],
    'models.layers.retrieval': ['retrieve', 'ValueBank'],
    'visualization': ['prune_table'],
    'visualization.decisions': ['decision_picture', 'timeline_picture'],
    'visualization.report': ['write_report'],
    'visualization.sections': ['whatif_section', 'summarize'],
    'visualization.style': ['save', 'to_png'],
}


@pytest.mark.parametrize('name', MOVED)
def test_earlier_modules_lead_to_where_things_are(name):
    module = importlib.import_module(f'ela_mm.{name}')
    for thing in OFFERED.get(name, ()):
        found = getattr(module, thing)
        assert getattr(found, '__name__', thing) == thing
    with pytest.raises(AttributeError, match='is now ela_mm.*nothing_here'):
        _ = module.nothing_here
    for place in MOVED[name]:
        importlib.import_module(f'ela_mm.{place}')


def test_an_earlier_name_is_the_same_class():
    from ela_mm.models.backbones.mmdet import ELAResNet
    assert ELAResNet is importlib.import_module('ela_mm.hosts.mmdet').ELAResNet
    # As models that were pickled whole name their classes.
    old = b'cela_mm.models.backbones.ela_resnet\nAttentionStage\n.'
    assert pickle.loads(old) is ela_mm.models.backbones.AttentionStage


def test_one_warning_says_where():
    code = ('import warnings; warnings.simplefilter("always")\n'
            'import ela_mm.engine.record as r\n'
            'import ela_mm.engine.record\n'
            'print(r.FILE_NAME)')
    done = subprocess.run([sys.executable, '-c', code], check=True,
                          capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == 'ela_decisions.json'
    assert done.stderr.count('Now in ela_mm.engine.journal.record') == 1
