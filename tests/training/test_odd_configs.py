"""Folders and settings as users have them, some of which cannot work."""
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from support.toy import toy_config, toy_runner
from support.training import without_times

from ela_mm import ELAPruneHook
from ela_mm.apis.launch import build_runner, check_has
from ela_mm.apis.loading import (
    build_any_model,
    criterion_of,
    prune_hook_of,
    redundancy_of,
    skip_mode_of,
)
from ela_mm.apis.options import options_explained
from ela_mm.engine import SparseTrainingHook, surgery
from ela_mm.engine.journal.record import read_record
from ela_mm.errors import UsageError
from ela_mm.hosts.mmdet import ELAResNet


def test_hooks_forget_the_runner_before(tmp_path):
    """As objects in a notebook's loop over seeds or folds."""
    hooks = [
        ELAPruneHook([(0.0, 0.5)], dict(type='fixed', n=3), picture=False),
        SparseTrainingHook(0.5, dict(type='RigL', interval=2))]
    runs = []
    for name in 'ab':
        runs.append(toy_runner(tmp_path / name, max_epochs=2, windows=None))
        for hook in hooks:
            runs[-1].register_hook(hook)
        runs[-1].train()
    ours, theirs = (without_times(read_record(tmp_path / x)) for x in 'ab')
    assert ours == theirs and len(ours['decisions'][0]['skipped']) == 3
    whole = runs[0].model.state_dict()
    for name, value in runs[1].model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_a_hook_of_a_users_own_skips_layers(tmp_path):
    """In averages too, whose buffers do not follow the model's here."""

    class ByHand(Hook):

        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                surgery.skip(runner, ['layer1.1'], 'layer')

    runner = toy_runner(
        tmp_path, max_epochs=2, windows=None,
        **{'train_dataloader.dataset.size': 2})
    ema = EMAHook(update_buffers=True)
    for hook in (ema, ByHand()):
        runner.register_hook(hook)
    runner.train()
    for model in (runner.model, ema.ema_model.module):
        assert model.backbone.layer1.active == [True, False, True]
    skipped = runner.model.backbone.layer1.attention[1].parameters()
    assert not set(skipped) & set(runner.optim_wrapper.optimizer.state)


def test_a_setting_that_a_tool_needs_is_named():
    cfg = Config(dict(test_cfg={}, test_dataloader=None))
    check_has(cfg, 'test_cfg')
    with pytest.raises(UsageError, match='the config has no test_dataloader '
                                         'and no test_evaluator: expected'):
        check_has(cfg, 'test_dataloader', 'test_cfg', 'test_evaluator')


def test_a_subclass_of_the_hook_is_known_to_tools(tmp_path):

    @HOOKS.register_module(force=True)
    class Talkative(ELAPruneHook):
        """A user's own."""

    cfg = toy_config(tmp_path, hook=dict(
        skip='retrieval', redundancy='excess'))
    cfg.custom_hooks[0].type = 'Talkative'
    assert criterion_of(cfg)['alpha'] == 5
    assert (skip_mode_of(cfg), redundancy_of(cfg)) == ('retrieval', 'excess')
    cfg.custom_hooks = [dict(type='EMAHook'), dict(type=Talkative, windows=[])]
    assert prune_hook_of(cfg).type is Talkative
    cfg.custom_hooks = [dict(type='EMAHook'), dict(type='Unknown')]
    assert prune_hook_of(cfg) is None


@pytest.mark.parametrize('place, why', [
    ('file', 'File exists'), ('file/below', 'Not a directory')])
def test_a_work_dir_that_cannot_be_written_to_is_named(tmp_path, place, why):
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match=f"{place}' cannot be written to "
                                         fr'\({why}\).*--work-dir'):
        build_runner(toy_config(tmp_path / place))


def test_a_misspelt_option_is_named_with_its_class(tmp_path):
    def config():
        return toy_config(tmp_path, max_epochs=1)

    near, far, base, hook = (config() for _ in range(4))
    near.model.backbone.zero_init_atention = True
    for build in (build_any_model, build_runner):
        with pytest.raises(UsageError, match=(
                r"^model\.backbone\.zero_init_atention=True: ELAResNet has no such "
                r"option; did you mean 'zero_init_attention'")):
            build(near)
    far.model.backbone.qqq = 1  # the base class's options are expected, too
    with pytest.raises(UsageError, match='qqq=1: .* expected .*head_dim.*depth'):
        build_any_model(far)
    base.model.backbone.frozen_stage = 1
    with pytest.raises(UsageError, match="did you mean 'frozen_stages'"):
        build_any_model(base)
    hook.custom_hooks[0].window = hook.custom_hooks[0].windows
    with pytest.raises(UsageError, match=(
            r"^custom_hooks\.0\.window=.*: ELAPruneHook has .*'windows'")):
        build_runner(hook)


def test_an_option_that_is_not_in_the_config_keeps_its_error(tmp_path):
    """A class that hands a wrong option on is at fault, not the config."""
    config = toy_config(tmp_path)._cfg_dict
    with pytest.raises(TypeError, match='depht'), options_explained(config):
        ELAResNet(depht=18)
