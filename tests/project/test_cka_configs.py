"""The configs and grids of CKA-SR build, and say what its appendix says."""
import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from support import ROOT

import ela_mm.engine.hooks.cka_regularization_hook
import ela_mm.engine.hooks.sparse_training_hook  # noqa: F401  registers
from ela_mm.experiments.grid import apply_overrides, cells, read_grid
from ela_mm.sparsity.stages import find_stages

CONFIGS = sorted((ROOT / 'configs').glob('cka_sr_*.py'))
STAGES = {18: [2, 2, 2, 2], 20: [3, 3, 3], 50: [3, 4, 6, 3]}


def config_of(name):
    return Config.fromfile(ROOT / 'configs' / f'cka_sr_{name}.py')


def test_all_are_looked_at():
    assert {path.stem[len('cka_sr_'):] for path in CONFIGS} == {
        'resnet20_cifar100', 'resnet20_cifar10_erk05', 'resnet20_digits',
        'resnet18_imagenet', 'resnet50_imagenet'}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    depth = cfg.model.backbone.depth
    assert [len(x) for x in find_stages(model).values()] == STAGES[depth]
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)
    assert len(path.read_text().splitlines()) < 45


def test_resnet_20_is_the_papers():
    cfg = config_of('resnet20_cifar10_erk05')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    convolutions = [m for n, m in model.named_modules()
                    if n.endswith(('conv1', 'conv2'))]
    assert len(convolutions) == 19  # and the classifier
    assert sorted({c.out_channels for c in convolutions}) == [16, 32, 64]
    # 0.27 M of He et al., and the 1x1 convolutions of two shortcuts.
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert sum(p.numel() for p in model.parameters()) == 269722 + shortcuts


@pytest.mark.parametrize('name', ['resnet20_cifar100', 'resnet20_cifar10_erk05'])
def test_cifar_recipe(name):
    cfg = config_of(name)
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=.1, momentum=.9, nesterov=True, weight_decay=5e-4)
    assert cfg.train_cfg.max_epochs == 160
    assert cfg.param_scheduler.milestones == [80, 120]
    assert cfg.param_scheduler.gamma == .1
    sparse, cka, reseeding = cfg.custom_hooks
    assert reseeding.type == 'ReseedHook'
    assert sparse == dict(type='SparseTrainingHook', density=.05,
                          scheme=dict(type='ERK'))
    assert cka == dict(type='CKARegularizationHook', weight=1e-4, samples=8,
                       interval=5)
    classes = 100 if name.endswith('100') else 10
    assert cfg.model.head.num_classes == classes
    assert cfg.data_preprocessor.num_classes == classes
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert cfg[loader].dataset.type == f'CIFAR{classes}'
        assert f'cifar{classes}' in cfg[loader].dataset.data_root


@pytest.mark.parametrize('depth', [18, 50])
def test_imagenet_recipe(depth):
    cfg = config_of(f'resnet{depth}_imagenet')
    hook, reseeding = cfg.custom_hooks
    assert reseeding.type == 'ReseedHook'
    assert hook == dict(type='CKARegularizationHook', weight=1e-5, samples=-1,
                        interval=1)
    assert cfg.model.backbone.type == 'ResNet'
    assert cfg.train_cfg.max_epochs == 100


def test_table_5_and_its_numbers():
    grid = read_grid(str(ROOT / 'configs' / 'ablations' / 'cka_sr.yaml'))
    densities = {'.70': .3, '.85': .15, '.90': .1, '.95': .05, '.98': .02,
                 '.998': .002}
    variants = {'Random': None, '+ CKA-SR': 'CKA-SR', '+ AugCKA-SR': 'AugCKA-SR'}
    runs = cells(grid, str(ROOT))
    assert [run.variant for run in runs] == [
        f'{s} {v}' for s in densities for v in variants] == list(grid['paper'])
    for run in runs:
        cfg = Config.fromfile(run.config)
        apply_overrides(cfg, run.overrides)
        sparsity, name = run.variant.split(' ', 1)
        assert cfg.custom_hooks[0].density == densities[sparsity]
        hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
        assert (hooks[1].variant if hooks[1:] else None) == variants[name]
    published = {name: numbers[20] for name, numbers in grid['paper'].items()}
    assert published['.70 Random'] == 65.42
    assert published['.95 + CKA-SR'] == 48.26
    assert published['.998 + AugCKA-SR'] == 3.04


def test_digits_are_paired():
    """With and without CKA-SR differ in that hook alone."""
    grid = read_grid(str(ROOT / 'configs' / 'ablations' / 'digits_cka.yaml'))
    assert grid['seeds'] == [0, 1, 2]
    runs = {run.variant: run for run in cells(grid, str(ROOT))}
    for density in (.3, .1, .05):
        plain = runs[f'{density} ERK'].overrides['custom_hooks']
        with_cka = runs[f'{density} ERK + CKA-SR'].overrides['custom_hooks']
        assert plain[0]['density'] == density
        assert with_cka == [*plain, dict(type='CKARegularizationHook',
                                         weight=1e-4)]
