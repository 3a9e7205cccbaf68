"""Types that are classes, as in pure Python configs, where names may stand."""
import argparse

import pytest
from mmdet.datasets import CocoDataset
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.models import FasterRCNN
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import DATASETS, FUNCTIONS, DefaultScope
from mmpretrain.datasets import CIFAR10, RandomCrop
from mmpretrain.models import ImageClassifier
from support import ROOT
from support.versions import with_its_host

import ela_mm
from ela_mm.apis.data import picture_shape
from ela_mm.apis.loading import (
    config_from_file,
    criterion_of,
    override,
    settings,
)
from ela_mm.config_types import class_of, enter_scope, type_name
from ela_mm.errors import UsageError
from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.hosts.mmpretrain import ELAResNet_CIFAR
from ela_mm.hosts.registration import host_of
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.criteria import CRITERIA


@pytest.mark.parametrize('config, name', [
    (dict(type='ELAResNet'), 'ELAResNet'),
    (dict(type='mmdet.ELAResNet'), 'ELAResNet'),
    (dict(type='ela_mm.hosts.mmdet.ELAResNet'), 'ELAResNet'),
    (dict(type=ELAResNet), 'ELAResNet'),
    (dict(type=ela_mm.ebqm), 'ebqm'),
    (dict(type='torchvision/Resize'), 'Resize'),
    (ConfigDict(), ''),
    (ela_mm.ReseedHook(), 'ReseedHook'),
])
def test_what_a_config_builds_is_named(config, name):
    assert type_name(config) == name


@pytest.mark.parametrize('kind', [
    'mmdet.CocoDataset', 'mmdet.datasets.CocoDataset', CocoDataset])
def test_classes_are_found(kind):
    with DefaultScope.overwrite_default_scope('mmengine'):
        assert class_of(dict(type=kind), DATASETS) is CocoDataset
        assert class_of(dict(type='mmdet.Nothing'), DATASETS) is None
        assert class_of({}, DATASETS) is None


def test_no_scope_leaves_registries_to_themselves():
    """A host's class finds what it builds by name in its host's registry."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        enter_scope(Config(dict(default_scope=None)))
        assert DefaultScope.get_current_instance().scope_name == 'mmdet'
        enter_scope(Config(dict(default_scope='mmpretrain')))
        assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
        enter_scope(Config())
        assert DefaultScope.get_current_instance().scope_name == 'mmengine'


@pytest.mark.parametrize('option, said', [
    ('hooks.7.mu=1', "hooks.7.mu=1 .*Index 7 exceeds"),
    ('hooks.1=[a,b]', r"hooks.1=\['a', 'b'\] "),
    ('model.depth.low=2', 'model.depth.low=2 .*cannot inherit'),
    ('hooks.first=3', 'hooks.first=3 '),
])
def test_options_that_do_not_fit_are_named(option, said):
    cfg = Config(dict(model=dict(depth=50), hooks=[dict(mu=0), dict(mu=1)]))
    options = settings(['model.width=3', option])
    with pytest.raises(UsageError, match=f'^{said}.*expected dotted keys'):
        override(cfg, options)
    override(cfg, settings(['hooks.1.mu=2', 'model.depth=18']))
    assert cfg.hooks[1].mu == 2 and cfg.model.depth == 18


@pytest.mark.parametrize('word', [
    "plugins=[dict(cfg=dict(type='SE'),position=1)]",
    'windows=[(1,1)', 'scale=(1,2)),(3,4)',
])
def test_options_that_mmengine_cannot_parse_are_named(word):
    with pytest.raises(UsageError) as error:
        settings(['model.width=3', word])
    assert repr(word) in str(error.value) and '\n' not in str(error.value)


def test_options_are_parsed_as_mmengine_does():
    words = ['a.b=1', 'c=[x,(1,2.5)]', 'd=--e', 'f=', 'a.b=2', 'g=1e-3,True']
    parser = argparse.ArgumentParser()
    parser.add_argument('--it', nargs='*', action=DictAction)
    assert settings(words) == parser.parse_args(['--it', *words]).it


DUMPED = """
default_scope = None
roi_layer = dict(type='mmcv.ops.RoIAlign', sizes=[dict(type='mmcv.ops.nms')])
backbone = dict(type='mmdet.ResNet')
lost = dict(type='mmcv.nowhere.Nothing')
plain = dict(type='BN')
hook = dict(type='ela_mm.ELAPruneHook')
"""


def test_classes_of_a_dumped_config_are_classes_again(tmp_path):
    """mmdet's roi extractors take no names with modules."""
    from mmcv.ops import RoIAlign, nms
    (tmp_path / 'dumped.py').write_text(DUMPED)
    cfg = config_from_file(str(tmp_path / 'dumped.py'))
    assert cfg.roi_layer.type is RoIAlign
    assert cfg.roi_layer.sizes[0].type is nms
    assert cfg.backbone.type == 'mmdet.ResNet'  # a name of a registry
    assert cfg.lost.type == 'mmcv.nowhere.Nothing'
    assert cfg.plain.type == 'BN' and cfg.hook.type == 'ela_mm.ELAPruneHook'
    # And are dumped once more.
    cfg.dump(str(tmp_path / 'again.py'))
    assert "type='mmcv.ops.RoIAlign'" in (tmp_path / 'again.py').read_text()
    # In a config with a scope they are the registry's to find.
    (tmp_path / 'dumped.py').write_text(DUMPED.replace('None', "'mmdet'"))
    cfg = config_from_file(str(tmp_path / 'dumped.py'))
    assert cfg.roi_layer.type == 'mmcv.ops.RoIAlign'


