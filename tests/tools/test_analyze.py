"""tools/analyze.py as a user runs it, on a detector's and a classifier's run."""
import csv
import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from support import ROOT
from support.classifier import train_classifier
from support.complexity import needs_counter
from support.detector import small_config
from support.page import Page
from support.running import tool
from support.toy import toy_runner
from support.versions import TORCH_2_1

from ela_mm.analysis.features import look
from ela_mm.analysis.history import as_of, read_run
from ela_mm.analysis.report import report
from ela_mm.analysis.report.report import Effort, write_report
from ela_mm.analysis.report.terminal import file_name, progress_bar
from ela_mm.apis.data import file_batches
from ela_mm.apis.loading import load_model
from ela_mm.engine.journal.record import FILE_NAME, read_record
from ela_mm.errors import UsageError

needs_cam = pytest.mark.skipif(
    find_spec('pytorch_grad_cam') is None, reason='grad-cam')
# The classifier's loader shuffles.
SAMPLES = dict(detector='evenly spaced in the validation set',
               classifier='the first of the validation set')
# As on a server, with a backend that asks for a screen.
NO_DISPLAY = dict(MPLBACKEND='TkAgg', DISPLAY='')


def analyze(*arguments):
    process = tool('analyze.py', *arguments, **NO_DISPLAY)
    assert process.returncode == 0, process.stdout + process.stderr[-3000:]
    return process.stdout


def refused(*arguments):
    process = tool('analyze.py', *arguments)
    assert process.returncode != 0
    assert 'Traceback' not in process.stderr
    return process.stderr.strip().splitlines()[-1]


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def detector(digits_root, tmp_path_factory):
    """Config, work dir and pictures of a small detector's run."""
    folder = tmp_path_factory.mktemp('detector')
    config = folder / 'small.py'
    cfg = small_config(digits_root)
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.custom_hooks[0].update(windows=[(1, 1)], timing_rounds=3)
    cfg.dump(config)
    process = tool('train.py', config, '--work-dir', folder / 'work')
    assert process.returncode == 0, process.stderr[-2000:]
    return config, folder / 'work', digits_root / 'val'


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """The same of a classifier, on folders of pictures."""
    folder = tmp_path_factory.mktemp('classifier')
    config, work_dir, _ = train_classifier(folder)
    return config, work_dir, folder / 'data' / '1'


def skipped(work_dir):
    record = read_record(work_dir)
    return [name for name in record['layers'] if name not in record['active']]


def test_redundancy(detector):
    _, work_dir, _ = detector
    output = analyze('redundancy', work_dir)
    folder = work_dir / 'ela_analysis'
    assert (folder / 'window_1_1.png').stat().st_size > 10_000
    assert (folder / 'timeline.png').is_file()
    table = folder / 'window_epoch_1_layers.csv'
    record = read_record(work_dir)
    layers = record['decisions'][0]['layers']
    for row, layer in zip(rows(table), layers):
        assert row['decision'] == layer['status']
        for key in ('kl', 'kl_std', 'mapped'):
            assert row[key] == ('' if layer[key] is None else str(layer[key]))
    assert 'kept (out of reach)' in output
    gone = skipped(work_dir)
    assert f'skipped {len(gone)} ({", ".join(gone)}'[:40] in ' '.join(
        output.split())


@pytest.mark.parametrize('network', ['detector', 'classifier'])
def test_attention(network, request, tmp_path):
    config, work_dir, pictures = request.getfixturevalue(network)
    checkpoint = max(work_dir.glob('epoch_*.pth'))
    output = analyze('attention', config, checkpoint, '--images', 3, '--out',
                     tmp_path / 'set')
    assert (tmp_path / 'set' / 'attention_stage3.png').is_file()
    (table, ) = (tmp_path / 'set').glob('*.csv')
    active = read_record(work_dir)['active']
    assert list(dict.fromkeys(x['layer'] for x in rows(table))) == active
    for name in active:
        assert sum(float(x['mean']) for x in rows(table)
                   if x['layer'] == name) == pytest.approx(1)
    assert SAMPLES[network] in ' '.join(output.split())
    some = sorted(pictures.glob('*.png'))[:2]
    output = analyze('attention', config, checkpoint, *some, '--out',
                     tmp_path / 'some')
    assert 'on 2 pictures' in ' '.join(output.split())


