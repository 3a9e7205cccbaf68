"""A mask edited by hand: in every copy, and known to the run that goes on."""
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from support.running import tool
from support.toy import energy, toy_config, toy_runner, validation

from ela_mm.analysis.history import read_run
from ela_mm.analysis.report import report
from ela_mm.analysis.report.redundancy import summarize
from ela_mm.apis.edit_mask import edit_mask
from ela_mm.engine import validations
from ela_mm.engine.checkpoints import DEPLOY_KEY
from ela_mm.engine.journal.record import read_record
from ela_mm.errors import UsageError

HOOKS = [dict(type='EMAHook', momentum=0.1), dict(type='ValidateResumedHook')]
SMALL = {'model.backbone.depth': 18}  # two layers a stage


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work dir of three epochs with EMA; window 1 decided, window 2 begun."""
    folder = tmp_path_factory.mktemp('trained')
    toy_runner(folder, windows=[(1, 1), (3, 4)], max_epochs=4, hooks=HOOKS,
               **SMALL).train()
    return folder


def load(path):
    return torch.load(path, map_location='cpu')


def active_of(checkpoint, key='state_dict', prefix='backbone.'):
    mask = checkpoint[key][f'{prefix}active']
    assert torch.equal(mask, checkpoint[key][f'{prefix}visible'])
    return mask.tolist()


def resume(trained, folder, path, hooks=HOOKS, **overrides):
    cfg = toy_config(folder, windows=[(1, 1), (3, 4)], max_epochs=4,
                     hooks=hooks, load_from=str(path), resume=True,
                     **{**SMALL, **overrides})
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_an_undone_window_is_taken_back_everywhere(trained, tmp_path):
    skipped = read_record(trained)['decisions'][0]['skipped']
    process = tool('edit_mask.py', trained / 'epoch_1.pth', '--undo-window', 1,
                   '--out', tmp_path / 'edited.pth')
    assert process.returncode == 0, process.stderr[-2000:]
    assert f'{8 - len(skipped)} -> 8 of 8 attention layers active, in ' \
        'state_dict and ema_state_dict' in process.stdout
    before, after = load(trained / 'epoch_1.pth'), load(tmp_path / 'edited.pth')
    assert all(active_of(after))
    assert all(active_of(after, 'ema_state_dict', 'module.backbone.'))
    assert not all(active_of(before))
    for name, value in before['state_dict'].items():
        if not name.endswith(('active', 'visible')):
            assert torch.equal(value, after['state_dict'][name])
    assert after['meta']['epoch'] == 1 and 'optimizer' in after

    runner = resume(trained, tmp_path / 'on', tmp_path / 'edited.pth',
                    **{'train_cfg.max_epochs': 4})
    first, second = read_record(tmp_path / 'on')['decisions']
    assert first['skipped'] == skipped
    assert not any(x['status'] == 'skipped before' for x in second['layers'])
    ema = next(h for h in runner.hooks if hasattr(h, 'ema_model'))
    assert [x.active for x in ema.ema_model.module.backbone.attention_layers
            ] == [x.active for x in runner.model.backbone.attention_layers]
    run = read_run(str(tmp_path / 'on'))
    assert [edit.undone for edit in run.edits] == [(1, 1)]
    assert run.active == [(0, 8), (1, 8 - len(skipped)), (1, 8),
                          (4, len(run.record['active']))]
    text = ' '.join(summarize(run))
    assert f'edited by hand: restored {", ".join(skipped)} (window (1, 1) ' \
        'undone)' in text
    assert 'skipped before' not in text
    # Its own checkpoints hold the edit, and may be edited once more.
    again = edit_mask(load(tmp_path / 'on' / 'epoch_2.pth'), skip=skipped[:1])
    assert len(again.checkpoint['ela_prune_hook']['edits']) == 2


@pytest.mark.parametrize('saved_by', ['train', 'val'])
def test_an_edited_network_is_validated(trained, tmp_path, saved_by):
    """Whatever is known is of the network before the edit."""
    checkpoint = load(trained / 'epoch_2.pth')
    checkpoint['message_hub']['runtime_info']['loop_stage'] = saved_by
    validations.remember(
        str(tmp_path), checkpoint['ela_validated_as'], dict(energy=23.))
    first = read_record(trained)['decisions'][0]
    kept = next(x['name'] for x in first['layers'] if x['status'] == 'kept')
    edited = edit_mask(checkpoint, skip=[kept]).checkpoint
    assert set(checkpoint) - set(edited) == {'ela_validated_as'}
    info = checkpoint['message_hub']['runtime_info']
    assert info['loop_stage'] == saved_by  # the given one

    torch.save(edited, tmp_path / 'edited.pth')
    runner = resume(
        trained, tmp_path, tmp_path / 'edited.pth',
        HOOKS[1:],  # with EMA the average would be validated
        **validation(),
        **{'custom_hooks.0.windows': [(1, 1)], 'train_cfg.max_epochs': 2})
    found = runner.message_hub.get_scalar('val/energy').current()
    assert found == pytest.approx(energy(runner.model))
    (last, ) = read_run(str(tmp_path)).metrics
    assert last == (2, pytest.approx(found))
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'checkpoint was edited by hand: skipped {kept}' in log


def test_momentum_of_layers_skipped_by_hand_is_forgotten(trained, tmp_path):
    checkpoint = load(trained / 'epoch_2.pth')
    active = read_record(trained)['decisions'][0]
    name = next(x['name'] for x in active['layers'] if x['status'] == 'kept')
    torch.save(edit_mask(checkpoint, skip=[name]).checkpoint,
               tmp_path / 'edited.pth')
    held = len(checkpoint['optimizer']['state'])
    # To the epoch that it was saved in: nothing is trained.
    runner = resume(trained, tmp_path, tmp_path / 'edited.pth',
                    **{'custom_hooks.0.windows': [(1, 1)],
                       'train_cfg.max_epochs': 2})
    layer = next(x for x in runner.model.backbone.attention_layers
                 if x.name == name)
    parameters = list(layer.module.parameters())
    state = runner.optim_wrapper.optimizer.state
    assert not layer.active and parameters
    assert not any(p in state or p.requires_grad for p in parameters)
    assert len(state) == held - len(parameters)


def test_an_edit_within_a_window_starts_its_statistics_over(trained):
    checkpoint = load(trained / 'epoch_3.pth')
    skipped = read_record(trained)['decisions'][0]['skipped']
    assert checkpoint['ela_prune_hook']['statistics']
    done = edit_mask(checkpoint, restore=skipped[:1])
    assert done.left_out == (3, 4)
    assert not done.checkpoint['ela_prune_hook']['statistics']
    assert checkpoint['ela_prune_hook']['statistics']  # the given one


def test_a_first_layer_is_skipped_and_named(trained, tmp_path):
    first = read_record(trained)['decisions'][0]
    kept = [x['name'] for x in first['layers']
            if x['name'] not in first['skipped']]
    process = tool('edit_mask.py', trained / 'epoch_2.pth', '--skip', *kept,
                   '--out', tmp_path / 'edited.pth')
    said = [line.split()[0] for line in process.stdout.splitlines()
            if 'is the first of its stage' in line]
    assert said == ['layer1.0', 'layer2.0', 'layer3.0', 'layer4.0']
    assert not any(active_of(load(tmp_path / 'edited.pth')))


def test_retrieval_alone_stays_visible(trained):
    checkpoint = load(trained / 'epoch_2.pth')
    done = edit_mask(checkpoint, skip=['layer1.0'], skip_mode='retrieval')
    state = done.checkpoint['state_dict']
    assert not state['backbone.active'][0] and state['backbone.visible'][0]


def test_what_a_checkpoint_holds_is_described(trained):
    process = tool('edit_mask.py', trained / 'epoch_2.pth')
    record = read_record(trained)['decisions'][0]
    lines = process.stdout.splitlines()
    assert lines[0] == f'{record["active"]} of 8 attention layers active'
    assert lines[-1] == (f'window 1 (1, 1) skipped '
                         f'{", ".join(record["skipped"])}')
    assert not list(trained.glob('*_edited.pth'))


def test_an_earlier_edit_is_not_overwritten(trained, tmp_path):
    path = tmp_path / 'epoch_2.pth'
    path.symlink_to(trained / 'epoch_2.pth')
    earlier = tmp_path / 'epoch_2_edited.pth'
    earlier.write_text('an edit')
    process = tool('edit_mask.py', path, '--undo-window', 1)
    assert process.returncode != 0 and earlier.read_text() == 'an edit'
    (line, ) = process.stderr.splitlines()[-1:]
    assert str(earlier) in line and '--out' in line


@pytest.mark.parametrize('arguments, message', [
    (dict(), 'nothing to do'),
    (dict(restore=['layer9.0']), "no .* 'layer9.0' is .*layer1.1, layer2.0,"),
    (dict(restore=['layer1.0']), 'layer1.0 is active already'),
    (dict(skip=['layer1.0'], restore=['layer1.0']), 'to be restored and skipp'),
    (dict(undo_window=2), r'window 2: expected one .*1: \(1, 1\)'),
    (dict(skip=['layer1.0'], skip_mode='all'), "skip='all'"),
])
def test_what_cannot_be_edited_is_said(trained, arguments, message):
    with pytest.raises(UsageError, match=message):
        edit_mask(load(trained / 'epoch_2.pth'), **arguments)


def test_checkpoints_that_cannot_be_edited(trained):
    checkpoint = load(trained / 'epoch_2.pth')
    done = edit_mask(checkpoint, undo_window=1).checkpoint
    with pytest.raises(UsageError, match='no layer that is skipped now'):
        edit_mask(done, undo_window=1)
    with pytest.raises(UsageError, match='export it again'):
        edit_mask({**checkpoint, 'meta': {DEPLOY_KEY: True}}, skip=['layer1.0'])
    with pytest.raises(UsageError, match='no mask'):
        edit_mask(dict(state_dict={}), skip=['layer1.0'])
    del checkpoint['ela_prune_hook']
    with pytest.raises(UsageError, match='no decisions'):
        edit_mask(checkpoint, undo_window=1)
    assert edit_mask(checkpoint, skip=['layer1.0']).after == sum(
        active_of(checkpoint)) - 1


def test_a_report_tells_two_networks_apart(trained, tmp_path, monkeypatch):
    """The record's, and that of the checkpoint which is measured."""
    for dear in ('timeline_section', 'window_section', '_schedule',
                 'attention_section', '_what_if'):
        monkeypatch.setattr(report, dear, lambda *_: [])
    monkeypatch.setattr(report, 'render',
                        lambda title, lines, *_: '\n'.join(lines))
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    (folder / 'last_checkpoint').write_text('epoch_4.pth')  # not the original's

    def said(**options):
        path = report.write_report(
            str(folder), without=report.PARTS[1:], say=lambda line: None,
            **options)
        first = Path(path).read_text().splitlines()[0]
        return first if first.startswith('Two networks') else None

    assert said() is None
    name = read_record(folder)['active'][-1]
    edited = folder / 'edited.pth'
    torch.save(edit_mask(load(folder / 'epoch_4.pth'), skip=[name]).checkpoint,
               edited)
    text = said(checkpoint=str(edited))
    assert f'edited.pth, with {len(read_record(folder)["active"]) - 1}' in text
    assert f'{name} is skipped in it and active in the record' in text
    assert f'Its mask was edited by hand: skipped {name}.' in text
    # The run goes on from it, though nothing is left to train.
    resume(folder, folder, edited)
    text = said()
    assert f'{name} is active in it and skipped in the record' in text
    assert 'epoch_4.pth' in text and 'by hand' not in text
    assert said(checkpoint=str(edited)) is None
