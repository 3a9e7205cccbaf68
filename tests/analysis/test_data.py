"""Data as people have it: wrappers, loader options, paths, channels, videos."""
import json
import multiprocessing

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import TRANSFORMS, BaseTransform
from mmdet.models import CSPDarknet, DetDataPreprocessor, TrackDataPreprocessor
from mmdet.models.mot import BaseMOTModel
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import SelfSupDataPreprocessor
from support.complexity import needs_counter
from support.detector import small_config
from support.toy import ToyClassifier
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler

from ela_mm.analysis.attention import measure
from ela_mm.analysis.cost import cost_of_config
from ela_mm.analysis.features import look
from ela_mm.apis.data import (
    annotated_batches,
    dataset_batches,
    file_batches,
    network_inputs,
    picture_shape,
    prepare_config,
    sample_of,
    set_of,
)
from ela_mm.apis.data_config import check_data, datasets_of
from ela_mm.errors import UsageError
from ela_mm.models.backbones.pictures import picture_channels

LOAD = dict(type='LoadImageFromFile')
PACK = dict(type='PackInputs')
# MMDetection 3.1 asks for all that it keeps, such as 'flip'.
PACK_DETECTION = dict(type='mmdet.PackDetInputs',
                      meta_keys=('img_path', 'ori_shape', 'img_shape'))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Six pictures of two classes, and lists of them."""
    root = tmp_path_factory.mktemp('pictures')
    for label in range(2):
        (root / str(label)).mkdir()
        for i in range(3):
            cv2.imwrite(str(root / str(label) / f'{i}.png'),
                        np.full((16, 20, 3), 40 * i + label, np.uint8))
    for name in ('a', 'b'):
        (root / f'{name}.txt').write_text('0/0.png 0\n1/1.png 1\n')
    return root


def dataset(root, **options):
    return {**dict(type='CustomDataset', data_root=str(root),
                   pipeline=[LOAD, PACK]), **options}


def config(dataset, name='val', **options):
    return Config({
        'default_scope': 'mmpretrain',
        'model': dict(type='ImageClassifier', backbone=dict(type='ResNet')),
        f'{name}_dataloader': {**dict(
            batch_size=2, num_workers=0, dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False)), **options}})


# --- datasets and loaders ----------------------------------------------------


@pytest.mark.parametrize('kind, number', [
    ('none', 6), ('repeat', 12), ('concat', 12), ('balanced', 6),
    ('folds', 3), ('mixed', 6), ('within', 24)])
def test_every_wrapper(kind, number, root):
    """What the host builds, and where the analyses find its pipeline."""
    inner = dataset(root)
    cfg = config({
        'none': inner,
        'repeat': dict(type='RepeatDataset', times=2, dataset=inner),
        'concat': dict(type='ConcatDataset', datasets=[inner, inner]),
        'balanced': dict(type='ClassBalancedDataset', oversample_thr=.1,
                         dataset=inner),
        'folds': dict(type='KFoldDataset', fold=0, num_splits=2,
                      test_mode=True, dataset=inner),
        'mixed': dict(type='mmdet.MultiImageMixDataset',
                      pipeline=[PACK_DETECTION],
                      dataset={**inner, 'pipeline': [LOAD]}),
        'within': dict(type='RepeatDataset', times=2, dataset=dict(
            type='ConcatDataset', datasets=[inner, inner])),
    }[kind])
    batches = list(dataset_batches(cfg, 100))
    assert sum(len(batch['inputs']) for batch in batches) == number
    assert len(list(dataset_batches(cfg, 3))) == 2
    (picture, ) = file_batches(cfg, [str(root / '0' / '0.png')])
    if kind != 'mixed':  # whose inner pipeline alone packs nothing
        assert picture['inputs'][0].shape == (3, 16, 20)
    assert picture_shape(cfg) == (16, 20)


@pytest.mark.parametrize('options', [
    dict(num_workers=2, persistent_workers=True, prefetch_factor=4,
         timeout=30, multiprocessing_context='spawn', pin_memory=False),
    dict(drop_last=True, batch_size=4),
    dict(num_batch_per_epoch=2),
    dict(batch_sampler=dict(type=BatchSampler, drop_last=False)),
    dict(collate_fn=dict(type='default_collate')),
], ids=lambda options: '-'.join(options))
def test_every_option_of_a_loader(options, root):
    """Workers are not started, and no picture is left out."""
    cfg = config(dataset(root), **options)
    batches = list(dataset_batches(cfg, 6))
    assert sum(len(batch['inputs']) for batch in batches) == 6
    assert not multiprocessing.active_children()
    again = list(dataset_batches(cfg, 5, batch_size=5))
    assert [len(batch['inputs']) for batch in again] == [5]
    (one, ) = dataset_batches(cfg, 1)  # not the loader's two or four
    assert len(one['inputs']) == 1


class OwnSampler(SequentialSampler):

    def __init__(self, dataset, seed=None):
        super().__init__(dataset)


def test_some_of_a_set_that_is_sorted_by_class(tmp_path):
    """As folders of pictures are, and ImageNet's list."""
    for label in range(4):
        (tmp_path / str(label)).mkdir()
        for number in range(5):
            cv2.imwrite(str(tmp_path / str(label) / f'{number}.png'), np.zeros(
                (16, 20, 3), np.uint8))

    def labels(images, **options):
        cfg = config(dataset(tmp_path), **options)
        return [[int(x.gt_label) for x in batch['data_samples']]
                for batch in dataset_batches(cfg, images)], sample_of(cfg)

    assert labels(4) == ([[0, 1], [2, 3]], 'evenly spaced in the validation set')
    assert labels(3)[0] == [[0, 1], [2, 3]]  # whole batches
    assert labels(1)[0] == [[0]]
    assert sum(labels(99)[0], []) == [
        label for label in range(4) for _ in range(5)]
    own = dict(type=OwnSampler)
    assert labels(4, sampler=own) == ([[0, 0], [0, 0]],
                                      'the first of the validation set')
    shuffled, said = labels(4, sampler=dict(type='DefaultSampler', shuffle=True))
    assert len(sum(shuffled, [])) == 4 and 'the first of' in said