@pytest.mark.parametrize('network', ['detector', 'classifier'])
def test_similarity(network, request, tmp_path):
    config, work_dir, _ = request.getfixturevalue(network)
    checkpoint = max(work_dir.glob('epoch_*.pth'))
    output = analyze('similarity', config, checkpoint, '--images', 8,
                     '--batch', 4, '--out', tmp_path)
    assert f'pictures ({SAMPLES[network]})' in ' '.join(output.split())
    assert (tmp_path / 'similarity.png').stat().st_size > 10_000
    most_alike = rows(tmp_path / 'similarity_of_features_most_alike.csv')
    for row in most_alike:  # each with itself
        assert float(row[row['block']]) == pytest.approx(1)
    neighbours = rows(tmp_path / 'similarity_of_features_neighbours.csv')
    active = read_record(work_dir)['active']
    assert {x['layer'] for x in neighbours} <= set(active)
    assert 'expected at least 4' in refused(
        'similarity', config, checkpoint, '--batch', 3)


@pytest.mark.parametrize('network', ['detector', 'classifier'])
def test_ablate(network, request, tmp_path):
    config, work_dir, _ = request.getfixturevalue(network)
    checkpoint = max(work_dir.glob('epoch_*.pth'))
    skip = 'layer' if network == 'detector' else 'retrieval'
    output = analyze('ablate', config, checkpoint, '--images', 4, '--batch', 2,
                     '--criterion', 'fixed,n=1', '--out', tmp_path,
                     '--cfg-options', f'custom_hooks.0.skip={skip}')
    said = ' '.join(output.split())
    assert 'on the same 2 batches' in said
    assert ('later layers still see' in said) == (skip == 'retrieval')
    assert (tmp_path / 'ablation.png').stat().st_size > 10_000
    table = rows(tmp_path / 'what_skipping_costs_layers.csv')
    assert [x['layer'] for x in table] == read_record(work_dir)['active']
    assert all(float(x['margin']) >= 0 for x in table)
    if TORCH_2_1:
        assert all(float(x['ms']) >= 0 for x in table)
        assert 'what a layer adds to a step' in ' '.join(output.split())
    assert all(bool(x['top1_added']) == (network == 'classifier')
               for x in table)


def test_ablate_without_times(classifier, tmp_path, monkeypatch, capsys):
    """torch 2.0 counts no operations; what skipping costs is another matter."""
    config, work_dir, _ = classifier
    monkeypatch.setitem(sys.modules, 'torch.utils.flop_counter', None)
    monkeypatch.setattr(sys, 'argv', list(map(str, [
        'analyze.py', 'ablate', config, max(work_dir.glob('epoch_*.pth')),
        '--images', 4, '--batch', 2, '--out', tmp_path])))
    runpy.run_path(str(ROOT / 'tools' / 'analyze.py'), run_name='__main__')
    said = ' '.join(capsys.readouterr().out.split())
    assert 'no step times are expected: counting operations needs torch' in said
    assert 'what a layer adds to a step' not in said
    table = rows(tmp_path / 'what_skipping_costs_layers.csv')
    assert [x['layer'] for x in table] == read_record(work_dir)['active']


@needs_cam
@pytest.mark.parametrize('network', ['detector', 'classifier'])
def test_features(network, request, tmp_path):
    config, work_dir, pictures = request.getfixturevalue(network)
    checkpoint = max(work_dir.glob('epoch_*.pth'))
    output = analyze('features', config, checkpoint,
                     next(pictures.glob('*.png')), '--layers', 'layer3.0',
                     'layer3.1', '--channels', 4, '--out', tmp_path)
    assert (tmp_path / 'features.png').stat().st_size > 10_000
    assert 'every skipped layer put back' in ' '.join(output.split())


