"""ResNet replaced by ELAResNet in the hosts' own configs."""
import json
import subprocess
import sys

import pytest
from support import ROOT

from dev.drop_in.configs import Entry, count, load_model, replace_backbones
from dev.drop_in.run import cheapest_first
from dev.drop_in.trial import try_model

# One of each kind of detector. The whole list: dev/drop_in/run.py.
SAMPLE = [
    ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py'),  # anchors
    ('mmdet', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'),  # no anchors
    ('mmdet', 'faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py'),  # 3 stages
    ('mmdet', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'),
    ('mmdet', 'solo/decoupled-solo-light_r50_fpn_3x_coco.py'),
    ('mmdet', 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'),
    ('mmdet', 'detr/detr_r18_8xb2-500e_coco.py'),
    ('mmdet', 'ld/ld_r18-gflv1-r101_fpn_1x_coco.py'),  # with a teacher
    ('mmdet', 'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py'),  # groups of boxes
    ('mmpretrain', 'resnet/resnet18_8xb16_cifar10.py'),
    ('mmpretrain', 'seresnet/seresnext50-32x4d_8xb32_in1k.py'),
    ('mmpretrain', 'simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py'),
    ('mmpretrain', 'byol/benchmarks/mask-rcnn_r50_fpn_ms-1x_coco.py'),
    ('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
    # Other families than ResNet.
    ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py'),
    ('mmdet', 'hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py'),
    ('mmpretrain', 'deit/deit-tiny_4xb256_in1k.py'),
    ('mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'),
    # Data without masks; no head; heads that are trained undistilled.
    ('mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py'),
    ('mmpretrain', 'eva02/eva02-tiny-p14_headless.py'),
    ('mmpretrain', 'levit/levit-128s_8xb256_in1k.py'),
    # A classifier among detectors; targets of CLIP, which is small here.
    ('mmdet', 'rtmdet/classification/cspnext-tiny_8xb256-rsb-a1-600e_in1k.py'),
    ('mmpretrain', 'milan/milan_vit-base-p16_16xb256-amp-coslr-400e_in1k.py'),
    # Pictures with text, which a small BERT reads.
    ('mmdet', 'glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py'),
    # No size to pad pictures to.
    ('mmseg', 'upernet/upernet_r18_4xb4-160k_ade20k-512x512.py'),
    # Patches left out, and masked.
    ('mmpretrain', 'mae/mae_hivit-base-p16_8xb512-amp-coslr-400e_in1k.py'),
    ('mmpretrain',
     'simmim/simmim_swin-base-w6_16xb128-amp-coslr-100e_in1k-192px.py'),
]
SLOW = ('yolox', 'hrnet', 'segformer', 'mae', 'simmim', 'rtmdet', 'levit',
        'upernet', 'milan', 'glip')


def parameters():
    for host, config in SAMPLE:
        family = config.split('/')[0]
        yield pytest.param(host, config, id=family, marks=[
            pytest.mark.slow] if family in SLOW else [])


@pytest.mark.parametrize('host, config', parameters())
def test_builds_and_trains_a_step(host, config):
    """With the plain backbone, and with ELA's in its place."""
    pytest.importorskip(host)
    if config.startswith('glip'):
        pytest.importorskip('transformers')
    result = try_model(Entry(host, '', '', [config], []))
    assert {name: result.get(name) for name in (
        'plain_build', 'ela_build', 'plain_step', 'ela_step')} == dict.fromkeys(
            ('plain_build', 'ela_build', 'plain_step', 'ela_step'), 'ok')


def test_replaces_backbones_wherever_they_stand():
    replaced = []
    model = load_model('mmdet', 'ld/ld_r18-gflv1-r101_fpn_1x_coco.py')
    ours = replace_backbones(model, 'mmdet', replaced)
    assert replaced == ['ResNet', 'ResNet']
    assert ours['backbone'] == {**model['backbone'], 'type': 'mmdet.ELAResNet'}
    teacher = ours['teacher_config']['model']['backbone']
    assert teacher['type'] == 'mmdet.ELAResNet' and teacher['depth'] == 101
    assert model['backbone']['type'] == 'ResNet'  # left as it was
    # Of another host, and what ELA has no variant of.
    assert replace_backbones(dict(type='mmpretrain.SEResNet'), 'mmdet') == dict(
        type='mmpretrain.ELASEResNet')
    for other in ('Darknet', 'torchvision.ResNet', 'mmdet.SEResNet'):
        assert replace_backbones(dict(type=other), 'mmdet') == dict(type=other)


def test_counts_models_and_configs():
    entries = [Entry('mmdet', key, 'f', ['x'] * n, []) for key, n in (
        ('a', 1), ('b', 2), ('c', 4))]
    counts = count(entries, dict(
        a=dict(plain_build='ok', ela_build='ok'),
        b=dict(plain_build='ok', ela_build='KeyError: b')))
    assert counts['found'] == (3, 7)
    assert counts['plain_build'] == counts['plain_build tried'] == (2, 3)
    assert counts['ela_build'] == (1, 1)
    assert counts['ela_build tried'] == (2, 3)
    assert counts['ela_step tried'] == (0, 0)


def test_families_without_a_step_come_first_then_what_is_cheap():
    entries = [Entry('mmdet', key, family, [], []) for key, family in (
        ('a', 'tried'), ('b', 'tried'), ('c', 'new'), ('d', 'new'),
        ('e', 'newer'), ('f', 'tried'))]
    seconds = dict(b=9, c=5, d=2, e=3, f=1)
    results = {key: dict(seconds=value) for key, value in seconds.items()}
    results['a'] = dict(plain_step='ok')
    ordered = cheapest_first(entries, entries[1:], results)
    assert [e.key for e in ordered] == ['d', 'e', 'f', 'c', 'b']
    del results['f']  # of which nothing is known
    ordered = cheapest_first(entries, entries[1:], results)
    assert [e.key for e in ordered] == ['d', 'e', 'c', 'b', 'f']


@pytest.mark.slow
def test_tool_goes_on_where_it_was(tmp_path):
    out = tmp_path / 'out.jsonl'
    arguments = ['--host', 'mmpretrain', '--build-only', '--out',
                 str(out)]

    def keys():
        lines = map(json.loads, out.read_text().splitlines())
        return [line['key'] for line in lines if 'key' in line]

    def campaign(*more):
        return subprocess.run(
            [sys.executable, '-m', 'dev.drop_in.run', *arguments, *more],
            cwd=ROOT, capture_output=True, text=True, timeout=300)

    process = campaign('--limit', '2')
    assert process.returncode == 0, process.stderr[-2000:]
    assert len(keys()) == 2
    again = campaign()
    assert again.returncode == 1 and '--resume' in again.stderr
    process = campaign('--limit', '1', '--resume')
    assert process.returncode == 0, process.stderr[-2000:]
    assert len(set(keys())) == 3
    assert 'ELA builds' in process.stdout
