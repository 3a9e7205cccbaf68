"""Whose a config or a model is, and what follows for it."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import DumpDetResults
from mmdet.models.reid import BaseReID
from mmengine.config import Config, ConfigDict
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.evaluator import DumpResults
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.visualization import Visualizer
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from support.toy import ToyClassifier, toy_config

from ela_mm.apis.data import picture_shape, prepare_config
from ela_mm.apis.onnx import part_of, parts
from ela_mm.errors import UsageError
from ela_mm.hosts import registration
from ela_mm.hosts.mmpretrain import ELAResNet
from ela_mm.hosts.registration import host_of, host_of_model

ROOT = Path(__file__).parents[2]
SMALL = dict(depth=18, stem_channels=16, base_channels=16)


def config(scope, kind, **options):
    return Config(dict(default_scope=scope, model=dict(type=kind), **options))


@pytest.mark.parametrize('scope, kind, expected', [
    ('mmdet', 'FasterRCNN', 'mmdet'),
    ('mmpretrain', 'ImageClassifier', 'mmpretrain'),
    ('mmengine', 'ToyClassifier', 'mmengine'),
    (None, 'ToyClassifier', 'mmengine'),
    ('of_a_user', 'Network', 'mmengine'),
    # A type says it itself, by its prefix or as a class.
    ('mmengine', 'mmdet.FasterRCNN', 'mmdet'),
    ('mmdet', 'mmpretrain.ImageClassifier', 'mmpretrain'),
    ('mmdet', 'of_a_user.Network', 'mmdet'),
    (None, ImageClassifier, 'mmpretrain'),
    (None, ToyClassifier, 'mmengine'),
])
def test_whose_a_config_is(scope, kind, expected):
    assert host_of(config(scope, kind)).scope == expected


def test_a_config_without_a_model_is_of_its_scope():
    assert host_of(Config(dict(default_scope='mmdet'))).scope == 'mmdet'
    assert host_of(Config()).scope == 'mmengine'


class OfAUser(ImageClassifier):
    pass


@pytest.mark.parametrize('cls, expected', [
    (ImageClassifier, 'mmpretrain'),
    (OfAUser, 'mmpretrain'),
    (BaseReID, 'mmpretrain'),  # a classifier that mmdet has
    (ToyClassifier, 'mmengine'),
    (torch.nn.Conv2d, 'mmengine'),
])
def test_whose_a_model_is(cls, expected):
    assert host_of_model(cls.__new__(cls)).scope == expected


def test_a_host_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(registration, '_installed', {
        name: host for name, host in registration._installed.items()
        if name != 'mmdet'})
    for cfg in (config('mmdet', 'FasterRCNN'),
                config('mmengine', 'mmdet.FasterRCNN')):
        with pytest.raises(UsageError, match='of mmdet, which is not installed'
                           '.*a config of mmpretrain'):
            host_of(cfg)
    assert host_of(config('mmpretrain', 'ImageClassifier')).main_metrics
    assert host_of_model(ToyClassifier.__new__(ToyClassifier)).scope
    assert {'backbone', 'classifier'} <= set(parts())


BROKEN = """
import sys, warnings
import mmcv.cnn  # before ela_mm, as the hosts' own tools do
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

class Broken:  # as of a package that mmpretrain expects in another version
    def find_spec(self, name, path=None, target=None):
        if name == 'mmpretrain.models.multimodal':
            raise TypeError('NoneType takes no arguments')

sys.meta_path.insert(0, Broken())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import ela_mm
said = [str(w.message) for w in caught if 'ela_mm' in str(w.message)]
assert len(said) == 1 and ('without mmpretrain, which cannot be imported: '
                           'TypeError: NoneType takes no arguments') in said[0]

from ela_mm.errors import UsageError
from ela_mm.hosts.registration import host_of, installed
scopes = [host.scope for host in installed()]
assert 'mmdet' in scopes and 'mmpretrain' not in scopes
asked = dict(type='mmdet.ELAResNet', depth=18)
assert MODELS.build(asked).attention_layers

# Whoever asks for its classes learns why, however often, and by any door.
asked = dict(type='mmpretrain.ELAResNet', depth=18)
for _ in range(2):
    with pytest.raises(TypeError, match='takes no arguments'):
        MODELS.build(asked)
    with pytest.raises(TypeError, match='takes no arguments'):
        import ela_mm.hosts.mmpretrain
    with pytest.raises(TypeError, match='takes no arguments'):
        ela_mm.register_host('mmpretrain')