def test_a_loader_that_is_built():
    """As mmengine's Runner takes them in Python."""
    pictures = [dict(inputs=torch.ones(3, 8, 8) * i) for i in range(4)]
    loader = torch.utils.data.DataLoader(pictures, batch_size=2)
    cfg = Config(dict(model=dict(type='ToyClassifier')))
    cfg.__dict__['_cfg_dict']['val_dataloader'] = loader
    assert [len(x['inputs']) for x in dataset_batches(cfg, 3)] == [2, 2]
    check_data(cfg, 'val_dataloader')


def test_without_a_validation_set(root):
    """The training set's pictures, without augmentation, and it is said."""
    cfg = config(dataset(root, pipeline=[LOAD, dict(
        type='MultiView', num_views=[2], transforms=[[
            dict(type='RandomResizedCrop', scale=12),
            dict(type='RandomFlip', prob=.5)]]), PACK]), 'train')
    cfg.val_evaluator = dict(type='CocoMetric', ann_file='gone.json')
    assert set_of(cfg) == 'the training set'
    inputs = next(dataset_batches(cfg, 2))['inputs']
    picture = cv2.imread(str(root / '1' / '0.png'))[..., 0].max()
    assert len(inputs) == 2 and (inputs[1] == picture).all()
    (batch, ) = file_batches(cfg, [str(root / '1' / '0.png')])
    assert batch['inputs'][0].shape == inputs[1].shape == (3, 12, 12)
    assert (batch['inputs'][0] == picture).all()
    mixed = config(dict(
        type='mmdet.MultiImageMixDataset', dataset=dataset(
            root, pipeline=[LOAD]),
        pipeline=[dict(type='Resize', scale=(8, 6)), PACK]), 'train')
    assert next(dataset_batches(mixed, 1))['inputs'][0].shape == (3, 6, 8)
    with pytest.raises(UsageError, match='has none of val_dataloader'):
        set_of(Config(dict(model={})))


def test_labels_fit_the_pictures_within_wrappers(digits_root):
    """Boxes are loaded before the picture is resized, in every dataset."""
    annotations = json.loads((digits_root / 'val.json').read_text())
    inner = dict(
        type='CocoDataset', data_root=str(digits_root), ann_file='val.json',
        data_prefix=dict(img='val/'), metainfo=dict(classes=tuple(
            x['name'] for x in annotations['categories'])),
        pipeline=[LOAD, dict(type='Resize', scale=(128, 128)),
                  dict(type='LoadAnnotations', with_bbox=True),
                  dict(PACK_DETECTION, meta_keys=(
                      *PACK_DETECTION['meta_keys'], 'scale_factor'))])
    cfg = config(dict(type='ConcatDataset', datasets=[inner, inner]))
    cfg.default_scope = 'mmdet'
    batches = list(annotated_batches(cfg, 8))
    boxes = torch.cat([sample.gt_instances.bboxes.tensor for batch in batches
                       for sample in batch['data_samples']])
    largest = max(x['bbox'][i] + x['bbox'][i + 2] for i in (0, 1)
                  for x in annotations['annotations'])
    size = annotations['images'][0]['width']
    assert boxes.max() == pytest.approx(largest * 128 / size)


