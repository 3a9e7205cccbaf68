"""What counts as a checkpoint to go on from: what its reader can read."""
import os
import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from support.malicious import RunsCode
from support.toy import toy_runner
from support.versions import needs_checked_loading

from ela_mm.apis.launch import check_checkpoint
from ela_mm.engine.checkpoints import is_intact, latest_intact, places_of, resume_latest
from ela_mm.errors import UsageError


def content():
    """What mmengine saves, in small."""
    hub = MessageHub('damaged')
    hub.update_scalar('train/loss', 1.5)
    return dict(
        meta=dict(epoch=1, iter=4),
        state_dict=dict(weight=torch.rand(40), mask=torch.ones(3).bool()),
        message_hub=hub.state_dict())


def reads_as(path, saved) -> bool:
    """Whether torch reads the file, and whether that is what was saved."""
    found = torch.load(path, map_location='cpu')
    return found['meta'] == saved['meta'] and all(
        torch.equal(value, saved['state_dict'][name])
        for name, value in found['state_dict'].items())


@pytest.mark.parametrize('is_zip', [True, False])
def test_one_wrong_bit_anywhere(tmp_path, is_zip):
    """Nothing is raised, and what counts as intact can be loaded."""
    path = tmp_path / 'epoch_1.pth'
    saved = content()
    torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    data = path.read_bytes()
    assert is_intact(path) and reads_as(path, saved)
    damaged = 0
    for position in range(0, len(data), 5):
        wrong = bytearray(data)
        wrong[position] ^= 1 << (position // 5 % 8)
        path.write_bytes(wrong)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if not is_intact(path):
                damaged += 1
            elif is_zip:
                assert reads_as(path, saved), position
            else:  # numbers may be wrong, there are no check sums
                torch.load(path, map_location='cpu')
    assert damaged > len(data) / 10


def test_a_record_that_is_marked_as_a_folder(tmp_path):
    """torch reads it as whatever its memory held."""
    path = tmp_path / 'epoch_1.pth'
    torch.save(content(), path)
    data = bytearray(path.read_bytes())
    place = data.index(b'PK\x01\x02')  # the first entry of the directory
    data[place + 38] ^= 0x10
    path.write_bytes(data)
    assert not is_intact(path)


@pytest.mark.parametrize('text', [b'', b'PK', b'PK\3\4', bytes(3000), b'\x80\2',
                                  b'<html>404</html>'])
def test_what_is_no_checkpoint(tmp_path, text):
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(text)
    with pytest.raises(UsageError, match='epoch_1.pth.*is damaged'):
        check_checkpoint(str(path))


@needs_checked_loading
def test_what_torch_refuses_is_not_passed_over(tmp_path):
    """An older one, or starting over, would hide that it is refused."""
    torch.save(content(), tmp_path / 'epoch_1.pth')
    marker = tmp_path / 'ran'
    newer = tmp_path / 'epoch_2.pth'
    torch.save(dict(content(), extra=RunsCode(f'touch {marker}')), newer)
    (tmp_path / 'last_checkpoint').write_text(str(newer))
    assert latest_intact(str(tmp_path)) == (str(newer), [])
    assert not marker.exists()


def test_a_file_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    older, newer = tmp_path / 'epoch_1.pth', tmp_path / 'epoch_2.pth'
    torch.save(content(), older)
    torch.save(content(), newer)
    os.utime(older, (10**9, 10**9))

    def refuse(path, *args, opened=open, **kwargs):
        if path == str(newer):
            raise PermissionError(13, 'Permission denied')
        return opened(path, *args, **kwargs)

    monkeypatch.setattr('builtins.open', refuse)
    assert latest_intact(str(tmp_path)) == (str(older), [str(newer)])


# --- where the host writes ---------------------------------------------------


def config(tmp_path, **hook) -> Config:
    return Config(
        dict(
            work_dir=str(tmp_path / 'runs' / 'one'),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', **hook))))


@pytest.mark.parametrize('hook, name', [
    (dict(), 'runs/one/epoch_2.pth'),
    (dict(out_dir='{}/elsewhere'), 'elsewhere/one/epoch_2.pth'),
    (dict(filename_tmpl='net-[{}].pt'), 'runs/one/net-[2].pt'),
    (dict(filename_tmpl='net_{:04d}.pth'), 'runs/one/net_0002.pth'),
    (dict(out_dir='{}/elsewhere', filename_tmpl='net_{}.pth', by_epoch=False,
          interval=4), 'elsewhere/one/net_8.pth'),
])
def test_a_run_is_found_where_its_hook_writes(tmp_path, hook, name):
    """Trained by mmengine itself; a bad last file leads to the one before."""
    if 'out_dir' in hook:
        hook['out_dir'] = hook['out_dir'].format(tmp_path)
    cfg = config(tmp_path, **{'interval': 1, **hook})
    toy_runner(
        cfg.work_dir, windows=None, max_epochs=2,
        **{'default_hooks.checkpoint': cfg.default_hooks.checkpoint}).train()
    last = tmp_path / name
    assert last.is_file()
    resume_latest(cfg)
    assert (cfg.resume, cfg.load_from) == (True, str(last))
    (tmp_path / 'runs' / 'one' / 'last_checkpoint').unlink()
    path, damaged = latest_intact(cfg.work_dir, places_of(cfg))
    assert (path, damaged) == (str(last), [])
    last.write_bytes(last.read_bytes()[:-9])
    path, damaged = latest_intact(cfg.work_dir, places_of(cfg))
    assert damaged == [str(last)]
    before = name.replace('2', '1').replace('8', '4')
    assert path == str(tmp_path / before)


def test_a_stale_file_of_the_same_name_is_not_taken(tmp_path):
    """The work dir has one of before ``out_dir`` was set."""
    cfg = config(tmp_path, out_dir=str(tmp_path / 'out'))
    work_dir, out = tmp_path / 'runs' / 'one', tmp_path / 'out' / 'one'
    for folder, time in ((work_dir, 10**9 - 9), (out, 10**9)):
        folder.mkdir(parents=True)
        torch.save(content(), folder / 'epoch_1.pth')
        os.utime(folder / 'epoch_1.pth', (time, time))
    (work_dir / 'last_checkpoint').write_text(str(out / 'epoch_1.pth'))
    found = str(out / 'epoch_1.pth')
    assert latest_intact(str(work_dir), places_of(cfg)) == (found, [])
    # As analyses ask, which have no config.
    assert latest_intact(str(work_dir)) == (found, [])


def test_what_is_not_a_runs_checkpoint_is_left_alone(tmp_path):
    cfg = config(tmp_path, filename_tmpl='net_{}.pth')
    folder = tmp_path / 'runs' / 'one'
    folder.mkdir(parents=True)
    for name in ('best_acc_net_3.pth', 'net_3.pth.tmp', 'net_x.pth', 'net_.pth'):
        torch.save(content(), folder / name)
    assert latest_intact(str(folder), places_of(cfg)) == (None, [])


def test_a_hook_of_a_users_own_is_asked_too(tmp_path):

    @HOOKS.register_module(force=True)
    class OwnCheckpoints(CheckpointHook):

        def __init__(self, **kwargs):
            super().__init__(filename_tmpl='own_{}.pth', **kwargs)

    try:
        cfg = config(tmp_path)
        cfg.default_hooks.checkpoint = None
        cfg.custom_hooks = [
            dict(type='EMAHook'),
            dict(type='OwnCheckpoints', priority='LOW',
                 out_dir=str(tmp_path / 'out'))
        ]
        assert places_of(cfg) == [(str(tmp_path / 'out' / 'one'), 'own_{}.pth')]
    finally:
        HOOKS.module_dict.pop('OwnCheckpoints')


# --- the hook's state --------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint inside a window."""
    folder = tmp_path_factory.mktemp('trained')
    toy_runner(folder, windows=[(1, 2)], max_epochs=2).train()
    return torch.load(folder / 'epoch_1.pth')


@pytest.mark.parametrize('change', [
    lambda state: 5,
    lambda state: 'text',
    lambda state: [1],
    lambda state: dict(statistics={}),
    lambda state: dict(state, decisions=5),
    lambda state: dict(state, decisions=[{}]),
    lambda state: dict(state, decisions=['text']),
    lambda state: dict(state, window=5),
    lambda state: dict(state, statistics=5),
    lambda state: dict(state, statistics=dict(layer1=5)),
    lambda state: dict(state, statistics=dict(layer1=torch.ones(1))),
    lambda state: dict(state, statistics=dict(layer1=torch.ones(2, 2))),
    lambda state: dict(state, statistics={
        name: dict(layer, sums='text')
        for name, layer in state['statistics'].items()}),
])
def test_a_state_of_wrong_types_ends_the_run_in_one_line(
        trained, tmp_path, change):
    path = tmp_path / 'changed.pth'
    state = change(trained['ela_prune_hook'])
    torch.save(dict(trained, ela_prune_hook=state), path)
    runner = toy_runner(
        tmp_path / 'run', windows=[(1, 2)], max_epochs=2, load_from=str(path),
        resume=True)
    with pytest.raises(UsageError, match='state of ELAPruneHook') as error:
        runner.train()
    assert '\n' not in str(error.value) and runner.iter == 4


def test_no_config_in_a_checkpoint_is_run(trained, tmp_path):
    """mmengine would, when it resumes, although it saves none of that name."""
    path, ran = tmp_path / 'changed.pth', tmp_path / 'ran'
    code = f'__import__("os").system("touch {ran}")\n'
    torch.save(
        dict(trained, meta=dict(trained['meta'], config=code, cfg=code)), path)
    runner = toy_runner(
        tmp_path / 'run', windows=[(1, 2)], max_epochs=2, load_from=str(path),
        resume=True)
    runner.train()
    assert runner.iter == 8 and not ran.exists()
