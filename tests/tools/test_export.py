"""Deploy checkpoints and ONNX, by the tool and in Python."""
import importlib.util
from collections import Counter

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmpretrain import get_model
from mmpretrain.models.backbones import ResNet as PlainResNet
from support import ROOT
from support.classifier import CONFIG
from support.running import tool
from support.toy import energy, toy_config, toy_runner

from ela_mm.apis import onnx as exporting
from ela_mm.apis.deploy import write_deploy_checkpoint
from ela_mm.apis.loading import load_model
from ela_mm.apis.onnx import export_onnx, part_of
from ela_mm.hosts.mmpretrain import ELAResNet
from ela_mm.models.backbones.pictures import picture_channels

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
SMALL = dict(depth=18, stem_channels=16, base_channels=16)
SKIPPED = ['layer1.1', 'layer3.0', 'layer4.0', 'layer4.1']


def seen_data(net, side=64):
    """A network whose parameters and norms are none of a fresh one's."""
    for name, parameter in net.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.normal_(parameter, std=0.1)
    net.train()
    with torch.no_grad():
        net(torch.randn(4, picture_channels(net), side, side))
    net.eval()
    return net


def same_outputs(net, other, side=64):
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        for a, b in zip(net.eval()(x), other.eval()(x)):
            assert torch.equal(a, b)


def without_unused(net) -> dict:
    unused = {n for names in net.unused_state().values() for n in names}
    return {k: v for k, v in net.state_dict().items() if k not in unused}


# --- loading -----------------------------------------------------------------


@pytest.mark.parametrize('zero_init', [False, True])
@pytest.mark.parametrize('skip', ['layer', 'retrieval'])
def test_skipped_layers_may_be_missing(skip, zero_init):
    options = dict(SMALL, zero_init_attention=zero_init)
    net = seen_data(ELAResNet(**options))
    net.skip_layers(SKIPPED, skip=skip)
    state = without_unused(net)
    parts = {k.split('.')[3] for k in net.state_dict() if k not in state}
    assert parts == {'query', 'norm', 'key', 'value'} | (
        {'scale'} if zero_init else set())
    # Visible to layer3.1; nobody is left to see those of layer1 and layer4.
    visible = skip == 'retrieval'
    assert ('layer3.attention.0.key.weight' in state) == visible
    assert ('layer3.attention.0.value.weight' in state) == visible
    assert not any(k.startswith('layer4.attention') for k in state)

    fresh = ELAResNet(**options)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    fresh.load_state_dict(state, strict=True)
    same_outputs(net, fresh)
    assert fresh.attention_layers == net.attention_layers
    for name, value in fresh.state_dict().items():
        expected = state[name] if name in state else before[name]
        assert torch.equal(value, expected), name
    # And with the tensors taken over.
    assigned = ELAResNet(**options)
    assigned.load_state_dict(state, strict=True, assign=True)
    same_outputs(net, assigned)


@pytest.mark.parametrize('missing', [
    'layer1.attention.0.query.weight',  # active
    'layer3.attention.0.value.weight',  # still visible
    'layer1.1.conv1.weight',  # of a skipped layer's block
    'layer2.attention.1.norm.running_mean',
])
def test_all_else_has_to_be_there(missing):
    net = ELAResNet(**SMALL)
    net.skip_layers(SKIPPED, skip='retrieval')
    state = without_unused(net)
    del state[missing]
    with pytest.raises(RuntimeError, match=f'Missing.*"{missing}"'):
        ELAResNet(**SMALL).load_state_dict(state, strict=True)
    result = ELAResNet(**SMALL).load_state_dict(state, strict=False)
    assert result.missing_keys == [missing]


def test_a_part_of_a_skipped_layer_is_an_error():
    net = ELAResNet(**SMALL)
    net.skip_layers(SKIPPED)
    state = net.state_dict()
    del state['layer3.attention.0.value.weight']
    with pytest.raises(RuntimeError, match='layer3.attention.0.value.weight'):
        ELAResNet(**SMALL).load_state_dict(state, strict=True)