def naive_score_cam(model, inputs, name, label, channels):
    """Score-CAM of a classifier, channel by channel."""
    stage, index = name.split('.')
    blocks = getattr(model.backbone, stage)
    seen = []
    handle = blocks[int(index) + 1].register_forward_pre_hook(
        lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(inputs, mode='tensor')
        handle.remove()
        maps = F.interpolate(seen[0], inputs.shape[2:], mode='bilinear',
                             align_corners=True)[0]
        order = seen[0].abs().mean((2, 3))[0].argsort(descending=True)
        chosen = order[:channels]
        scores = []
        for i in chosen:
            mask = (maps[i] - maps[i].min()) / (
                maps[i].max() - maps[i].min() + 1e-8)
            scores.append(model(inputs * mask, mode='tensor')[0, label])
        weights = torch.stack(scores).softmax(0)
        cam = (weights[:, None, None] * seen[0][0, chosen]).sum(0).relu()
    cam = cv2.resize(cam.numpy(), inputs.shape[:1:-1])
    return (cam - cam.min()) / (cam.max() - cam.min() + 1e-7)


@needs_cam
def test_maps_are_score_cams(classifier):
    config, work_dir, pictures = classifier
    cfg = Config.fromfile(config)
    model, _ = load_model(cfg, str(max(work_dir.glob('epoch_*.pth'))))
    model.dataset_meta = dict(classes=['10', '11'])
    for parameter in model.parameters():  # else the features hardly differ
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=.1)
    picture = str(next(pictures.glob('*.png')))
    names = ['layer1.1', 'layer3.0']
    batch = next(file_batches(cfg, [picture]))
    found = look(model, batch, names, channels=6, put_back=False)
    inputs = model.data_preprocessor(batch, False)['inputs']
    label = int(found.target.split()[-1]) - 10
    assert label == int(model(inputs, mode='tensor').argmax())
    for layer in found.pruned:
        naive = naive_score_cam(model, inputs, layer.name, label, 6)
        np.testing.assert_allclose(layer.cam, naive, atol=2e-3)
    assert np.ptp(found.pruned[0].cam) > .5
    assert not np.allclose(found.pruned[0].cam, found.pruned[1].cam, atol=.01)
    assert not found.whole


@needs_cam
def test_a_deploy_checkpoint_has_nothing_to_put_back(classifier, tmp_path):
    config, work_dir, pictures = classifier
    small = tmp_path / 'small.pth'
    process = tool('export_pruned.py', config,
                   max(work_dir.glob('epoch_*.pth')), '--out', small)
    assert process.returncode == 0, process.stderr[-2000:]
    cfg = Config.fromfile(config)
    model, _ = load_model(cfg, str(small))
    batch = next(file_batches(cfg, [str(next(pictures.glob('*.png')))]))
    found = look(model, batch, ['layer3.1'], 2)
    assert not found.whole
    output = analyze('features', config, small, next(pictures.glob('*.png')),
                     '--layers', 'layer3.1', '--channels', 2, '--out', tmp_path)
    assert 'put back' not in output


def test_pictures_are_normalised_as_the_runner_does(classifier, tmp_path):
    """mmpretrain's configs keep the data_preprocessor beside the model."""
    config, work_dir, pictures = classifier
    cfg = Config.fromfile(config)
    own = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor = own
    checkpoint = str(max(work_dir.glob('epoch_*.pth')))
    model, _ = load_model(cfg, checkpoint)
    batch = next(file_batches(cfg, [str(next(pictures.glob('*.png')))]))
    raw = batch['inputs'][0].float()
    seen = model.data_preprocessor(batch, False)['inputs'][0]
    torch.testing.assert_close(seen, (raw - 40) / 60)


def test_files_for_a_network_of_arrays(tmp_path):
    """CIFAR's pictures are RGB arrays of 32 x 32."""
    cfg = Config.fromfile(ROOT / 'configs' / 'ela_resnet20_cifar10.py')
    red = np.zeros((60, 90, 3), np.uint8)
    red[..., 2] = 255  # OpenCV's order
    cv2.imwrite(str(tmp_path / 'red.png'), red)
    (batch, ) = file_batches(cfg, [str(tmp_path / 'red.png')])
    (image, ) = batch['inputs']
    assert image.shape == (3, 32, 32)
    assert image.float().mean((1, 2)).tolist() == [255, 0, 0]
    assert not cfg.model.get('data_preprocessor', cfg.data_preprocessor).get(
        'to_rgb')


@needs_cam
def test_layers_put_back_attend_again(classifier):
    config, work_dir, pictures = classifier
    cfg = Config.fromfile(config)
    model, _ = load_model(cfg, str(max(work_dir.glob('epoch_*.pth'))))
    gone = skipped(work_dir)
    names = [n for n in (x.name for x in model.backbone.attention_layers)
             if n.startswith(gone[0].split('.')[0])]
    batch = next(file_batches(cfg, [str(next(pictures.glob('*.png')))]))
    found = look(model, batch, names, 2)
    assert [x.name for x in found.pruned if not x.active] == [
        n for n in names if n in gone]
    assert all(x.active for x in found.whole)
    assert all(x.kl is not None for x in found.whole[1:])
    assert all(x.kl is None for x in found.pruned if not x.active)
    assert not model.backbone.state_dict()['active'].all()  # not changed