# --- files -------------------------------------------------------------------


def test_home_folders_and_lists_of_files(root, monkeypatch):
    monkeypatch.setenv('HOME', str(root.parent))
    home = f'~/{root.name}'
    cfg = config(dataset(home))
    check_data(cfg, 'val_dataloader')
    assert len(next(dataset_batches(cfg, 1))['inputs']) == 1
    assert cfg.val_dataloader.dataset.data_root == str(root)
    (picture, ) = file_batches(cfg, [f'{home}/0/0.png'])
    assert picture['inputs'][0].shape == (3, 16, 20)
    cfg = config(dataset(root, ann_file=['a.txt', f'{home}/b.txt']))
    check_data(cfg, 'val_dataloader')
    cfg.val_dataloader.dataset.ann_file = ['a.txt', 'c.txt']
    with pytest.raises(UsageError, match=r'c\.txt.*dataset\.ann_file'):
        check_data(cfg, 'val_dataloader')
    cfg = config(dataset(root))
    cfg.val_evaluator = [dict(type='CocoMetric', ann_file=f'{home}/a.txt'),
                         dict(type='CocoMetric', ann_file=[f'{home}/c.txt'])]
    assert prepare_config(cfg).val_evaluator[0].ann_file == str(root / 'a.txt')
    with pytest.raises(UsageError, match=r'c\.txt.*val_evaluator'):
        check_data(cfg, 'val_dataloader')
    cfg.val_evaluator = dict(type='MultiDatasetsEvaluator',
                             metrics=cfg.val_evaluator)
    with pytest.raises(UsageError, match=r'c\.txt.*val_evaluator'):
        check_data(cfg, 'val_dataloader')


def test_every_dataset_of_several_is_checked(root):
    gone = dataset(root / 'gone')
    for several, place in (
        (dict(type='ConcatDataset', datasets=[dataset(root), gone]),
         'datasets.1'),
        (dict(type='Mix', datasets=dict(day=dataset(root), night=gone)),
         'datasets.night'),
        (dict(type='RepeatDataset', times=1, dataset=dict(
            type='ConcatDataset', datasets=[gone])), 'dataset.datasets.0'),
    ):
        cfg = config(several)
        with pytest.raises(UsageError, match=f'gone.*{place}.data_root'):
            check_data(cfg, 'val_dataloader')
        assert len(list(datasets_of(cfg, 'val_dataloader'))) == len(
            several.get('datasets', [0]))


def test_data_on_other_storage_is_not_looked_for(root):
    for options in (dict(backend='petrel'), None, dict(backend='local')):
        cfg = config(dataset(root / 'gone', backend_args=options))
        if options and options['backend'] == 'petrel':
            check_data(cfg, 'val_dataloader')
        else:
            with pytest.raises(UsageError, match='gone'):
                check_data(cfg, 'val_dataloader')


# --- sizes -------------------------------------------------------------------


@pytest.mark.parametrize('steps, shape', [
    ([dict(type='RandomCrop', crop_size=(.3, .7), crop_type='relative_range'),
      dict(type='Pad', size_divisor=32)], (224, 224)),
    ([dict(type='Resize', scale=(90, 60)),
      dict(type='RandomCrop', crop_size=(.3, .7), crop_type='relative')],
     (60, 90)),
    ([dict(type='RandomCenterCropPad', crop_size=None, ratios=None)],
     (224, 224)),
    ([dict(type='RandomChoice', transforms=[
        [dict(type='RandomChoiceResize', scales=[(50, 40), (70, 60)])],
        [dict(type='RandomChoiceResize', scales=[(55, 45), (75, 65)])]])],
     (65, 75)),
    ([dict(type='torchvision/RandomResizedCrop', size=176)], (176, 176)),
    ([dict(type='torchvision/Resize', size=(60, 80))], (60, 80)),
    ([dict(type='Resize', scale=(float('inf'), 800))], (224, 224)),
    ([dict(type='MultiView', num_views=[2], transforms=[
        [dict(type='RandomResizedCrop', scale=96), PACK]])], (96, 96)),
])
def test_picture_shapes(steps, shape, tmp_path):
    cfg = config(dict(type='CustomDataset', data_root=str(tmp_path / 'gone'),
                      pipeline=[LOAD, *steps]), 'train')
    assert picture_shape(cfg) == shape


