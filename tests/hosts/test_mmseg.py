"""mmseg's dilated ResNets with layer attention, and what only mmseg knows."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip('mmseg')

from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from support.einsum import assert_equals_einsum  # noqa: E402

from ela_mm.analysis.features import _seen  # noqa: E402
from ela_mm.apis.data import network_inputs, picture_shape  # noqa: E402
from ela_mm.apis.launch import set_up_distributed  # noqa: E402
from ela_mm.apis.onnx import part_of, parts  # noqa: E402
from ela_mm.errors import UsageError  # noqa: E402
from ela_mm.experiments.benchmark import build_backbone  # noqa: E402
from ela_mm.hosts.registration import host_of, host_of_model  # noqa: E402

D8 = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
SMALL = dict(base_channels=16, stem_channels=8, **D8)
# Every class, and every way of mmseg to dilate.
NETWORKS = {
    'ResNet': dict(depth=18, contract_dilation=True),
    'ResNetV1c': dict(depth=18, multi_grid=(1, 2)),
    'ResNetV1d': dict(depth=18, multi_grid=(1, 2), contract_dilation=True),
    'ResNeXt': dict(depth=50, groups=4, base_width=4, multi_grid=(1, 2, 4)),
    'ResNeSt': dict(depth=50, contract_dilation=True),
}


def build(kind, **options):
    """With a value of its own for every parameter, scales of 0 included."""
    net = MODELS.build(
        dict(type=f'mmseg.{kind}', **SMALL,
             **NETWORKS[kind.replace('ELA', '')], **options))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize('kind', NETWORKS)
def test_attends_as_the_equations_say(kind):
    net = build(f'ELA{kind}').double().train()
    assert_equals_einsum(net, torch.randn(2, 3, 40, 56, dtype=torch.float64))


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(['ResNet', 'ResNetV1c', 'ResNetV1d']),
    height=st.integers(17, 48),
    width=st.integers(17, 48),
    mask=st.lists(st.booleans(), min_size=8, max_size=8))
def test_any_mask_equals_a_network_without_those_layers(
        kind, height, width, mask):
    net = build(f'ELA{kind}').double().train()
    net.skip_layers([x.name for x, gone in zip(net.attention_layers, mask)
                     if gone])
    assert_equals_einsum(
        net, torch.randn(2, 3, height, width, dtype=torch.float64))


@pytest.mark.parametrize('kind', NETWORKS)
def test_starts_from_the_plain_network_bit_for_bit(kind):
    plain = build(kind)
    net = MODELS.build(
        dict(type=f'mmseg.ELA{kind}', zero_init_attention=True, **SMALL,
             **NETWORKS[kind]))
    for network in (plain, net):
        network.eval()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all('.attention.' in name for name in missing)
    x = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        ours, theirs = net(x), plain(x)
    for out, other in zip(ours, theirs):
        assert torch.equal(out, other)
    assert [tuple(out.shape[2:]) for out in ours] == [(10, 14)] + [(5, 7)] * 3
    for block, other in zip(net.layer4, plain.layer4):
        assert dilations(block) == dilations(other)
    assert max(dilations(net.layer4[1])) > (1, 1)


def dilations(block):
    return [module.dilation for module in block.modules()
            if isinstance(module, torch.nn.Conv2d)]


def test_bottlenecks_take_plugins_and_basic_blocks_do_not():
    plugins = [dict(cfg=dict(type='ContextBlock', ratio=1 / 4),
                    position='after_conv3')]
    net = MODELS.build(dict(type='mmseg.ELAResNetV1c', depth=50,
                            plugins=plugins, **SMALL))
    assert net.layer1[0].context_block
    with pytest.raises(UsageError, match='BasicBlock of mmseg takes none'):
        MODELS.build(dict(type='mmseg.ELAResNet', depth=18, plugins=plugins,
                          **SMALL))


def test_the_benchmark_measures_the_same_dilated_network():
    """Built with mmpretrain's class: the maps and parameters are mmseg's."""
    net = build_backbone('r50-d8', 'base')
    ours = MODELS.build(dict(type='mmseg.ELAResNetV1c', depth=50, **D8))
    assert (sum(p.numel() for p in net.parameters()) ==
            sum(p.numel() for p in ours.parameters()))
    x = torch.zeros(1, 3, 64, 64, device='meta')
    net.out_indices = (0, 1, 2, 3)
    with torch.no_grad():
        assert [out.shape for out in net.to('meta').eval()(x)] == [
            (1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 8, 8), (1, 2048, 8, 8)]


# --- a segmentor -------------------------------------------------------------


def segmentor(classes=('background', 'a', 'b'), **head):
    """FCN on ELA-ResNet-18-D8."""
    norm = dict(type='BN')
    return MODELS.build(ConfigDict(
        _scope_='mmseg',
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[0.] * 3, std=[1.] * 3,
            size=(48, 40)),
        backbone=dict(type='ELAResNetV1c', depth=18, norm_cfg=norm, **SMALL),
        decode_head=dict(
            type='FCNHead', in_channels=128, in_index=3, channels=8,
            num_convs=1, concat_input=False, num_classes=len(classes),
            norm_cfg=norm, **head),
        train_cfg=dict(), test_cfg=dict(mode='whole')))


def labelled(labels):
    """Of (1, H, W)."""
    return SegDataSample(gt_sem_seg=PixelData(data=labels))


def biased(model, *biases):
    """Every pixel gets the same logits."""
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    model.decode_head.conv_seg.bias.data = torch.tensor(biases)
    return model.eval()


def test_trains_a_step_in_half_precision():
    model = segmentor().train()
    inputs = torch.randn(2, 3, 48, 40)
    samples = [labelled(torch.randint(0, 3, (1, 48, 40))) for _ in inputs]
    with torch.autocast('cpu', torch.bfloat16):
        loss, _ = model.parse_losses(model(inputs, samples, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    for layer in model.backbone.attention_layers:
        assert layer.module.value.weight.grad.any(), layer.name


def test_whose_it_is():
    for scope, kind in (('mmseg', 'EncoderDecoder'),
                        ('mmdet', 'mmseg.EncoderDecoder')):
        cfg = Config(dict(default_scope=scope, model=dict(type=kind)))
        assert host_of(cfg).scope == 'mmseg'
    assert host_of_model(segmentor()).scope == 'mmseg'
    cfg = Config(dict(default_scope='mmseg', model=dict(
        backbone=dict(type='ELAResNet'))))
    assert picture_shape(cfg) == (512, 512)
    assert {'backbone', 'segmentor'} <= set(parts())


def test_pixels_of_the_largest_class_are_explained():
    """The background is what is left; its classes are the dataset's."""
    pytest.importorskip('pytorch_grad_cam')
    model = segmentor().eval()
    model.dataset_meta = dict(classes=('background', 'a', 'b'))
    inputs = torch.randn(1, 3, 48, 40)
    logits = torch.zeros(1, 3, 48, 40)
    logits[0, 0, :, 20:] = 5.  # half is background
    logits[0, 1, :10, :20] = torch.rand(10, 20) + 2
    logits[0, 2, 10:, :20] = torch.rand(38, 20) + 3
    model.encode_decode = lambda pictures, metas: logits
    explained = host_of_model(model).explain(model, dict(inputs=inputs))
    assert explained.label == 'the 760 pixels of class b'
    other = torch.randn(3, 48, 40)
    assert explained.target(other).item() == pytest.approx(
        other[2, 10:, :20].mean().item(), abs=1e-5)
    for wanted in ('a', '1'):
        explained = host_of_model(model).explain(
            model, dict(inputs=inputs), wanted)
        assert explained.label == 'the 200 pixels of class a'
    with pytest.raises(UsageError, match="no class 'c': expected one of "
                       'background, a, b, or a number below 3'):
        host_of_model(model).explain(model, dict(inputs=inputs), 'c')
    logits[:] = 0.
    logits[0, 0] = 1.
    with pytest.raises(UsageError, match="no pixel .* of class 'a': expected "
                       'one of background$'):
        host_of_model(model).explain(model, dict(inputs=inputs), 'a')
    explained = host_of_model(model).explain(model, dict(inputs=inputs))
    assert explained.label == 'the 1920 pixels of class background'