@needs_counter
def test_whatif_of_a_run(detector):
    _, work_dir, _ = detector
    analyze('whatif', work_dir, '--criterion', 'fixed,n=2', '--rounds', 1)
    folder = work_dir / 'ela_analysis'
    assert (folder / 'whatif_epoch_1.png').is_file()
    assert (folder / 'stability_epoch_1.png').is_file()
    (table, ) = folder.glob('what_if*.csv')
    found = rows(table)
    decision = read_record(work_dir)['decisions'][0]
    assert found[0]['criterion'] == 'this run'
    assert found[0]['skipped'].split() == decision['skipped']
    assert json.loads(found[0]['config']) == decision['criterion']
    assert found[-1]['criterion'] == 'fixed, n=2'
    assert len(found[-1]['skipped'].split()) == 2
    assert 0 <= float(found[0]['stable']) <= 1
    assert float(found[0]['step_time']) < decision['step_time_before']


def test_whatif_without_training(classifier, tmp_path):
    config, work_dir, _ = classifier
    output = analyze('whatif', config, max(work_dir.glob('epoch_*.pth')),
                     '--batches', 3, '--no-time', '--out', tmp_path)
    assert '12 pictures of the validation set' in ' '.join(output.split())
    (table, ) = tmp_path.glob('what_if*.csv')
    assert all(x['step_time'] == '' for x in rows(table))
    assert all(0 <= float(x['stable']) <= 1 for x in rows(table))


def test_whatif_without_a_config(detector, tmp_path):
    _, work_dir, _ = detector
    copy = tmp_path / 'copy'
    copy.mkdir()
    (copy / FILE_NAME).write_text((work_dir / FILE_NAME).read_text())
    output = analyze('whatif', copy)
    assert 'no step times are expected: the work dir has no config' in output
    (table, ) = copy.glob('ela_analysis/what_if*.csv')
    assert all(x['step_time'] == '' for x in rows(table))
    assert 'no config in' in refused('attention', copy, '--checkpoint',
                                     max(work_dir.glob('epoch_*.pth')))


@pytest.mark.parametrize('named', ['run', 'options', 'config first'])
def test_a_network_may_be_named_in_several_ways(classifier, tmp_path, named):
    """All lead to the same weights, beside the run unless --out says else."""
    config, work_dir, pictures = classifier
    checkpoint = max(work_dir.glob('epoch_*.pth'))
    picture = next(pictures.glob('*.png'))
    words = {
        'run': (work_dir, picture),
        'options': ('--config', config, '--checkpoint', checkpoint, picture),
        'config first': (config, '--device', 'cpu', checkpoint, picture),
    }[named]
    analyze('attention', *words)
    table = work_dir / 'ela_analysis' / 'attention_weights.csv'
    found = rows(table)
    table.unlink()
    analyze('attention', config, checkpoint, picture, '--out', tmp_path)
    assert found == rows(tmp_path / 'attention_weights.csv')
    assert not table.exists()