# --- channels ----------------------------------------------------------------


@TRANSFORMS.register_module()
class ReadSpectra(BaseTransform):
    """Pictures of any number of channels, as arrays in files."""

    def transform(self, results):
        image = np.load(results['img_path'])
        return dict(results, img=image, img_shape=image.shape[:2],
                    ori_shape=image.shape[:2])


class LoadSpectra(ReadSpectra):
    pass


TRANSFORMS.register_module(module=LoadSpectra)


def network(channels):
    return ToyClassifier(dict(
        type='mmdet.ELAResNet', depth=18, base_channels=16,
        in_channels=channels))


def test_channels_of_what_comes_before_the_first_convolution():
    """CSPDarknet's stem makes twelve channels of neighbouring pixels."""
    net = CSPDarknet(deepen_factor=.33, widen_factor=.125)
    assert next(net.parameters()).shape[1] == 12
    assert picture_channels(net) == 3
    with pytest.raises(UsageError, match='Linear has no convolution'):
        picture_channels(nn.Linear(3, 3))


@needs_counter
@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_pictures_of_any_channels(channels, tmp_path):
    """From the file to attention, cost and class activation maps."""
    pytest.importorskip('pytorch_grad_cam')
    path = tmp_path / 'picture.npy'
    np.save(path, np.random.default_rng(0).normal(
        size=(32, 48, channels)).astype('float32'))
    cfg = config(dict(type='CustomDataset', pipeline=[
        dict(type='LoadSpectra'), PACK]))
    cfg.model.backbone.in_channels = channels
    (batch, ) = file_batches(cfg, [str(path)])
    model = network(channels)
    assert network_inputs(model, batch).shape == (1, channels, 32, 48)
    found = measure(model, [batch])
    assert found.images == 1 and len(found.kl) == 4
    cost = cost_of_config(cfg, model, (32, 48), batch=1, rounds=1)
    stem = model.backbone.conv1.weight.numel() * 16 * 24
    grey = cost_of_config(cfg, network(1), (32, 48), batch=1, rounds=1)
    assert cost.macs_before - grey.macs_before == stem - stem // channels
    seen = look(model, batch, ['layer4.1'], channels=1)
    assert seen.image.shape == (32, 48, 3) and seen.image.max() == 1
    expected = np.load(path)[..., [0, 0, 0] if channels < 3 else [0, 1, 2]]
    low, high = expected.min(), expected.max()
    np.testing.assert_allclose(seen.image, (expected - low) / (high - low),
                               atol=1e-6)


def test_grey_pictures_of_datasets_that_hold_arrays(root):
    """As MNIST's: the pipeline loads nothing."""
    cfg = config(dict(type='MNIST', data_root='.', pipeline=[
        dict(type='Resize', scale=32), PACK]))
    cfg.model.backbone.in_channels = 1
    (batch, ) = file_batches(cfg, [str(root / '0' / '2.png')])
    assert batch['inputs'][0].shape == (1, 32, 32)
    assert (batch['inputs'][0] == 80).all()
    cfg.model.backbone.in_channels = 4
    with pytest.raises(UsageError, match='takes 4 channels'):
        next(file_batches(cfg, [str(root / '0' / '2.png')]))


@pytest.mark.parametrize('steps', [
    [dict(type='mmdet.Resize', scale=(40, 32), keep_ratio=False),
     dict(type='mmdet.PackReIDInputs')],
    [dict(type='mmdet.LoadProposals'), dict(
        type='mmdet.ProposalBroadcaster', transforms=[
            dict(type='mmdet.Resize', scale=(40, 32), keep_ratio=False)]),
     PACK_DETECTION],
    [dict(type='mmdet.LoadPanopticAnnotations'),
     PACK_DETECTION],
], ids=['persons', 'proposals', 'panoptic'])
def test_pipelines_that_ask_for_more_than_a_picture(steps, root):
    """A label, proposals, maps, where there is a file alone."""
    cfg = config(dict(type='CustomDataset', pipeline=[LOAD, *steps]))
    (batch, ) = file_batches(cfg, [str(root / '0' / '0.png')])
    (inputs, ), (sample, ) = batch['inputs'], batch['data_samples']
    assert inputs.shape[-3] == 3
    if 'proposals' in sample:  # the whole picture
        assert sample.proposals.bboxes.tolist() == [[0, 0, 40, 32]]