def test_pictures_of_several_sizes_are_padded_with_their_labels():
    """For analyses; mmseg pads in training alone."""
    model = segmentor()
    sizes = [(48, 24), (32, 40)]
    batch = dict(
        inputs=[torch.full((3, *size), 7, dtype=torch.uint8)
                for size in sizes],
        data_samples=[labelled(torch.ones(1, *size, dtype=torch.long))
                      for size in sizes])
    assert network_inputs(model, batch).shape == (2, 3, 48, 40)
    data = host_of_model(model).preprocess(model, batch)
    for picture, sample, (height, width) in zip(
            data['inputs'], data['data_samples'], sizes):
        labels = sample.gt_sem_seg.data[0]
        assert (picture[:, :height, :width] == 7).all()
        assert (labels[:height, :width] == 1).all()
        assert picture.sum() == 7 * 3 * height * width
        assert (labels == 255).sum() == 48 * 40 - height * width
    loss, _ = model.parse_losses(model.loss(**data))
    assert loss.isfinite()


def test_pictures_that_stay_bgr_are_shown_as_rgb():
    """mmseg names its option as no other host does."""
    model = segmentor()
    inputs = torch.zeros(1, 3, 4, 5)
    inputs[0, 0] = 1.
    for converts, channel in ((False, 2), (True, 0)):
        model.data_preprocessor.channel_conversion = converts
        shown = _seen(model, inputs)
        assert shown[..., channel].min() == 1 and shown.sum() == 20


