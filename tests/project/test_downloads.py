"""Without a network: what could not be downloaded is named, with ways out."""
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config
from support import ROOT
from support.toy import toy_config

from ela_mm.analysis.plan import make_plan
from ela_mm.apis import downloads
from ela_mm.apis.downloads import (
    cached_file,
    downloads_explained,
    remote_weights,
    url_of,
)
from ela_mm.apis.launch import build_runner, run
from ela_mm.apis.loading import load_model
from ela_mm.errors import UsageError
from ela_mm.experiments.checks import check_cells
from ela_mm.experiments.grid import cells, read_grid

RESNET = 'https://download.pytorch.org/models/resnet50-0676ba61.pth'


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No name server, and a cache of its own; returns the cache."""

    def no_network(url, *args, **kwargs):
        raise URLError(OSError(-3, 'Temporary failure in name resolution'))

    monkeypatch.setattr(torch.hub, 'urlopen', no_network)
    monkeypatch.setattr('urllib.request.urlopen', no_network)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


@pytest.mark.parametrize('name, url', [
    ('torchvision://resnet50', RESNET),
    ('modelzoo://resnet50', RESNET),
    (RESNET, RESNET),
    ('open-mmlab://resnet50_v1c',
     'https://download.openmmlab.com/pretrain/third_party/'
     'resnet50_v1c-2cccc1ad.pth'),
    ('mmcls://mobilenet_v2', 'https://download.openmmlab.com/mmclassification/'
     'v0/mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth'),
    ('s3://bucket/file.pth', None), ('torchvision://no_such_net', None),
    ('some/file.pth', None),
])
def test_where_weights_come_from(name, url, offline):
    found = url_of(name)
    # The forks have a copy of their own.
    assert url == (found and found.replace('mmassets.onedl.ai',
                                           'download.openmmlab.com'))
    if url:
        assert cached_file(url) == str(offline / url.split('/')[-1])


def test_every_place_is_found():
    cfg = Config(dict(
        load_from='https://x.y/z.pth',
        model=dict(
            pretrained='open-mmlab://a', init_cfg=dict(checkpoint='file.pth'),
            heads=[dict(init_cfg=[dict(type='Constant'), dict(
                type='Pretrained', checkpoint='torchvision://b')])])))
    assert remote_weights(cfg) == {
        'model.pretrained': 'open-mmlab://a',
        'model.heads.0.init_cfg.1.checkpoint': 'torchvision://b',
        'load_from': 'https://x.y/z.pth'
    }
    assert remote_weights(Config()) == {}


def pretrained_toy(folder):
    return toy_config(folder, max_epochs=1, **{'model.backbone.init_cfg': dict(
        type='Pretrained', checkpoint='torchvision://resnet50')})


def train(cfg):
    with downloads_explained(cfg):
        build_runner(cfg).train()


def test_a_training_names_weights_place_and_ways_out(tmp_path, offline):
    with pytest.raises(UsageError) as raised:
        train(pretrained_toy(tmp_path))
    said = str(raised.value)
    for part in (
            'Temporary failure in name resolution', "'torchvision://resnet50'",
            'model.backbone.init_cfg.checkpoint', f'download {RESNET}',
            f'into {offline}', 'model.backbone.init_cfg.checkpoint=FILE',
            '--cfg-options model.backbone.init_cfg=None'):
        assert part in said


def test_the_ways_out_lead_out(tmp_path, offline):
    """Each of the three trains: the cache, a file, random weights."""
    state = {'conv1.weight': torch.zeros(16, 3, 7, 7)}
    offline.mkdir(parents=True)
    torch.save(state, offline / 'resnet50-0676ba61.pth')
    train(pretrained_toy(tmp_path / 'a'))
    (offline / 'resnet50-0676ba61.pth').rename(tmp_path / 'mine.pth')
    for folder, options in (('b', {'model.backbone.init_cfg.checkpoint': str(
            tmp_path / 'mine.pth')}), ('c', {'model.backbone.init_cfg': None})):
        cfg = pretrained_toy(tmp_path / folder)
        cfg.merge_from_dict(options)
        train(cfg)
        assert (tmp_path / folder / 'epoch_1.pth').is_file()


def test_load_from_is_named(tmp_path):
    cfg = toy_config(tmp_path, load_from='https://x.y/epoch_1.pth')
    with pytest.raises(UsageError, match=r"'https://x.y/epoch_1.pth' of "
                       r'load_from: .*load_from=FILE.*load_from=None'):
        train(cfg)


def test_a_checkpoint_of_test_analyze_and_export_is_named(tmp_path):
    with pytest.raises(UsageError, match="the checkpoint cannot be downloaded "
                       ".*'https://x.y/epoch_1.pth': download .* or name a "
                       'file instead'):
        load_model(toy_config(tmp_path), 'https://x.y/epoch_1.pth')


def test_data_that_download_themselves_are_named(tmp_path):
    cfg = toy_config(tmp_path, default_scope='mmpretrain')
    cfg.train_dataloader.dataset = dict(
        type='CIFAR10', data_root=str(tmp_path), split='train', pipeline=[])
    with pytest.raises(UsageError) as raised:
        train(cfg)
    assert str(raised.value).startswith('data cannot be downloaded (URLError')
    assert ('train_dataloader.dataset: download https://www.cs.toronto.edu/'
            f'~kriz/cifar-10-python.tar.gz elsewhere and unpack it in {tmp_path}'
            ) in str(raised.value)


def test_data_that_three_loaders_want_are_named_once():
    loader = dict(dataset=dict(type='CIFAR10', data_root='here'))
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=loader,
                      val_dataloader=loader, test_dataloader=loader))
    with pytest.raises(UsageError) as raised, downloads_explained(cfg):
        raise URLError('no network')
    assert str(raised.value).count('unpack it in here') == 1


def test_a_grid_asks_for_data_before_its_first_run(tmp_path):
    """Not each of its runs, one after the other."""
    (tmp_path / 'grid.yaml').write_text(
        'config: configs/ela_resnet20_cifar100.py\nseeds: [0, 1]\n'
        f'overrides: {{train_dataloader.dataset.data_root: {tmp_path}}}\n'
        'variants: {MRLA-base: {custom_hooks: []}, ELA: {}}\n')
    runs = cells(read_grid(str(tmp_path / 'grid.yaml')), str(ROOT))
    with pytest.raises(UsageError, match='^data cannot be downloaded .*cifar-100'
                       f'-python.tar.gz elsewhere and unpack it in {tmp_path}'):
        check_cells(runs)


def test_weights_that_a_test_does_not_need_are_not_blamed(tmp_path):
    cfg = pretrained_toy(tmp_path)
    with pytest.raises(URLError), downloads_explained(cfg, weights=False):
        raise URLError('of the data')


def test_whatever_else_is_downloaded_ends_in_one_line():

    def main():
        raise URLError(OSError('no network'))

    with pytest.raises(SystemExit, match='error: a download failed .no network'):
        run(main)


def test_other_connections_fail_as_they_do(tmp_path):
    cfg = toy_config(tmp_path)
    with pytest.raises(ConnectionResetError), downloads_explained(cfg):
        raise ConnectionResetError('of the data')


def test_what_is_cached_is_not_blamed(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, '_is_cached', lambda name: True)
    with pytest.raises(URLError), downloads_explained(
            pretrained_toy(tmp_path)):
        raise URLError('of the data')


def test_a_plan_says_what_will_be_downloaded(tmp_path, offline):
    cfg = pretrained_toy(tmp_path)
    cfg.model.backbone.depth = 18
    (note, ) = make_plan(cfg, rounds=0).notes
    assert note.startswith('torchvision://resnet50 of model.backbone.init_cfg.'
                           'checkpoint is not on this machine')
    path = Path(cached_file(url_of('torchvision://resnet50')))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert make_plan(cfg, rounds=0).notes == []
