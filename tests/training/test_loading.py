"""What a checkpoint loads into, and what loads as a checkpoint."""
import copy
import pickle
from importlib.metadata import distributions

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from support.malicious import RunsCode
from support.toy import energy, toy_config, toy_runner, validation
from support.versions import needs_checked_loading

from ela_mm.engine.journal.record import read_record
from ela_mm.models.backbones.stages import AttentionStage


def fresh_model(work_dir, **overrides):
    return MODELS.build(toy_config(work_dir, **overrides).model)


def active(model) -> list:
    return [x.name for x in model.backbone.attention_layers if x.active]


def skipped(work_dir) -> list:
    record = read_record(work_dir)
    return [n for n in record['layers'] if n not in record['active']]


class First(Hook):
    """The layers that are active in the first step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not hasattr(self, 'active'):
            self.active = active(runner.model)


@pytest.fixture(scope='module')
def pruned(tmp_path_factory):
    """Work dir and model of a run that was pruned after epoch 1 of 2."""
    work_dir = tmp_path_factory.mktemp('pruned')
    runner = toy_runner(work_dir, max_epochs=2)
    runner.train()
    assert 0 < len(active(runner.model)) < 16
    return work_dir, runner.model


# --- masks -------------------------------------------------------------------


@pytest.fixture(scope='module')
def old(tmp_path_factory):
    """A checkpoint of a time before the mask, and its model's energy."""
    work_dir = tmp_path_factory.mktemp('old')
    runner = toy_runner(work_dir, windows=None, max_epochs=1)
    runner.train()
    checkpoint = torch.load(work_dir / 'epoch_1.pth')
    for name in ('active', 'visible'):
        del checkpoint['state_dict'][f'backbone.{name}']
    torch.save(checkpoint, work_dir / 'old.pth')
    return str(work_dir / 'old.pth'), energy(runner.model)


def test_old_checkpoint_loads_strictly_as_all_active(old, tmp_path):
    path, expected = old
    model = fresh_model(tmp_path)
    model.backbone.skip_layers(['layer1.1', 'layer4.2'])
    load_checkpoint(model, path, strict=True)
    assert len(active(model)) == 16 and energy(model) == expected
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('resume', [False, True])
def test_old_checkpoint_is_trained_on_and_pruned(old, tmp_path, resume):
    path, _ = old
    runner = toy_runner(
        tmp_path, max_epochs=2, windows=[(2, 2)], load_from=path,
        resume=resume)
    first = First()
    runner.register_hook(first)
    runner.train()
    assert len(first.active) == 16
    (decision, ) = read_record(tmp_path)['decisions']
    assert decision['iter'] == 8 and decision['skipped']
    assert active(runner.model) == read_record(tmp_path)['active']


def test_pruned_checkpoint_without_the_hook_and_back(pruned, tmp_path):
    """Without ELAPruneHook the network stays pruned; with it, goes on."""
    work_dir, model = pruned
    path = str(work_dir / 'epoch_2.pth')
    for name, resume in (('fine_tuned', False), ('resumed', True)):
        runner = toy_runner(
            tmp_path / name, windows=None, max_epochs=1 + 2 * resume,
            load_from=path, resume=resume)
        first = First()
        runner.register_hook(first)
        runner.train()
        assert first.active == active(runner.model) == active(model)
        gone = [p for p in runner.model.parameters() if not p.requires_grad]
        assert gone and all(p.grad is None for p in gone)
        for key, value in model.state_dict().items():
            stage, _, rest = key.partition('.attention.')
            if f'{stage[9:]}.{rest.split(".")[0]}' in skipped(work_dir):
                assert torch.equal(runner.model.state_dict()[key], value), key

    back = toy_runner(
        tmp_path / 'back', max_epochs=1,
        load_from=str(tmp_path / 'fine_tuned' / 'epoch_1.pth'))
    first = First()
    back.register_hook(first)
    back.train()
    assert first.active == active(model)
    assert set(active(back.model)) < set(active(model))