@pytest.mark.parametrize('bias, label, sign', [(3., 'b', 1), (-3., 'a', -1)])
def test_two_classes_of_one_logit_are_explained(bias, label, sign):
    pytest.importorskip('pytorch_grad_cam')
    model = biased(segmentor(('a', 'b'), out_channels=1, loss_decode=dict(
        type='CrossEntropyLoss', use_sigmoid=True)), bias)
    model.dataset_meta = dict(classes=('a', 'b'))
    inputs = torch.randn(1, 3, 48, 40)
    explained = host_of_model(model).explain(model, dict(inputs=inputs))
    assert explained.label == f'the 1920 pixels of class {label}'
    answer = explained.answer(model)(inputs)[0]
    assert explained.target(answer).item() == pytest.approx(sign * bias)


def test_a_segmentor_is_exported_with_maps_of_the_pictures_size():
    model = segmentor().eval()
    images = torch.randn(3, 3, 48, 40)
    with torch.no_grad():
        expected = torch.stack([
            x.seg_logits.data for x in model(images, mode='predict')])
        module, names = part_of(model)
        assert names == ['logits']
        torch.testing.assert_close(module(images), expected)
        module, names = part_of(model, scores=True)
        assert names == ['scores']
        exponents = expected.exp()
        torch.testing.assert_close(
            module(images), exponents / exponents.sum(1, keepdim=True))
    assert part_of(model, 'backbone')[0] is model.backbone
    with pytest.raises(UsageError, match="part 'classifier' of a "
                       'EncoderDecoder'):
        part_of(model, 'classifier')


def test_only_pictures_are_flipped():
    """mmseg flips predictions back; labels loaded before would stay flipped."""
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(4, 4)),
             dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    cfg = Config(dict(
        default_scope='mmseg', model=dict(type='EncoderDecoder'),
        test_dataloader=dict(dataset=dict(
            type='ADE20KDataset', pipeline=steps))))
    host_of(cfg).tta(cfg)
    assert cfg.model.type == 'mmseg.SegTTAModel'
    *load, augment = cfg.test_dataloader.dataset.pipeline
    assert [x.type for x in load] == ['LoadImageFromFile', 'Resize']
    assert [[x.type for x in branch] for branch in augment.transforms] == [
        ['mmseg.RandomFlip'] * 2, ['LoadAnnotations'], ['PackSegInputs']]


def test_every_picture_is_drawn_into_the_folder():
    cfg = Config(dict(default_scope='mmseg', default_hooks=dict(
        visualization=dict(type='SegVisualizationHook'))))
    host_of(cfg).show(cfg, '/x')
    assert cfg.default_hooks.visualization == dict(
        type='SegVisualizationHook', draw=True, interval=1)
    assert cfg.visualizer.save_dir == '/x'
    assert cfg.visualizer.vis_backends == [dict(type='LocalVisBackend')]


def test_predictions_are_dumped_without_logits(tmp_path):
    path = tmp_path / 'x.pkl'
    cfg = Config(dict(default_scope='mmseg'))
    metric = host_of(cfg).dump_results(str(path))
    labels = torch.tensor([[[0, 255]]])
    metric.process({}, [
        dict(pred_sem_seg=dict(data=labels * many), img_path='a',
             seg_logits=dict(data=torch.zeros(3, 1, 2))) for many in (1, 2)])
    few, many = metric.results
    assert set(few) == {'pred_sem_seg', 'img_path'}
    assert few['pred_sem_seg']['data'].dtype == torch.uint8
    assert np.array_equal(few['pred_sem_seg']['data'], labels)
    assert np.array_equal(many['pred_sem_seg']['data'], labels * 2)


def test_synchronised_norms_are_refused_on_cpus_with_the_way_out(monkeypatch):
    """mmseg's configs have them; torch's fail in the first step."""
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = get_config('mmseg::_base_/models/fcn_r50-d8.py')
    cfg.launcher = 'pytorch'
    with pytest.raises(UsageError, match='SyncBN.* --cfg-options '
                       'model.backbone.norm_cfg.type=BN '
                       'model.decode_head.norm_cfg.type=BN '
                       'model.auxiliary_head.norm_cfg.type=BN'):
        set_up_distributed(cfg)