@needs_counter
def test_results_never_go_to_where_the_tool_is_run(classifier, tmp_path):
    config, _, _ = classifier
    process = tool('analyze.py', 'cost', config, '--rounds', 1, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['work_dirs']
    assert (tmp_path / 'work_dirs' / config.stem / 'ela_analysis').is_dir()


def test_decisions_as_of_a_checkpoint(tmp_path):
    """Later windows are left out; what was skipped before training stays."""
    toy_runner(tmp_path, windows=[(1, 1), (2, 2)], max_epochs=2,
               **{'model.backbone.depth': 18}).train()
    run = read_run(str(tmp_path))
    then = as_of(run, torch.load(tmp_path / 'epoch_1.pth')['ela_prune_hook'])
    first = run.decisions[0]
    assert [d.window for d in then.decisions] == [(1, 1)]
    assert then.record['active'] == [
        n for n in run.record['layers'] if n not in first.skipped]
    assert len(run.decisions) == 2


@pytest.mark.parametrize('title, caption, name', [
    ('Window: epoch 1', 'Layers', 'window_epoch_1_layers'),
    ('Cost', 'Attention layers', 'cost_attention_layers'),
    ('Runs', 'Runs', 'runs'),
    ('What if: epochs 1 to 3', 'Criteria', 'what_if_epochs_1_to_3_criteria'),
])
def test_file_names_say_no_word_twice(title, caption, name):
    assert file_name(title, caption) == name


def test_progress_is_told_where_there_is_no_terminal(monkeypatch, capsys):
    from ela_mm.analysis.report import terminal
    clock = iter(range(0, 100, 6))
    monkeypatch.setattr(terminal.time, 'monotonic', lambda: next(clock))
    assert list(progress_bar('maps')([1, 2, 3, 4])) == [1, 2, 3, 4]
    assert 'maps: 1 of 4 done' in capsys.readouterr().err


@needs_counter
@pytest.mark.parametrize('mode', [[], ['--inference']])
def test_cost(classifier, tmp_path, mode):
    config, work_dir, _ = classifier
    checkpoint = max(work_dir.glob('epoch_*.pth'))
    output = analyze('cost', config, checkpoint, '--rounds', 1, '--out',
                     tmp_path, *mode)
    assert '4 pictures of 32 x 32' in ' '.join(output.split())
    (layers, ) = tmp_path.glob('cost_attention*.csv')
    assert [x['name'] for x in rows(layers)
            if x['active'] == 'False'] == skipped(work_dir)
    output = analyze('cost', config, '--rounds', 1, '--shape', 64, 48, '--out',
                     tmp_path, *mode)
    assert '64 x 48' in ' '.join(output.split())
    assert all(x['active'] == 'True' for x in rows(layers))


@needs_counter
@needs_cam
def test_report(detector, tmp_path):
    _, work_dir, _ = detector
    output = analyze('report', work_dir)
    path = work_dir / 'ela_report.html'
    assert str(path) in output
    text = path.read_text()
    page = Page(text)
    for link in page.links:
        assert link.startswith(('data:', '#'))
    assert all(len(image['alt']) > 40 for image in page.images)
    # timeline, schedule, window, counts, stability, 4 stages, similarity,
    # features, ablation, cost
    assert len(page.images) == 13
    assert 'is left out' not in text
    gone = skipped(work_dir)
    assert (f'{len(gone)} of 16 attention layers were pruned while training '
            f'({", ".join(gone)})') in text
    assert 'After epoch 1 a step took' in text
    # Of a few steps around the pruning there is nothing to compare.
    assert 'The median training step' not in text
    assert 'coco/bbox_mAP is' in text


def report_of(work_dir, say=print):
    return Path(write_report(str(work_dir), say=say)).read_text()


def test_a_report_leaves_out_an_ablation_that_takes_long(detector, tmp_path):
    _, work_dir, _ = detector
    path = write_report(
        str(work_dir), str(tmp_path / 'page.html'),
        without=('attention', 'similarity', 'cost', 'features'),
        effort=Effort(seconds=0.))
    text = Path(path).read_text()
    layers = len(read_record(work_dir)['active'])
    assert (f'ablation is left out: trying the network without each of its '
            f'{layers} layers would take some') in text
    assert 'analyze.py ablate CONFIG CHECKPOINT does it' in text


@pytest.mark.parametrize('recorded', [dict(skip='retrieval'), dict()])
def test_a_report_tries_layers_as_the_run_skips_them(classifier, recorded,
                                                     monkeypatch):
    config, work_dir, _ = classifier
    asked = {}

    def ablate(*args, skip, **options):
        asked['skip'] = skip
        raise UsageError('asked')

    monkeypatch.setattr(report, 'ablate', ablate)
    cfg, model, _ = report._load(read_run(str(work_dir)), str(config), str(
        max(work_dir.glob('epoch_*.pth'))), None, 'cpu')
    run = SimpleNamespace(record=dict(criterion=dict(type='EBQM'), **recorded))
    with pytest.raises(UsageError, match='asked'):
        report._ablation(run, cfg, model, Effort(images=2), None)
    assert asked['skip'] == recorded.get('skip', 'layer')


def test_a_report_says_what_is_left_out(tmp_path):
    """No config file, no pictures: the record alone."""
    toy_runner(tmp_path, max_epochs=1).train()
    for path in tmp_path.rglob('*.py'):
        path.unlink()
    said = []
    text = report_of(tmp_path, said.append)
    assert f'the model is left out: no config in &#39;{tmp_path}&#39;' in text
    assert 'Window: epoch 1' in text and 'What if: epoch 1' in text
    assert any('left out' in line for line in said)
    # An earlier version's record, nothing pruned.
    record = json.loads((tmp_path / FILE_NAME).read_text())
    for layer in record['decisions'][0]['layers']:
        del layer['kl_iterations'], layer['bad_iterations']
        if layer['status'] == 'skipped':
            layer['status'] = 'kept'
    record['decisions'][0].update(skipped=[], note='nothing was redundant')
    (tmp_path / FILE_NAME).write_text(json.dumps(record))
    text = report_of(tmp_path, said.append)
    assert 'Nothing was pruned: epoch 1: nothing was redundant.' in text
    assert 'Single steps were not recorded' in text


def test_a_report_before_the_first_window_ends(tmp_path):
    runner = toy_runner(tmp_path, max_epochs=2, windows=[(2, 2)])
    runner.train()
    record = json.loads((tmp_path / FILE_NAME).read_text())
    record['decisions'] = []
    (tmp_path / FILE_NAME).write_text(json.dumps(record))
    text = report_of(tmp_path)
    assert 'No window has ended yet' in text


def test_a_failing_part_leaves_a_sentence(tmp_path, monkeypatch):
    toy_runner(tmp_path, max_epochs=1).train()
    from ela_mm.analysis.report import report

    def broken(*args):
        raise RuntimeError('of a kind nobody thought of')

    monkeypatch.setattr(report, '_load', broken)
    text = report_of(tmp_path)
    assert 'RuntimeError: of a kind nobody thought of' in text


def test_clear_errors(detector, classifier, tmp_path):
    config, work_dir, pictures = detector
    checkpoint = work_dir / 'epoch_2.pth'
    other = max(classifier[1].glob('epoch_*.pth'))
    assert 'is no folder' in refused('redundancy', tmp_path / 'nowhere')
    assert 'trained with ELAPruneHook' in refused('report', tmp_path)
    assert 'does not fit the config' in refused('attention', config, other)
    assert 'does not exist' in refused('attention', config, checkpoint,
                                       tmp_path / 'none.png')
    broken = tmp_path / 'broken.png'
    broken.write_text('no picture')
    assert 'is no picture' in refused('attention', config, checkpoint, broken)
    assert "config 'none.py' does not exist" in refused('cost', 'none.py')
    assert 'expected a type and pairs' in refused('whatif', work_dir,
                                                  '--criterion', 'EBQM,gamma')
    assert 'expected WORK_DIR' in refused('whatif', 'a', 'b', 'c')
    assert 'and nothing more' in refused('whatif', config, checkpoint, 'c')
    assert 'without a checkpoint: expected WORK_DIR' in refused('whatif', config)
    assert 'nothing is named' in refused('similarity')
    assert "unrecognized arguments: --typo" in refused('cost', config, '--typo')
    assert '--batches' in refused('whatif', work_dir, '--batches', 2)
    assert '--rounds does nothing' in refused('whatif', work_dir, '--no-time',
                                              '--rounds', 2)
    assert 'is no config' in refused('cost', checkpoint, config)
    assert 'does not exist' in refused('report', work_dir, '--checkpoint',
                                       tmp_path / 'typo.pth')
    assert "'cuda'" in refused('cost', config, '--device', 'cuda')
    broken.write_text('')
    assert 'is no picture' in refused('attention', config, checkpoint, broken)
    plain = tmp_path / 'plain.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.type = 'ResNet'
    cfg.dump(plain)
    assert 'no ELA backbone' in refused('cost', plain)


@needs_cam
def test_score_cam_of_what_is_not_there(detector):
    config, work_dir, pictures = detector
    features = ('features', config, work_dir / 'epoch_2.pth',
                next(pictures.glob('*.png')))
    assert "no attention layer 'layer9.9'" in refused(
        *features, '--layers', 'layer9.9')
    assert 'stage 7' in refused(*features, '--stage', 7)
    assert 'expected at least 0' in refused(*features, '--channels', -3)
    assert 'finds nothing' in refused(
        *features, '--cfg-options', 'model.test_cfg.rcnn.score_thr=2.0')


def test_missing_packages_are_named(monkeypatch):
    from ela_mm.analysis import features
    from ela_mm.analysis.report import page
    monkeypatch.setattr(features.importlib.util, 'find_spec',
                        lambda name: None)
    with pytest.raises(UsageError, match='pip install grad-cam'):
        features.check_grad_cam()
    monkeypatch.setitem(__import__('sys').modules, 'jinja2', None)
    with pytest.raises(UsageError, match='pip install Jinja2'):
        page.render('x', [], [])