# --- deploy checkpoints ------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work dir and averaged model of a run with EMA, pruned after epoch 1."""
    work_dir = tmp_path_factory.mktemp('trained')
    runner = toy_runner(work_dir, max_epochs=2, hooks=[dict(type='EMAHook')])
    runner.train()
    checkpoint = work_dir / 'epoch_2.pth'
    cfg = toy_config(work_dir)
    cfg.dump(work_dir / 'config.py')
    averaged = MODELS.build(cfg.model)
    load_checkpoint(averaged, str(checkpoint), strict=True)
    (ema, ) = [h for h in runner.hooks if type(h).__name__ == 'EMAHook']
    assert energy(averaged) == energy(ema.ema_model.module)
    assert energy(averaged) != energy(runner.model)
    return work_dir, averaged


@pytest.fixture(scope='module')
def deployed(trained):
    work_dir, averaged = trained
    source, target = work_dir / 'epoch_2.pth', work_dir / 'small' / 'd.pth'
    model, checkpoint = load_model(toy_config(work_dir), str(source))
    done = write_deploy_checkpoint(model, checkpoint, str(source), str(target))
    return target, done


def test_deploy_checkpoint_holds_what_the_network_uses(trained, deployed):
    """The averaged weights, without skipped layers and training's state."""
    work_dir, averaged = trained
    target, done = deployed
    checkpoint = torch.load(target, weights_only=True)
    assert set(checkpoint) == {'meta', 'state_dict'}
    state = checkpoint['state_dict']
    backbone = averaged.backbone
    skipped = [x for x in backbone.attention_layers if not x.active]
    assert skipped and done.layers == 16
    assert done.active == 16 - len(skipped) and done.has_mask
    gone = {f'backbone.layer{x.stage}.attention.{x.index}.' for x in skipped}
    for name, value in averaged.state_dict().items():
        if any(name.startswith(prefix) for prefix in gone):
            assert name not in state and name in done.left_out
        else:
            assert torch.equal(state[name], value)
    assert done.bytes_after == target.stat().st_size
    before = (work_dir / 'epoch_2.pth').stat().st_size
    # AdamW's two moments, the averages and the weights themselves.
    assert done.bytes_before == before > 3.5 * done.bytes_after
    assert list(target.parent.iterdir()) == [target]  # nothing temporary
    # The experiment's and the data's description stay.
    assert 'cfg' in checkpoint['meta']


def test_deploy_checkpoint_loads_like_any_other(trained, deployed, tmp_path):
    work_dir, averaged = trained
    target, _ = deployed
    for strict in (False, True):
        model = MODELS.build(toy_config(work_dir).model)
        load_checkpoint(model, str(target), strict=strict)
        assert energy(model) == energy(averaged)
    # Once more: nothing is left to leave out.
    again, checkpoint = load_model(toy_config(work_dir), str(target))
    done = write_deploy_checkpoint(again, checkpoint, str(target),
                                   str(tmp_path / 'again.pth'))
    assert done.left_out == [] and done.parameters == 0
    assert energy(again) == energy(averaged)


def test_fine_tuning_goes_on_with_the_pruned_network(trained, deployed,
                                                     tmp_path):
    work_dir, averaged = trained
    target, _ = deployed
    before = averaged.backbone.attention_layers
    runner = toy_runner(
        tmp_path, max_epochs=1, load_from=str(target),
        hook=dict(skip='retrieval'), **{'model.backbone.norm_eval': True})
    runner.train()
    after = runner.model.backbone.attention_layers
    assert not any(a.active and not b.active for a, b in zip(after, before))
    # A skipped layer's fresh norm is no norm that has to see data first.
    assert not runner.model.backbone.fresh_norms
    # A training checkpoint again: every parameter is in there.
    state = torch.load(tmp_path / 'epoch_1.pth')['state_dict']
    assert state.keys() == averaged.state_dict().keys()