def test_pruned_checkpoint_in_a_plain_network_and_back(pruned, tmp_path):
    work_dir, model = pruned
    plain = {'model.backbone.attention': None, 'windows': None}
    runner = toy_runner(
        tmp_path / 'plain', max_epochs=1,
        load_from=str(work_dir / 'epoch_2.pth'), **plain)
    runner.train()
    state = torch.load(tmp_path / 'plain' / 'epoch_1.pth')['state_dict']
    assert not any('attention' in key or key.endswith(('active', 'visible'))
                   for key in state)
    # The plain network has the weights of the blocks.
    loaded = fresh_model(tmp_path, **plain)
    load_checkpoint(loaded, str(work_dir / 'epoch_2.pth'))
    without = copy.deepcopy(model)
    without.backbone.skip_layers(active(model))
    assert energy(loaded) == energy(without)
    # A plain checkpoint, in turn, leaves all layers active.
    back = toy_runner(
        tmp_path / 'back', max_epochs=1,
        load_from=str(tmp_path / 'plain' / 'epoch_1.pth'))
    first = First()
    back.register_hook(first)
    back.train()
    assert len(first.active) == 16
    assert read_record(tmp_path / 'back')['decisions'][0]['skipped']


def test_fine_tuning_with_more_windows(pruned, tmp_path):
    """What is skipped already is no candidate and stays skipped."""
    work_dir, model = pruned
    runner = toy_runner(
        tmp_path, max_epochs=3, windows=[(1, 1), (3, 3)],
        load_from=str(work_dir / 'epoch_2.pth'))
    first = First()
    runner.register_hook(first)
    runner.train()
    assert first.active == active(model)
    gone = set(skipped(work_dir))
    decisions = read_record(tmp_path)['decisions']
    assert [d['iter'] for d in decisions] == [4, 12]
    for decision in decisions:
        before = {x['name'] for x in decision['layers']
                  if x['status'] == 'skipped before'}
        assert before == gone
        assert not before & set(decision['skipped'])
        candidates = {x['name'] for x in decision['layers']
                      if x['kl'] is not None}
        # All others but the first active of each of four stages.
        assert len(candidates) == 16 - len(gone) - 4
        assert not candidates & gone
        gone |= set(decision['skipped'])
    assert set(skipped(tmp_path)) == gone > set(skipped(work_dir))


@pytest.mark.parametrize('resume', [False, True])
def test_mask_of_another_depth_ends_the_run_before_training(
        pruned, tmp_path, resume):
    work_dir, _ = pruned
    runner = toy_runner(
        tmp_path, load_from=str(work_dir / 'epoch_2.pth'), resume=resume,
        **{'model.backbone.depth': 18})
    with pytest.raises(ValueError, match='mask of 16 attention.*has 8: build'):
        runner.train()
    assert runner.iter == 0 and not list(tmp_path.glob('*.pth'))


def test_strict_loading(pruned, tmp_path):
    work_dir, model = pruned
    for epoch in (1, 2):
        loaded = fresh_model(tmp_path)
        load_checkpoint(loaded, str(work_dir / f'epoch_{epoch}.pth'),
                        strict=True)
        assert active(loaded) == active(model)
    assert energy(loaded) == energy(model)
    state = model.state_dict()
    unpruned = fresh_model(tmp_path)
    unpruned.load_state_dict(state, strict=True)
    assert active(unpruned) == active(model)
    # And what is really missing still is.
    del state['backbone.layer1.attention.1.value.weight']
    with pytest.raises(RuntimeError, match='layer1.attention.1.value.weight'):
        unpruned.load_state_dict(state, strict=True)


# --- files -------------------------------------------------------------------

def plain_types(value, path='checkpoint'):
    """Fail on anything in the hook's state but plain values and tensors."""
    if isinstance(value, dict):
        for key, item in value.items():
            plain_types(item, f'{path}.{key}')
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            plain_types(item, f'{path}[{i}]')
    else:
        assert type(value) in (int, float, str, bool, type(None),
                               torch.Tensor), f'{path}: {type(value)}'