def test_what_a_pipeline_cannot_take_is_said(root):
    cfg = config(dict(type='CustomDataset', pipeline=[
        LOAD, dict(type='LoadSpectra'), PACK]))
    with pytest.raises(UsageError, match='pipeline .LoadImageFromFile, '
                       'LoadSpectra, PackInputs'):
        next(file_batches(cfg, [str(root / '0' / '0.png')]))
    with pytest.raises(UsageError, match='no picture that OpenCV'):
        next(file_batches(cfg, [str(root / 'a.txt')]))


def under_another_name(samples, name):
    return {name: torch.stack([x['inputs'] for x in samples])}


def test_files_are_collated_as_the_loader_says(root):
    path = str(root / '0' / '2.png')
    collations = [
        (None, 'inputs', list),
        (dict(type='default_collate'), 'inputs', torch.Tensor),
        (dict(type=under_another_name, name='own'), 'own', torch.Tensor),
        (lambda samples: under_another_name(samples, 'own'), 'own',
         torch.Tensor)]
    for collate, key, kind in collations:
        options = {} if collate is None else dict(collate_fn=collate)
        cfg = config(dataset(root), 'test', **options)
        (batch, ) = file_batches(cfg, [path])
        assert isinstance(batch[key], kind) and len(batch[key]) == 1
        assert batch[key][0].shape == (3, 16, 20) and (batch[key][0] == 80).all()
        # As the host's own loader has them.
        (own, ) = dataset_batches(config(dataset(root, indices=[2]), 'test',
                                         **options), 1)
        assert torch.equal(own[key][0], batch[key][0])
    cfg = config(dataset(root), 'test', collate_fn=dict(type='nothing'))
    with pytest.raises(UsageError, match="collate_fn.type='nothing'"):
        next(file_batches(cfg, [path]))


# --- batches that are no (B, 3, H, W) ----------------------------------------


class Preprocessed(nn.Module):

    def __init__(self, preprocessor):
        super().__init__()
        self.data_preprocessor = preprocessor


def test_frames_and_views_are_pictures(root):
    frames = [dict(type='TransformBroadcaster', transforms=[
        LOAD, dict(type='mmdet.LoadTrackAnnotations')]),
        dict(type='mmdet.PackTrackInputs')]
    cfg = config(dict(type='mmdet.MOTChallengeDataset', pipeline=frames))
    (batch, ) = file_batches(cfg, [str(root / '0' / '0.png')])
    inputs = network_inputs(Preprocessed(TrackDataPreprocessor()), batch)
    assert inputs.shape == (1, 3, 16, 20)
    views = dict(inputs=[torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)],
                 data_samples=None)
    inputs = network_inputs(Preprocessed(SelfSupDataPreprocessor()), views)
    assert inputs.shape == (8, 3, 8, 8)
    texts = Preprocessed(lambda batch, training: dict(
        images=batch['inputs'], text=['a']))
    assert network_inputs(texts, dict(inputs=torch.zeros(1, 3, 8, 8))).shape == (
        1, 3, 8, 8)
    separate = dict(inputs=[torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)],
                    data_samples=None)
    padded = network_inputs(Preprocessed(DetDataPreprocessor()), dict(
        inputs=separate['inputs'][:1]))
    assert padded.shape == (1, 3, 8, 8)
    with pytest.raises(UsageError, match='batch size of 1'):
        network_inputs(Preprocessed(lambda batch, training: batch), separate)


class Tracker(BaseMOTModel):

    def __init__(self, detector):
        super().__init__(dict(type='mmdet.TrackDataPreprocessor'))
        with DefaultScope.overwrite_default_scope('mmdet'):
            self.detector = MODELS.build(detector)

    def loss(self, inputs, data_samples):
        pass

    def predict(self, inputs, data_samples):
        pass


def test_maps_of_a_tracker_explain_its_detector(root, digits_root):
    """One frame of a video, through a network with a detector in it."""
    pytest.importorskip('pytorch_grad_cam')
    cfg = small_config(digits_root)
    detector = cfg.model
    detector.pop('data_preprocessor')
    tracker = Tracker(detector).eval()
    frames = [dict(type='TransformBroadcaster', transforms=[
        LOAD, dict(type='mmdet.Resize', scale=(64, 64), keep_ratio=False)]),
        dict(type='mmdet.PackTrackInputs')]
    cfg = config(dict(type='mmdet.MOTChallengeDataset', pipeline=frames))
    (batch, ) = file_batches(cfg, [str(root / '0' / '0.png')])
    found = look(tracker, batch, ['layer4.1'], channels=1)
    assert found.target.startswith('the surest boxes')
    assert found.image.shape == (64, 64, 3)
    assert np.isfinite(found.pruned[0].cam).all()