def test_resuming_from_it_is_refused(deployed, tmp_path):
    target, _ = deployed
    runner = toy_runner(tmp_path, load_from=str(target), resume=True)
    with pytest.raises(ValueError, match='deploy checkpoint.*load_from'):
        runner.train()


# --- ONNX --------------------------------------------------------------------


def exported(net, path, **options):
    net.eval()  # which returns None in the hosts
    outputs = [f'feature_{i + 1}' for i in net.out_indices]
    export_onnx(net, outputs, str(path), **options)
    return onnx.load(str(path)).graph


def kinds(graph) -> Counter:
    return Counter(node.op_type for node in graph.node)


def test_nothing_is_left_of_skipped_layers(tmp_path):
    """All skipped: a plain ResNet's graph, node by node."""
    net = ELAResNet(**SMALL, out_indices=(0, 1, 2, 3))
    net.skip_layers([x.name for x in net.attention_layers])
    plain = PlainResNet(**SMALL, out_indices=(0, 1, 2, 3))
    plain.load_state_dict(
        {k: v for k, v in net.state_dict().items() if k in plain.state_dict()})
    ours = exported(seen_data(net), tmp_path / 'a.onnx', shape=(64, 96))
    theirs = exported(seen_data(plain), tmp_path / 'b.onnx', shape=(64, 96))
    assert kinds(ours) == kinds(theirs)
    assert sorted(i.name for i in ours.initializer) == sorted(
        i.name for i in theirs.initializer)
    assert b'attention' not in (tmp_path / 'a.onnx').read_bytes()


@pytest.mark.parametrize('skip', ['layer', 'retrieval'])
def test_the_graph_of_some_skipped_layers(tmp_path, skip):
    net = seen_data(ELAResNet(**SMALL, out_indices=(1, 3)))
    net.skip_layers(['layer2.1', 'layer3.0'], skip=skip)
    path = tmp_path / 'some.onnx'
    graph = exported(net, path, shape=(32, 32))
    # One depthwise convolution per visible layer, one norm per active one
    # (the exporter folds those of the blocks into their convolutions).
    groups = Counter(
        attribute.i for node in graph.node if node.op_type == 'Conv'
        for attribute in node.attribute if attribute.name == 'group')
    visible = 7 if skip == 'retrieval' else 6
    assert sum(n for group, n in groups.items() if group > 1) == visible
    assert kinds(graph)['Softmax'] == 6
    names = ' '.join(i.name for i in graph.initializer)
    assert 'layer2.attention.0.value' in names
    assert 'layer2.attention.1' not in names
    assert ('layer3.attention.0.value' in names) == (skip == 'retrieval')
    assert 'layer3.attention.0.norm' not in names
    # No notes on the exporting machine's files.
    assert b'.py' not in path.read_bytes()
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            expected = net(x)
        results = session.run(['feature_2', 'feature_4'],
                              dict(images=x.numpy()))
        for result, reference in zip(results, expected):
            torch.testing.assert_close(
                torch.from_numpy(result), reference, rtol=1e-4, atol=1e-4)


def test_open_height_width_and_channels(tmp_path):
    """One graph for any size, of pictures with four channels."""
    net = seen_data(ELAResNet(**SMALL, in_channels=4, out_indices=(1, 3)), 64)
    net.skip_layers(['layer2.1', 'layer3.0'], skip='retrieval')
    path = tmp_path / 'open.onnx'
    graph = exported(net, path, shape=(64, 32), dynamic=True)
    sides = [d.dim_param or d.dim_value
             for d in graph.input[0].type.tensor_type.shape.dim]
    assert sides == ['batch', 4, 'height', 'width']
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    for batch, height, width in ((2, 64, 32), (1, 97, 130), (3, 33, 64)):
        x = torch.randn(batch, 4, height, width)
        with torch.no_grad():
            expected = net(x)
        for result, reference in zip(
                session.run(None, dict(images=x.numpy())), expected):
            torch.testing.assert_close(
                torch.from_numpy(result), reference, rtol=1e-4, atol=1e-4)


