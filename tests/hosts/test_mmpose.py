"""mmpose's ResNets with layer attention, where MMPose can be imported."""
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from support.einsum import assert_equals_einsum
from torch.utils.data import Dataset

from ela_mm.apis.onnx import part_of
from ela_mm.engine.journal.record import read_record
from ela_mm.errors import UsageError
from ela_mm.hosts.registration import host_of, host_of_model, installed

if 'mmpose' not in [host.scope for host in installed()]:
    pytest.skip('mmpose, or its xtcocotools, cannot be imported',
                allow_module_level=True)

SMALL = dict(base_channels=16, stem_channels=8, out_indices=(0, 1, 2, 3))
NETWORKS = {
    'ResNet': dict(depth=18),
    'ResNetV1d': dict(depth=18),
    'ResNeXt': dict(depth=50, groups=4, width_per_group=4),
    'SEResNet': dict(depth=50),
    'SEResNeXt': dict(depth=50, groups=4, width_per_group=4),
    'ResNeSt': dict(depth=50),
}


def build(kind, **options):
    return MODELS.build(dict(
        type=f'mmpose.{kind}', **SMALL, **NETWORKS[kind.replace('ELA', '')],
        **options))


@pytest.mark.parametrize('kind', NETWORKS)
def test_attends_as_the_equations_say(kind):
    net = build(f'ELA{kind}').double()
    net.train()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net.skip_layers(['layer2.0'])
    assert_equals_einsum(net, torch.randn(2, 3, 48, 40, dtype=torch.float64))


@pytest.mark.parametrize('kind', NETWORKS)
def test_starts_from_the_plain_network_bit_for_bit(kind):
    plain, net = build(kind), build(f'ELA{kind}', zero_init_attention=True)
    for network in (plain, net):
        network.eval()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all('.attention.' in name for name in missing)
    x = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        for ours, theirs in zip(net(x), plain(x)):
            assert torch.equal(ours, theirs)


@DATASETS.register_module(force=True)
class Persons(Dataset):
    """Noise, with mmpose's own noise of labels."""
    metainfo = {}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        from mmpose.testing import get_packed_inputs
        packed = get_packed_inputs(1, img_shape=(64, 64), input_size=(64, 64),
                                   heatmap_size=(16, 16))
        return {name: values[0] for name, values in packed.items()}


def estimator():
    return ConfigDict(
        _scope_='mmpose',
        type='TopdownPoseEstimator',
        data_preprocessor=dict(type='PoseDataPreprocessor', mean=[127.] * 3,
                               std=[60.] * 3),
        backbone=dict(type='ELAResNet', depth=18, base_channels=16,
                      stem_channels=8),
        head=dict(
            type='HeatmapHead', in_channels=128, out_channels=17,
            deconv_out_channels=(16, 16, 16), deconv_kernel_sizes=(4, 4, 4),
            loss=dict(type='KeypointMSELoss', use_target_weight=True),
            decoder=dict(type='MSRAHeatmap', input_size=(64, 64),
                         heatmap_size=(16, 16), sigma=2)))


def test_a_run_prunes(tmp_path):
    cfg = Config(dict(
        default_scope='mmpose', model=estimator(), work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2, num_workers=0, dataset=dict(type='Persons'),
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-3)),
        custom_hooks=[dict(type='ELAPruneHook', windows=[(1, 1)],
                           criterion=dict(type='fixed', n=2))],
        experiment_name='mmpose'))
    Runner.from_cfg(cfg).train()
    (decision, ) = read_record(tmp_path)['decisions']
    assert len(decision['skipped']) == 2
    state = torch.load(tmp_path / 'epoch_2.pth')['state_dict']
    assert state['backbone.active'].sum() == 6


def test_what_only_mmpose_knows():
    model = MODELS.build(estimator())
    model.eval()
    host = host_of_model(model)
    assert host.scope == 'mmpose' and host.picture_shape({}) == (256, 192)
    assert part_of(model)[0] is model.backbone
    cfg = Config(dict(
        default_scope='mmpose', model=dict(type='TopdownPoseEstimator'),
        test_dataloader=dict(dataset=dict(pipeline=[]))))
    with pytest.raises(UsageError, match='model.test_cfg.flip_test=True'):
        host_of(cfg).tta(cfg)


def test_peaks_of_the_heatmaps_are_explained():
    model = MODELS.build(estimator())
    model.eval()
    inputs = torch.randn(1, 3, 64, 64)
    host = host_of_model(model)
    explained = host.explain(model, dict(inputs=inputs))
    with torch.no_grad():
        heatmaps = model.head(model.backbone(inputs))[0]
        answer = explained.answer(model)(inputs)[0]
    assert explained.label == 'the 17 joints that are found'
    assert explained.target(answer).item() == pytest.approx(
        heatmaps.amax((1, 2)).mean().item())
    # Elsewhere it does not matter how warm it is.
    lowest = heatmaps.flatten(1).argmin(1, keepdim=True)
    other = torch.zeros_like(heatmaps).flatten(1).scatter(1, lowest, 1e6)
    assert explained.target(other.view_as(heatmaps)).item() == 0
    model.head = torch.nn.Linear(2, 3)
    model._forward = lambda *args: (heatmaps, heatmaps)
    with pytest.raises(UsageError, match='answers with no heatmaps'):
        host.explain(model, dict(inputs=inputs))