@pytest.mark.parametrize('kind, scope', [
    (FasterRCNN, 'mmdet'),
    ('mmdet.models.detectors.FasterRCNN', 'mmdet'),
    (ImageClassifier, 'mmpretrain'),
    ('mmpretrain.models.classifiers.ImageClassifier', 'mmpretrain'),
    ('ela_mm.hosts.mmdet.ELAResNet', 'mmdet'),  # of a module of no host
    ('nowhere.Network', 'mmengine'),
])
def test_whose_a_class_is(kind, scope):
    cfg = Config(dict(default_scope=None, model=dict(type=kind)))
    assert host_of(cfg).scope == scope


def test_the_visualization_hook_is_its_hosts():
    cfg = Config(dict(default_scope=None, default_hooks=dict(
        visualization=dict(type=DetVisualizationHook))))
    host_of(cfg, cfg.default_hooks.visualization.type).show(cfg, '/x')
    assert cfg.default_hooks.visualization.test_out_dir == '/x'


def test_flips_are_the_hosts_own():
    """Without a scope a bare name would be mmcv's, which flips no boxes."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Pack')]
    cfg = Config(dict(
        default_scope=None, model=dict(type=FasterRCNN),
        test_dataloader=dict(dataset=dict(type=CocoDataset, pipeline=pipeline))))
    host_of(cfg).tta(cfg)
    flips, _ = cfg.tta_pipeline[-1].transforms
    assert [flip.type for flip in flips] == ['mmdet.RandomFlip'] * 2


@pytest.mark.parametrize('path', map(with_its_host, sorted(
    (ROOT / 'configs' / 'pure_python').glob('*.py'))))
def test_a_config_that_is_to_draw_and_flip_is_dumped(path, tmp_path):
    """As mmengine does at the start; a class itself would be no Python."""
    cfg = config_from_file(str(path))
    host = host_of(cfg)
    host.show(cfg, '/x')
    host.tta(cfg)
    cfg.dump(tmp_path / 'dumped.py')
    text = (tmp_path / 'dumped.py').read_text()
    assert '<class' not in text and "'/x'" in text


def test_pictures_of_classes():
    crop = [dict(type=RandomCrop, crop_size=24, padding=4)]
    model = dict(type=ImageClassifier, backbone=dict(type=ELAResNet_CIFAR))
    cfg = Config(dict(default_scope=None, model=model))
    assert picture_shape(cfg) == (32, 32)
    cfg.train_dataloader = dict(dataset=dict(type=CIFAR10, pipeline=crop))
    assert picture_shape(cfg) == (24, 24)


@pytest.mark.parametrize('kind', [
    ela_mm.ebqm, 'ela_mm.ebqm', CRITERIA['EBQM'],
    'EBQM'])
def test_ebqm_is_ebqm_by_any_name(kind):
    """Records, what-if and pictures know the registered name."""
    criterion = build_criterion(dict(type=kind, mu=0.3))
    assert criterion.config == dict(
        type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.3)
    skip, score = criterion([.1, .2, .9, 1.])
    assert skip.any() and score is not None


def test_functions_go_by_their_registered_names():
    def mine(kl):
        return kl < 0.1

    assert build_criterion(dict(type=mine)).config == dict(type='mine')
    FUNCTIONS.register_module(name='of_a_user', module=mine)
    try:
        assert build_criterion(dict(type=mine)).config['type'] == 'of_a_user'
        assert build_criterion(
            dict(type='of_a_user')).config['type'] == 'of_a_user'
    finally:
        del FUNCTIONS.module_dict['of_a_user']


@pytest.mark.parametrize('kind', [
    ela_mm.ELAPruneHook, 'ELAPruneHook', 'ela_mm.ELAPruneHook'])
def test_the_criterion_of_a_config_is_found(kind):
    hook = dict(type=kind, windows=[(1, 1)], criterion=dict(type='fixed', n=1))
    cfg = Config(dict(custom_hooks=[dict(type=ela_mm.ReseedHook), hook]))
    assert criterion_of(cfg) == dict(type='fixed', n=1)