class OneSize(torch.nn.Module):
    """Its pictures have to be of one size, as some vision transformers'."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.place = torch.nn.Parameter(torch.zeros(4, 30, 30))

    def forward(self, x):
        return self.first(x) + self.place


def test_what_takes_one_size_has_no_open_sides(tmp_path):
    path = tmp_path / 'x.onnx'
    with pytest.raises(ValueError, match='with an open height: it takes 32 '
                       'alone, leave out --dynamic'):
        export_onnx(OneSize(), ['y'], str(path), (32, 32), dynamic=True)
    assert not path.exists()


class TwoOutputs(torch.nn.Module):

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.second = torch.nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.first(x), self.second(x)


@pytest.mark.parametrize('damaged', ['first.weight', 'second.weight'])
def test_a_graph_that_differs_is_not_written(damaged, tmp_path, monkeypatch):
    """In any of its outputs."""
    net = TwoOutputs()
    tidy = exporting._tidy

    def damage(file, opset):
        tidy(file, opset)
        model = onnx.load(file)
        (weight, ) = [x for x in model.graph.initializer if x.name == damaged]
        weight.CopyFrom(onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(weight) * 1.1, damaged))
        onnx.save(model, file)

    monkeypatch.setattr(exporting, '_tidy', damage)
    with pytest.raises(ValueError, match='onnxruntime differs.* by'):
        export_onnx(net, ['y', 'z'], str(tmp_path / 'x.onnx'), (32, 32))
    assert not list(tmp_path.iterdir())


def test_torchscript_traces_the_same(tmp_path):
    """Other exporters trace with TorchScript: any batch, no Function."""
    net = seen_data(ELAResNet(**SMALL), 32)
    net.skip_layers(['layer2.1', 'layer3.0'], skip='retrieval')
    with torch.no_grad():
        traced = torch.jit.trace(net, torch.randn(2, 3, 32, 32))
        text = str(traced.inlined_graph)
        assert 'PythonOp' not in text and 'aten::addcmul_' in text
        x = torch.randn(3, 3, 32, 32)
        for a, b in zip(traced(x), net(x)):
            torch.testing.assert_close(a, b)


def test_torch_export_sees_the_plain_sum():
    net = seen_data(ELAResNet(**SMALL), 32)
    batch = torch.export.Dim('batch')
    program = torch.export.export(
        net, (torch.randn(2, 3, 32, 32), ), dynamic_shapes=({0: batch}, ))
    operators = {str(node.target) for node in program.graph.nodes}
    assert any('addcmul' in name for name in operators)
    assert not any('autograd' in name or 'bmm' in name for name in operators)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for a, b in zip(program.module()(x), net(x)):
            torch.testing.assert_close(a, b)


# --- the tool ----------------------------------------------------------------


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """Config and checkpoint of a classifier, pruned by hand."""
    folder = tmp_path_factory.mktemp('classifier')
    config = folder / 'config.py'
    config.write_text(CONFIG.replace('{root}', 'nowhere'))
    model = get_model(str(config), device='cpu')
    seen_data(model)
    model.backbone.skip_layers(['layer2.1', 'layer3.3', 'layer3.4'])
    torch.save(dict(meta=dict(epoch=1), state_dict=model.state_dict(),
                    optimizer=dict()), folder / 'epoch_1.pth')
    return config, folder / 'epoch_1.pth', model.eval()


def test_tool_exports_a_classifier(classifier, tmp_path):
    config, checkpoint, model = classifier
    out, graph = tmp_path / 'x.pth', tmp_path / 'x.onnx'
    process = tool('export_pruned.py', config, checkpoint, '--out', out,
                   '--onnx', graph, '--scores', '--shape', 48, 64)
    assert process.returncode == 0, process.stderr[-2000:]
    assert '13 of 16 attention layers are active; left out 24' in (
        process.stdout)
    assert 'as only training needs it: optimizer\n' in process.stdout
    assert 'MB' in process.stdout and '-> scores' in process.stdout
    assert ('any number of pictures, of 48 x 64 pixels and no other size'
            in process.stdout)
    assert ('channels in the order BGR, normalised as the config does: mean '
            '[40, 40, 40], std [60, 60, 60]') in process.stdout
    assert 'training mode' not in process.stderr
    loaded = get_model(str(config), pretrained=str(out)).eval()
    images = torch.randn(3, 3, 48, 64)
    with torch.no_grad():
        expected = model(images).softmax(-1)
        assert torch.equal(loaded(images), model(images))
    session = onnxruntime.InferenceSession(
        str(graph), providers=['CPUExecutionProvider'])
    (scores, ) = session.run(['scores'], dict(images=images.numpy()))
    torch.testing.assert_close(
        torch.from_numpy(scores), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('config', [
    dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True),
    dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=False),
    dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=True),
    dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=False),
    dict(type='mmpretrain.SelfSupDataPreprocessor', to_rgb=True),
    dict(type='ImgDataPreprocessor', rgb_to_bgr=True),
    dict(type='ImgDataPreprocessor'),
])
def test_the_order_of_channels_is_what_the_network_sees(config):
    """Of a picture as pipelines load it: blue is 0, green 1, red 2."""
    picture = torch.arange(3.).view(3, 1, 1).expand(3, 4, 4)
    steps = MODELS.build(dict(config, mean=[0.] * 3, std=[1.] * 3))
    # Its loader has put the pictures of each view together.
    views = config['type'] == 'mmpretrain.SelfSupDataPreprocessor'
    seen = steps(dict(inputs=picture[None] if views else [picture],
                      data_samples=None))['inputs']
    assert exporting.channel_order(steps) == {0.: 'BGR', 2.: 'RGB'}[
        seen[0, 0, 0, 0].item()]


@pytest.fixture(scope='module')
def main():
    """The tool's main, in this process."""
    spec = importlib.util.spec_from_file_location(
        'export_pruned', ROOT / 'tools' / 'export_pruned.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('sys.argv', ['tool', *map(str, arguments)])
            module.run(module.main)

    return run


def refused(main, *arguments) -> str:
    """The one line that the tool ends with."""
    with pytest.raises(SystemExit) as end:
        main(*arguments)
    (line, ) = end.value.code.splitlines()
    assert line.startswith('error: ')
    return line


def test_tool_errors(classifier, trained, main, tmp_path, monkeypatch):
    config, checkpoint, _ = classifier
    toy_work, _ = trained
    out = ['--out', tmp_path / 'x.pth']
    onnx_file = ['--onnx', tmp_path / 'x.onnx']

    assert "'nowhere.py' does not exist" in refused(main, 'nowhere.py', 'x')
    assert "'none.pth' does not exist" in refused(main, config, 'none.pth')
    assert 'mask of 16 attention layers' in refused(
        main, config, checkpoint, *out, '--cfg-options',
        'model.backbone.depth=18')
    # Without a mask, another depth shows in the names.
    state = torch.load(checkpoint, weights_only=True)
    for name in ('active', 'visible'):
        del state['state_dict'][f'backbone.{name}']
    torch.save(state, tmp_path / 'old.pth')
    assert "the model has no 'backbone.layer1.2.conv1.weight'" in refused(
        main, config, tmp_path / 'old.pth', *out, '--cfg-options',
        'model.backbone.depth=18')
    assert 'size mismatch' in refused(
        main, config, checkpoint, *out, '--cfg-options',
        'model.head.num_classes=3')
    assert "no ELA backbone (backbone.type='ResNet')" in refused(
        main, config, checkpoint, *out, '--cfg-options',
        'model.backbone.type=ResNet')
    torch.save(dict(weights=1), tmp_path / 'other.pth')
    assert 'holds no state_dict' in refused(
        main, config, tmp_path / 'other.pth', *out)
    assert 'is the checkpoint itself' in refused(
        main, config, checkpoint, '--out', checkpoint)
    assert "'classifier' of a ToyClassifier" in refused(
        main, toy_work / 'config.py', toy_work / 'epoch_2.pth', *out,
        *onnx_file, '--part', 'classifier')
    assert "scores need part 'classifier'" in refused(
        main, config, checkpoint, *out, *onnx_file, '--part', 'backbone',
        '--scores')
    assert 'opset 17: expected 18 to' in refused(
        main, config, checkpoint, *out, *onnx_file, '--opset', 17)
    assert 'shape (0, 32)' in refused(
        main, config, checkpoint, *out, *onnx_file, '--shape', 0, 32)
    monkeypatch.setattr(
        exporting.importlib.util, 'find_spec', lambda name: None)
    (tmp_path / 'x.pth').unlink()
    assert 'pip install onnx onnxruntime onnxscript' in refused(
        main, config, checkpoint, *out, *onnx_file)
    assert not (tmp_path / 'x.pth').exists()


def test_a_checkpoint_without_a_mask_exports_whole(classifier, main, tmp_path,
                                                   capsys):
    config, checkpoint, model = classifier
    state = torch.load(checkpoint, weights_only=True)
    for name in ('active', 'visible'):
        del state['state_dict'][f'backbone.{name}']
    # And written by data parallel training.
    state['state_dict'] = {
        f'module.{k}': v for k, v in state['state_dict'].items()}
    torch.save(state, tmp_path / 'old.pth')
    main(config, tmp_path / 'old.pth')
    assert 'nothing is pruned (the checkpoint has no mask): all 16' in (
        capsys.readouterr().out)
    loaded = get_model(
        str(config), pretrained=str(tmp_path / 'old_deploy.pth'))
    assert loaded.backbone.active.all()
    for name, value in loaded.state_dict().items():
        if not name.endswith(('.active', '.visible')):
            assert torch.equal(value, model.state_dict()[name]), name


def test_what_onnx_does_not_know_is_one_line(tmp_path):
    net = torch.nn.Conv2d(3, 4, 3)
    net.register_forward_hook(lambda module, args, x: torch.linalg.qr(x)[1])
    with pytest.raises(ValueError, match='^Conv2d cannot be exported: .+$'):
        export_onnx(net, ['y'], str(tmp_path / 'x.onnx'), (32, 32))
    assert not list(tmp_path.iterdir())


def test_detector_from_a_deploy_checkpoint(main, tmp_path, capsys):
    """mmdet's init_detector; of a detector, the backbone is exported."""
    config = ROOT / 'configs' / 'faster_rcnn_ela_r50_digits.py'
    cfg = Config.fromfile(config)
    net = init_detector(cfg, device='cpu', palette='random')
    net.backbone.skip_layers(['layer1.1', 'layer3.3', 'layer3.4'])
    torch.save(
        dict(meta=dict(dataset_meta=dict(classes=('a', ) * 10)),
             state_dict=net.state_dict()), tmp_path / 'net.pth')
    main(config, tmp_path / 'net.pth')
    assert '13 of 16 attention layers' in capsys.readouterr().out
    assert part_of(net) == (
        net.backbone, ['feature_1', 'feature_2', 'feature_3', 'feature_4'])
    loaded = init_detector(
        cfg, str(tmp_path / 'net_deploy.pth'), device='cpu', palette='random')
    assert loaded.dataset_meta['classes'] == ('a', ) * 10
    same_outputs(net.backbone, loaded.backbone)
