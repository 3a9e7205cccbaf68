"""The same network on mmpretrain, and the tools on a classifier's config."""
import shutil

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmpretrain import ImageClassificationInferencer, get_model
from mmpretrain.registry import MODELS
from support.classifier import train_classifier
from support.running import tool

from ela_mm.analysis.history import read_run
from ela_mm.engine.journal.record import read_record
from ela_mm.hosts.mmdet import ELAResNet as DetectionELAResNet
from ela_mm.hosts.mmpretrain import ELAResNet


def randomized(net):
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net.eval()


@pytest.mark.parametrize('depth', [18, 50])
def test_weights_and_mask_move_between_the_hosts(depth):
    detection = randomized(DetectionELAResNet(depth, base_channels=16))
    detection.skip_layers(['layer1.1', 'layer3.0'])
    classification = ELAResNet(depth, stem_channels=16, base_channels=16)
    classification.load_state_dict(detection.state_dict(), strict=True)
    assert classification.attention_layers == detection.attention_layers
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(classification.eval()(x)[-1], detection(x)[-1])


def test_drop_path_follows_the_hosts_rates():
    net = ELAResNet(18, drop_path_rate=0.7)
    rates = [getattr(layer.drop_path, 'drop_prob', 0.)
             for stage in (1, 2, 3, 4)
             for layer in getattr(net, f'layer{stage}').attention]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_registered_beside_the_detectors():
    init_default_scope('mmpretrain')
    assert type(MODELS.build(dict(type='ELAResNet', depth=18))) is ELAResNet


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return train_classifier(
        tmp_path_factory.mktemp('classifier'), '--auto-scale-lr')


def test_tools_train_a_classifier(trained):
    _, work_dir, output = trained
    assert 'Scaling the original LR by 0.5' in output
    assert read_record(work_dir)['decisions'][0]['skipped']


def test_tools_test_a_classifier_with_tta(trained, tmp_path):
    """In the run's own work dir, whose config stays the training's."""
    config, work_dir, _ = trained
    before = (work_dir / config.name).read_text()
    process = tool('test.py', config, work_dir / 'epoch_1.pth', '--work-dir',
                   work_dir, '--out', tmp_path / 'metrics.json', '--out-item',
                   'metrics', '--tta')
    assert process.returncode == 0, process.stderr[-2000:]
    assert 'accuracy/top1' in (tmp_path / 'metrics.json').read_text()
    active = read_record(work_dir)['active']
    assert f'{len(active)} of 16 attention layers active in ' in process.stdout
    assert (work_dir / config.name).read_text() == before
    (beside_the_log, ) = work_dir.glob(f'*/{config.name}')
    assert 'tta_model' in beside_the_log.read_text()


def test_a_run_is_read_with_the_config_it_was_trained_with(trained, tmp_path):
    """Also where another tool has put its own over it since."""
    config, work_dir, _ = trained
    copy = shutil.copytree(work_dir, tmp_path / 'work')
    (copy / config.name).write_text('model = dict(type="TTA")')
    cfg = Config.fromfile(read_run(str(copy)).config)
    assert cfg.model.backbone.type == 'ELAResNet' and cfg.load_from is None


def test_python_use_gives_the_pruned_network(trained):
    """mmpretrain's get_model and inferencer, with a plain checkpoint."""
    config, work_dir, _ = trained
    checkpoint = str(work_dir / 'epoch_1.pth')
    model = get_model(str(config), pretrained=checkpoint)
    active = [layer.name for layer in model.backbone.attention_layers
              if layer.active]
    assert active == read_record(work_dir)['active'] and len(active) < 16
    picture = next((config.parent / 'data' / '1').glob('*.png'))
    # MMPretrain 1.0 sets none where another is set.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        inferencer = ImageClassificationInferencer(
            str(config), pretrained=checkpoint, classes=['zero', 'one'])
    (result, ) = inferencer(str(picture))
    with torch.no_grad():
        data = model.data_preprocessor(
            dict(inputs=[torch.from_numpy(
                cv2.imread(str(picture))).permute(2, 0, 1)]))
        expected = model.eval()(data['inputs']).softmax(-1)[0]
    torch.testing.assert_close(
        torch.tensor(result['pred_scores']), expected, check_dtype=False,
        rtol=1e-4, atol=1e-5)