with pytest.raises(UsageError, match='of mmpretrain, which cannot be imported '
                   '.TypeError: .* or take a config of mmdet'):
    host_of(Config(dict(default_scope='mmpretrain')))

del sys.meta_path[0]  # mended
ela_mm.register_host('mmpretrain')
assert MODELS.build(asked).attention_layers
assert host_of(Config(dict(default_scope='mmpretrain'))).scope == 'mmpretrain'
"""


def test_a_host_that_cannot_be_imported_is_left_out():
    """mmdet, which makes use of mmpretrain where it is there, goes on."""
    subprocess.run([sys.executable, '-c', BROKEN], check=True, cwd=ROOT)


def test_families_that_a_version_of_a_host_lacks_are_left_out(tmp_path,
                                                             monkeypatch):
    """Not the host with them."""
    (tmp_path / 'newer_families.py').write_text(
        'from mmpretrain.models import OfANewerVersion\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    first, *others = registration.HOSTS['mmpretrain']
    monkeypatch.setitem(registration.HOSTS, 'mmpretrain',
                        (first, 'newer_families', *others))
    monkeypatch.setattr(registration, '_installed', {})
    with pytest.warns(UserWarning, match='without what newer_families adds: '
                      '.*OfANewerVersion'):
        registration.register_host('mmpretrain')
    assert [host.scope for host in registration.installed()] == ['mmpretrain']


def test_hosts_that_nobody_knows_are_not_registered():
    with pytest.raises(UsageError, match="'mmfoo': expected one of .*mmdet"):
        registration.register_host('mmfoo')


def test_only_classifiers_have_defaults_of_loaders():
    for scope, expected in (('mmpretrain', 'default_collate'), ('mmdet', None),
                            ('mmengine', None)):
        cfg = config(scope, 'Network', val_dataloader=dict(batch_size=1))
        loader = prepare_config(cfg).val_dataloader
        assert loader.get('collate_fn', {}).get('type') == expected
        assert len(loader) == (4 if expected else 1)


@pytest.mark.parametrize('scope, kind, expected', [
    ('mmpretrain', 'ELAResNet_CIFAR', (32, 32)),
    ('mmpretrain', 'ELAResNet', (224, 224)),
    ('mmdet', 'mmpretrain.ELAResNet_CIFAR', (32, 32)),
    ('mmdet', 'ELAResNet', (224, 224)),
])
def test_pictures_of_a_config_that_says_nothing(scope, kind, expected):
    cfg = Config(dict(default_scope=scope, model=dict(backbone=dict(type=kind))))
    assert picture_shape(cfg) == expected


@pytest.mark.parametrize('scope, kind, expected', [
    ('mmdet', 'DetVisualizationHook', dict(draw=True, test_out_dir='/x')),
    (None, DetVisualizationHook, dict(draw=True, test_out_dir='/x')),
    ('mmpretrain', 'VisualizationHook',
     dict(enable=True, out_dir='/x', interval=1)),
    ('mmengine', 'OfAUser', dict(enable=True, out_dir='/x', interval=1)),
])
def test_every_picture_is_drawn(scope, kind, expected):
    cfg = Config(dict(default_scope=scope, default_hooks=dict(
        visualization=dict(type=kind))))
    host_of(cfg, kind).show(cfg, '/x')
    hook = cfg.default_hooks.visualization
    assert {**hook} == dict(type=kind, **expected)


def with_pipeline(scope, kind, **options):
    steps = [dict(type='LoadImageFromFile'), dict(type='Pack')]
    dataset = dict(type='Wrapper', dataset=dict(type='Set', pipeline=steps))
    return config(scope, kind, test_dataloader=dict(dataset=dataset), **options)


@pytest.mark.parametrize('scope, model, meta_keys', [
    ('mmdet', 'mmdet.DetTTAModel', True),
    ('mmpretrain', 'mmpretrain.AverageClsScoreTTA', False),
])
def test_flips_are_averaged(scope, model, meta_keys):
    for _ in range(2):  # the host keeps what it gives
        cfg = with_pipeline(scope, 'Network')
        host_of(cfg).tta(cfg)
        assert cfg.model.type == model
        assert cfg.model.pop('module') == dict(type='Network')
        cfg.model.clear()
    load, augment = cfg.test_dataloader.dataset.dataset.pipeline
    assert load == dict(type='LoadImageFromFile')
    flips, (pack, ) = augment.transforms
    assert [flip.prob for flip in flips] == [1., 0.]
    assert ('flip' in pack.get('meta_keys', ())) is meta_keys


class Drawn(list):
    """Stands in for a visualizer."""

    def visualize_cls(self, image, data_sample, **kwargs):
        self.append((int(image.max()), data_sample))


@pytest.mark.parametrize('collate', [default_collate, pseudo_collate])
@pytest.mark.parametrize('flips, shown', [
    ((True, False), 2), ((False, True), 1), ((None, None), 1)])
def test_mmpretrain_draws_the_view_that_is_not_flipped(flips, shown, collate):
    """Whose own hook fails on several views of a picture."""
    cfg = with_pipeline('mmpretrain', 'Network', default_hooks=dict(
        visualization=dict(type='VisualizationHook', enable=True, interval=1)))
    host_of(cfg).tta(cfg)
    Visualizer.get_instance('any')  # which the hook asks for
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        hook = HOOKS.build(cfg.default_hooks.visualization)
    hook._visualizer = Drawn()
    batch = collate([
        dict(inputs=[torch.full((3, 8, 8), view + 10 * picture)
                     for view in (1, 2)],
             data_samples=[DataSample(metainfo=dict(
                 {} if flip is None else dict(flip=flip))) for flip in flips])
        for picture in range(3)])
    hook.after_test_iter(None, 0, batch, ['a', 'b', 'c'])
    assert hook._visualizer == [
        (shown + 10 * i, name) for i, name in enumerate('abc')]


def test_every_dataset_of_a_test_is_flipped():
    """Of those that are concatenated too."""
    steps = [dict(type='LoadImageFromFile'), dict(type='Pack')]
    several = [dict(type='Set', pipeline=steps) for _ in range(2)]
    cfg = config('mmdet', 'Network', test_dataloader=dict(
        dataset=dict(type='ConcatDataset', datasets=several)))
    host_of(cfg).tta(cfg)
    for dataset in cfg.test_dataloader.dataset.datasets:
        assert dataset.pipeline[-1].type == 'TestTimeAug'


def test_the_configs_own_augmentation_comes_first():
    own = dict(tta_model=dict(type='Mine'), tta_pipeline=[dict(type='Steps')])
    for scope in ('mmdet', 'mmpretrain', 'mmengine'):
        cfg = with_pipeline(scope, 'Network', **own)
        host_of(cfg).tta(cfg)
        assert cfg.model == dict(type='Mine', module=dict(type='Network'))
        assert cfg.test_dataloader.dataset.dataset.pipeline == [
            dict(type='Steps')]


def test_what_is_of_no_host_is_not_averaged():
    cfg = with_pipeline('mmengine', 'ToyClassifier')
    with pytest.raises(UsageError, match="'ToyClassifier'.*set tta_model"):
        host_of(cfg).tta(cfg)


def test_predictions_are_dumped_as_the_hosts_do(tmp_path):
    path = str(tmp_path / 'x.pkl')
    for scope, cls in (('mmdet', DumpDetResults), ('mmpretrain', DumpResults),
                       ('mmengine', DumpResults)):
        assert type(host_of(config(scope, 'X')).dump_results(path)) is cls


# --- what is explained, and what is exported ---------------------------------


def test_a_model_of_no_host_is_explained_as_a_classifier(tmp_path):
    targets = pytest.importorskip('pytorch_grad_cam.utils.model_targets')
    model = ToyClassifier(toy_config(tmp_path).model.backbone).eval()
    model.dataset_meta = dict(classes=['even', 'odd'])
    images = torch.randn(1, 3, 32, 32)
    explained = host_of_model(model).explain(model, dict(inputs=images))
    with torch.no_grad():
        logits = model(images)[0]
        answer = explained.answer(model)(images)[0]
    label = int(logits.argmax())
    assert isinstance(explained.target, targets.ClassifierOutputTarget)
    assert explained.label == f'class {["even", "odd"][label]}'
    assert explained.target(answer) == logits[label]
    for wanted in ('odd', '1'):
        explained = host_of_model(model).explain(
            model, dict(inputs=images), wanted)
        assert explained.label == 'class odd'
        assert explained.target(answer) == logits[1]
    for wanted in ('2', 'odder', '-1'):
        with pytest.raises(UsageError, match='expected one of even, odd, or a '
                           'number below 2'):
            host_of_model(model).explain(model, dict(inputs=images), wanted)

    class Silent(ToyClassifier):
        """Answers with what nobody can score."""

        def forward(self, *args, **kwargs):
            return dict(logits=super().forward(*args, **kwargs))

    silent = Silent(toy_config(tmp_path).model.backbone).eval()
    with pytest.raises(UsageError, match='Silent does not return logits'):
        host_of_model(silent).explain(silent, dict(inputs=images))


class Detector(BaseModel):
    """Finds five boxes in any picture."""
    __module__ = 'mmdet.models'
    roi_head = None
    dataset_meta = dict(classes=['a', 'b', 'c'])

    def forward(self):
        raise NotImplementedError

    def predict(self, inputs, samples, rescale):
        assert len(samples) == len(inputs) and not rescale
        found = ConfigDict(
            bboxes=torch.arange(20.).reshape(5, 4),
            labels=torch.tensor([0, 1, 2, 1, 2]),
            scores=self.scores)
        return [ConfigDict(pred_instances=found) for _ in inputs]


@pytest.mark.parametrize('scores, found, classes', [
    ([.1, .9, .2, .3, .05], [1, 3, 2], 'b, c'),
    ([.0, .9, .0, .0, .05], [1, 4], 'b, c'),
])
def test_the_three_surest_boxes_are_explained(scores, found, classes):
    targets = pytest.importorskip('pytorch_grad_cam.utils.model_targets')
    model = Detector()
    model.scores = torch.tensor(scores)
    data = dict(inputs=torch.zeros(1, 3, 8, 8), data_samples=[object()])
    explained = host_of_model(model).explain(model, data)
    assert isinstance(explained.target, targets.FasterRCNNBoxScoreTarget)
    assert explained.label == f'the surest boxes, of classes {classes}'
    np.testing.assert_array_equal(
        explained.target.bounding_boxes,
        np.arange(20).reshape(5, 4)[found])
    (answer, again) = explained.answer(model)(torch.zeros(2, 3, 8, 8))
    assert answer['scores'].tolist() == pytest.approx(scores)
    assert answer['labels'].tolist() == again['labels'].tolist()
    explained = host_of_model(model).explain(model, data, 'b')
    assert explained.label == 'the surest boxes, of classes b'
    np.testing.assert_array_equal(
        explained.target.bounding_boxes, np.arange(20).reshape(5, 4)[
            [i for i in (1, 3) if scores[i]]])
    model.scores = torch.tensor([0., 1., 0., 1., 0.])
    with pytest.raises(UsageError, match="the detector finds no 'c'"):
        host_of_model(model).explain(model, data, 'c')
    model.scores = torch.zeros(5)
    with pytest.raises(UsageError, match='the detector finds nothing'):
        host_of_model(model).explain(model, data)


def classifier(head):
    """Of two classes, as its config builds it."""
    return MODELS.build(
        dict(
            _scope_='mmpretrain',
            type='ImageClassifier',
            backbone=dict(type='ELAResNet', **SMALL),
            neck=dict(type='GlobalAveragePooling'),
            head=head and dict(type=head, num_classes=2,
                               in_channels=128))).eval()


@pytest.mark.parametrize('head, naive', [
    ('LinearClsHead', lambda x: x.exp() / x.exp().sum(1, keepdim=True)),
    ('MultiLabelLinearClsHead', lambda x: 1 / (1 + (-x).exp())),
])
def test_a_classifier_is_exported_with_its_heads_scores(head, naive):
    model, images = classifier(head), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = model(images)
        for scores, expected in ((False, logits), (True, naive(logits))):
            module, names = part_of(model, scores=scores)
            assert names == ['scores' if scores else 'logits']
            torch.testing.assert_close(module(images), expected)
    assert part_of(model, 'backbone') == (model.backbone, ['feature_4'])


def test_parts_that_are_not_there(tmp_path):
    toy = ToyClassifier(toy_config(tmp_path).model.backbone)
    assert part_of(toy)[0] is toy.backbone
    with pytest.raises(UsageError, match="part 'classifier' of a ToyClassifier"
                       ': expected the config of an mmpretrain ImageClassifier'
                       "; take part 'backbone'"):
        part_of(toy, 'classifier')
    headless = classifier(None)
    assert isinstance(part_of(headless)[0], ELAResNet)
    with pytest.raises(UsageError, match='of a ImageClassifier'):
        part_of(headless, 'classifier')
    with pytest.raises(UsageError, match=r"part 'neck': expected one of \["
                       "'backbone', 'classifier'"):
        part_of(toy, 'neck')
    unknown = classifier('LinearClsHead')
    unknown.head = torch.nn.Linear(128, 2)
    with pytest.raises(UsageError, match='scores of a Linear are not known'):
        part_of(unknown, scores=True)
