"""A segmentor of another family than ResNet, through the tools."""
import pytest

pytest.importorskip('mmseg')

from support.running import tool  # noqa: E402
from support.segmentor import small_config  # noqa: E402

from ela_mm.datasets.digits import make_digit_maps  # noqa: E402
from ela_mm.engine.journal.record import read_record  # noqa: E402

BACKBONES = {
    'mit': dict(type='ELAMixVisionTransformer', embed_dims=8,
                num_layers=[1, 2, 3, 2]),
    'swin': dict(type='ELASwinTransformer', embed_dims=8, depths=(1, 2, 3, 2),
                 num_heads=(1, 2, 4, 8), window_size=2),
    # Of one resolution; the neck takes the same map four times.
    'vit': dict(type='ELAVisionTransformer', embed_dims=32, num_layers=8,
                num_heads=2, mlp_ratio=1, img_size=64, patch_size=8,
                out_indices=(1, 3, 5, 7)),
}
CHANNELS = dict(mit=[8, 16, 32, 64], swin=[8, 16, 32, 64], vit=[32] * 4)


def run(name, *arguments):
    process = tool(name, *arguments)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize('name', BACKBONES)
def test_every_tool_takes_a_segmentor_of_tokens(name, tmp_path):
    maps = tmp_path / 'maps'
    make_digit_maps(str(maps), num_train=12, num_val=4, size=64, seed=1)
    cfg = small_config(maps)
    cfg.model.backbone = BACKBONES[name]
    cfg.model.neck.in_channels = CHANNELS[name]
    config, work = tmp_path / 'small.py', tmp_path / 'work'
    cfg.dump(config)
    assert 'mIoU' in run('train.py', config, '--work-dir', work)
    record = read_record(work)
    assert len(record['active']) < len(record['layers'])
    checkpoint = work / 'iter_6.pth'
    assert 'mIoU' in run('test.py', config, checkpoint, '--work-dir',
                         tmp_path / 'test')
    out = ['--out', tmp_path / 'analysis']
    printed = run('analyze.py', 'features', config, checkpoint,
                  maps / 'val' / '00001.png', '--channels', 2, *out)
    assert 'pixels of class' in printed
    for command in (['ablate', config, checkpoint, '--images', 4],
                    ['whatif', work, '--no-time'],
                    ['cost', config, checkpoint, '--rounds', 2]):
        run('analyze.py', *command, *out)
    run('analyze.py', 'report', work, '--out', tmp_path / 'report.html')
    page = (tmp_path / 'report.html').read_text()
    assert 'pixels of class' in page and 'is left out' not in page
    printed = run('export_pruned.py', config, checkpoint, '--out',
                  tmp_path / 'small.pth', '--onnx', tmp_path / 'small.onnx',
                  '--shape', 64, 64)
    assert 'images (batch, 3, 64, 64) -> logits' in printed