@needs_checked_loading
def test_every_checkpoint_loads_with_weights_only(tmp_path):
    """By interval, the best, the last; in a window, after it, of averages."""
    cfg = toy_config(
        tmp_path, windows=[(1, 2), (3, 3)],
        hooks=[dict(type='EMAHook', update_buffers=True)], **validation())
    cfg.custom_hooks[0].criterion = dict(type='fixed', n=2)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=2, by_epoch=False, save_last=True,
        save_best='energy', rule='greater', published_keys=['state_dict'])
    Runner.from_cfg(cfg).train()
    paths = sorted(tmp_path.glob('*.pth'))
    assert len(paths) >= 7 and any('best' in p.name for p in paths)
    for path in paths:
        checkpoint = torch.load(path, weights_only=True)
        state = checkpoint.get('ela_prune_hook')
        if state is None:
            assert 'optimizer' not in checkpoint, 'a published one'
        else:
            plain_types(state)
        if 'iter_' not in path.name or path.name == 'iter_6.pth':
            load_checkpoint(fresh_model(tmp_path), str(path), strict=True)
    # Within epoch 2, which mmengine would start over: with epoch 1's.
    inside = torch.load(tmp_path / 'iter_6.pth', weights_only=True)
    assert len(inside['ela_prune_hook']['statistics']) == 12


@needs_checked_loading
@pytest.mark.skipif(
    any(d.metadata['Name'] == 'onedl-mmengine' for d in distributions()),
    reason='loads without the check what it refuses, as the README says')
@pytest.mark.parametrize('resume', [False, True])
def test_malicious_checkpoints_end_the_run(pruned, tmp_path, resume):
    """Wherever in the file the code hides, the hook's state included."""
    work_dir, _ = pruned
    marker = tmp_path / 'ran'
    for place in ('ela_prune_hook', 'state_dict', 'message_hub'):
        checkpoint = torch.load(work_dir / 'epoch_2.pth')
        part = checkpoint.get(place)
        part = dict(part) if part else {}
        part['payload'] = RunsCode(f'touch {marker}')
        checkpoint[place] = part
        path = tmp_path / f'{place}.pth'
        torch.save(checkpoint, path)
        runner = toy_runner(
            tmp_path / f'{place}_{resume}', load_from=str(path),
            resume=resume)
        with pytest.raises(pickle.UnpicklingError, match='posix.system'):
            runner.train()
        assert runner.iter == 0
    assert not marker.exists()


# --- copies ------------------------------------------------------------------


def observed(model) -> list:
    return [m.observer for m in model.modules()
            if isinstance(m, AttentionStage) and m.observer is not None]


class Copies(Hook):
    """Copies the model in a step, with all that is in use then."""
    priority = 'LOWEST'

    def __init__(self):
        self.copies = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx != 1:
            return
        model = runner.model
        was_observed = bool(observed(model))
        for copied in (copy.deepcopy(model),
                       pickle.loads(pickle.dumps(model))):
            assert not observed(copied)
            assert bool(observed(model)) == was_observed
            assert active(copied) == active(model)
            assert [p.requires_grad for p in copied.parameters()
                    ] == [p.requires_grad for p in model.parameters()]
            rebuilt = fresh_model(runner.work_dir)
            rebuilt.load_state_dict(model.state_dict())
            self.copies.append(
                (was_observed, energy(copied), energy(rebuilt)))
            copied.train()
            copied(data_batch['inputs'])  # must not count in the window


def test_copies_before_inside_and_after_a_window(tmp_path):
    """A copy computes the same, and nobody observes it."""
    runner = toy_runner(tmp_path, windows=[(2, 2)], max_epochs=3)
    hook = Copies()
    runner.register_hook(hook)
    runner.train()
    assert [inside for inside, _, _ in hook.copies] == (
        [False] * 2 + [True] * 2 + [False] * 2)
    assert all(ours == theirs for _, ours, theirs in hook.copies)
    (decision, ) = read_record(tmp_path)['decisions']
    assert decision['samples'] == 8 and decision['skipped']
    # Saved whole, as some tools do.
    torch.save(runner.model, tmp_path / 'whole.pt')
    loaded = torch.load(tmp_path / 'whole.pt', weights_only=False)
    assert active(loaded) == active(runner.model)
    assert energy(loaded) == energy(runner.model)
    # A copy goes its own way.
    copied = copy.deepcopy(runner.model)
    copied.backbone.skip_layers(active(copied)[:1])
    assert len(active(copied)) == len(active(runner.model)) - 1
    assert copied.backbone.active.sum() == len(active(copied))
    assert runner.model.backbone.active.sum() == len(active(runner.model))
