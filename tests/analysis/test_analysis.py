"""What the analyses find, against figures worked out another way."""
import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import FUNCTIONS
from scipy import stats
from support import ROOT
from support.complexity import needs_counter
from support.toy import ToyClassifier, ToyDataset, toy_runner, validation

from ela_mm import adjacent_kl
from ela_mm.analysis import count
from ela_mm.analysis.attention import measure
from ela_mm.analysis.complexity import count_by_module
from ela_mm.analysis.cost import (
    Cost,
    LayerCost,
    StageCost,
    measure_cost,
)
from ela_mm.analysis.history import decided, read_run
from ela_mm.analysis.report.whatif import stability_picture, whatif_section
from ela_mm.analysis.whatif import (
    Window,
    bootstrap,
    compare,
    counts,
    measured_window,
    outcome,
    parse_criterion,
    recorded_window,
    stability,
)
from ela_mm.apis.data import picture_shape
from ela_mm.engine.journal.record import (
    FILE_NAME,
    decision_from_json,
    decision_to_json,
    read_record,
    write_record,
)
from ela_mm.errors import UsageError
from ela_mm.hosts.mmpretrain import ELAResNet
from ela_mm.models.backbones.stages import AttentionStage
from ela_mm.pruning.build import build_criterion

KL = dict(zip(['layer1.1', 'layer1.2', 'layer2.1', 'layer3.1', 'layer3.2'],
              [.1, .2, .4, .9, 3.]))


def toy_model(**options):
    backbone = dict(type='mmdet.ELAResNet', depth=34, base_channels=16,
                    **options)
    return ToyClassifier(backbone)


def random_weights(model):
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=.2)
    return model.eval()


# --- attention ---------------------------------------------------------------


@torch.no_grad()
def naive_weights(backbone, images):
    """P of equation 4 from the blocks' outputs, layer by layer."""
    outputs, handles = {}, []
    for stage in backbone.attention_stages:
        for i, block in enumerate(stage):
            handles.append(block.register_forward_hook(
                lambda m, a, out, key=(stage.name, i): outputs.update(
                    {key: out})))
    backbone(images)
    for handle in handles:
        handle.remove()
    weights = {}
    for stage in backbone.attention_stages:
        keys = []
        for i, layer in enumerate(stage.attention):
            if not stage.visible[i]:
                continue
            pooled = outputs[stage.name, i].mean((2, 3))[:, None]  # (B, 1, C)
            split = (len(images), -1, layer.head_dim)
            keys.append(F.conv1d(pooled, layer.key.weight, padding='same')
                        .reshape(split))
            if stage.active[i]:
                query = F.conv1d(pooled, layer.query.weight, padding='same'
                                 ).reshape(split)
                products = torch.einsum('bhd,nbhd->bhn', query,
                                        torch.stack(keys))
                weights[f'{stage.name}.{i}'] = (
                    products / math.sqrt(layer.head_dim)).softmax(-1)
    return weights


@pytest.mark.parametrize('skip, visible', [('layer', False),
                                           ('retrieval', True)])
def test_weights_are_averaged_over_pictures_and_heads(skip, visible):
    model = random_weights(toy_model())
    model.backbone.skip_layers(['layer3.1', 'layer3.2'], skip)
    images = ToyDataset().images
    model.train()  # whose norms would see other statistics
    with torch.no_grad():
        measured = measure(
            model, (dict(inputs=batch) for batch in images.split(3)))
    naive = naive_weights(model.backbone, images)
    assert measured.images == 8
    assert [row.name for row in measured.rows] == list(naive)
    assert 'layer3.1' not in naive
    for row in measured.rows:
        flat = naive[row.name].flatten(0, 1).numpy()
        np.testing.assert_allclose(row.mean, flat.mean(0), atol=1e-5)
        np.testing.assert_allclose(row.std, flat.std(0), atol=1e-5)
    row = next(row for row in measured.rows if row.name == 'layer3.3')
    assert ('layer3.1' in row.sources) is visible
    assert row.sources[-1] == 'layer3.3'
    kl = adjacent_kl(naive['layer3.0'], naive['layer3.3'])
    assert measured.kl['layer3.3'].mean == pytest.approx(float(kl), rel=1e-4)


def test_no_picture_is_an_error():
    with pytest.raises(UsageError, match='no picture'):
        measure(toy_model(), [])


def test_a_model_without_attention_is_an_error():
    with pytest.raises(UsageError, match='no layer attention'):
        measure(toy_model(attention=None), [])


# --- what if -----------------------------------------------------------------


def window(series=None, **kwargs):
    return Window('epoch 1', list(KL), np.array(list(KL.values())), series,
                  ['layer1.0', *KL], **kwargs)


def naive_ebqm(values, gamma, alpha, beta, mu):
    """Algorithm 1, line by line."""
    limit = np.quantile(values, gamma)
    low = min(values)
    high = max(v for v in values if v <= limit)
    return [v <= limit and stats.beta(alpha, beta).cdf(
        (v - low) / (high - low)) < mu for v in values]


def test_counts_are_those_of_algorithm_1():
    gammas, mus = (.5, .75, 1.), (.1, .2, .5)
    grid = counts(window(), 2., 5., gammas, mus)
    assert grid.tolist() == [[
        sum(naive_ebqm(KL.values() and list(KL.values()), g, 2., 5., mu))
        for mu in mus] for g in gammas]
    assert len(set(grid.ravel().tolist())) > 1


def test_expected_step_is_less_what_skipped_layers_cost():
    found = outcome(window(step_time=1.), dict(type='fixed', n=2),
                    seconds=lambda active: .01 * len(active)**2)
    assert found.skipped == ['layer1.1', 'layer1.2']
    assert found.step_time == pytest.approx(1. - .01 * (6**2 - 4**2))
    assert outcome(window(), dict(type='fixed', n=2)).step_time is None


def test_the_bootstrap_spreads_as_a_mean_does():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 1))
    drawn = bootstrap(noise, draws=4000)
    assert drawn.std() == pytest.approx(noise.std() / 20, rel=.1)
    assert drawn.mean() == pytest.approx(noise.mean(), abs=.01)
    # Neighbours that move together say less than their number.
    slow = np.repeat(rng.normal(size=(40, 1)), 10, axis=0)
    assert bootstrap(slow, draws=4000).std() > 1.8 * slow.std() / 20


def test_the_bootstrap_draws_all_layers_from_the_same_iterations():
    column = np.random.default_rng(0).normal(size=100)
    drawn = bootstrap(np.stack([column, column + 1], 1), draws=50)
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 1)
    assert len(np.unique(drawn[:, 0].round(9))) > 40


def test_stability_is_the_chance_to_fall_below_a_threshold():
    rng = np.random.default_rng(1)
    noise = rng.normal(scale=.2, size=(400, 2))
    series = noise - noise.mean(0) + np.array([.3, .5])
    near = Window('epoch 1', ['a', 'b'], series.mean(0), series, ['a', 'b'])
    found = stability(near, build_criterion(dict(type='threshold', t=.305)),
                      draws=4000)
    chance = stats.norm.cdf(.005 / (.2 / math.sqrt(400)))
    assert found.skipped['a'] == pytest.approx(chance, abs=.08)
    assert found.skipped['b'] == 0.
    assert found.same == pytest.approx(found.skipped['a'])


def test_without_single_iterations_nothing_is_said_of_stability():
    assert outcome(window(), dict(type='EBQM')).stability is None


def test_one_candidate_is_not_ranked():
    one = Window('epoch 1', ['layer1.1'], np.array([.1]), None,
                 ['layer1.0', 'layer1.1'])
    found = outcome(one, dict(type='EBQM'))
    assert not found.skipped and 'ranking needs 2' in found.note


def test_the_own_criterion_comes_first_with_its_decision():
    values = list(KL.values())
    own = dict(gamma=.9, alpha=3., beta=4., mu=.4)
    skipped = [n for n, x in zip(KL, naive_ebqm(values, **own)) if x]
    outcomes = compare(
        window(criterion=dict(type='EBQM', **own), skipped=skipped),
        more=[dict(type='fixed', n=3)])
    labels = [o.label for o in outcomes]
    assert labels[0] == 'this run' and labels[-1] == 'fixed, n=3'
    for found in (outcomes[0],
                  next(o for o in outcomes if o.label.endswith('COCO'))):
        config = {k: v for k, v in found.config.items() if k != 'type'}
        expected = naive_ebqm(values, **config)
        assert found.skipped == [n for n, x in zip(KL, expected) if x]
    # Those of table 6 share gamma and mu with the run.
    normal = next(o for o in outcomes if o.config['type'] == 'normal')
    assert normal.config['gamma'] == .9 and normal.config['mu'] == .4


def test_a_criterion_that_is_not_registered_is_said_to_be():
    own = dict(type='of_another_project', x=1)
    lost = window(
        np.tile(list(KL.values()), (9, 1)), criterion=own,
        skipped=['layer2.1'])
    first = compare(lost)[0]
    assert ('"this run" cannot be decided anew: unknown criterion'
            in whatif_section(lost, compare(lost)).text[-1])
    assert stability_picture(lost, first.stability) is None
    assert first.skipped == ['layer2.1']
    assert 'unknown criterion' in first.note


def test_criteria_from_the_command_line():
    config = parse_criterion('EBQM,gamma=0.9,mu=0.1')
    assert config == dict(type='EBQM', gamma=.9, mu=.1)
    assert parse_criterion('fixed,n=3') == dict(type='fixed', n=3)
    for wrong in ('EBQM,gamma', 'EBQM,gamma=x', 'EBQM,gamma=2', 'nothing',
                  'EBQM,nu=0.1'):
        with pytest.raises(UsageError):
            parse_criterion(wrong)


# --- the work dir ------------------------------------------------------------


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    """Of the toy, with validation, pruned after epochs 1 and 3."""
    folder = tmp_path_factory.mktemp('run')
    toy_runner(folder, max_epochs=4, windows=[(1, 1), (3, 3)],
               **validation()).train()
    return folder


def test_a_run_is_read_back(run_dir):
    run = read_run(str(run_dir))
    record = read_record(run_dir)
    first, second = record['decisions']
    assert run.unit == 'epoch'
    assert run.active == [(0, 16), (1, first['active']),
                          (3, second['active'])]
    assert run.checkpoint.endswith('epoch_4.pth')
    assert run.metric == 'energy' and [x for x, _ in run.metrics] == [
        1, 2, 3, 4]
    logs = [json.loads(line) for path in run_dir.glob('*/vis_data/scalars.json')
            for line in path.read_text().splitlines()]
    energies = [x['energy'] for x in logs if 'energy' in x]
    assert [y for _, y in run.metrics] == energies


def test_a_recorded_window_is_the_decisions(run_dir):
    run = read_run(str(run_dir))
    decision = run.decisions[0]
    found = recorded_window(decision)
    ranked = [x for x in decision.layers if x.kl is not None]
    assert found.names == [x.name for x in ranked]
    assert found.series.shape == (4, len(ranked))
    # 6 digits are kept of single iterations.
    np.testing.assert_allclose(found.series.mean(0), found.kl, rtol=1e-5)
    assert found.active == [x.name for x in decision.layers]
    later = recorded_window(run.decisions[1])
    assert later.active == [
        n for n in found.active if n not in decision.skipped]
    again = outcome(found, found.criterion)
    assert again.skipped == decision.skipped
    old = decision_to_json(decision)
    for layer in old['layers']:
        del layer['kl_iterations']
    assert recorded_window(decision_from_json(old)).series is None


def log(folder, time, *entries):
    place = folder / time / 'vis_data'
    place.mkdir(parents=True)
    (place / 'scalars.json').write_text('\n'.join(
        x if isinstance(x, str) else json.dumps(x) for x in entries))


def train(epoch, iteration, seconds, data=0.):
    return dict(epoch=epoch, iter=iteration, step=iteration, time=seconds,
                data_time=data, loss=1.)


def empty_record(folder, by_epoch=True):
    write_record(
        dict(by_epoch=by_epoch, format=1, windows=[[1, 1]], skip='layer',
             criterion=dict(type='EBQM'), layers=['layer1.0'],
             active=['layer1.0'], decisions=[]), str(folder))


def test_logs_of_a_resumed_run_are_joined(tmp_path):
    empty_record(tmp_path)
    log(tmp_path, '20260101_000000', train(1, 1, 3.), train(1, 2, 5., 1.),
        train(1, 3, 9.), {'step': 1, 'time': 1., 'accuracy/top1': 10.},
        train(2, 4, 90.), '{"epoch": 2, "iter"')
    log(tmp_path, '20260102_000000', train(2, 4, 2.), train(2, 5, 2.5),
        {'step': 2, 'time': 1., 'accuracy/top1': 20., 'accuracy/top5': 40.})
    run = read_run(str(tmp_path))
    assert run.step_times == [(1, 4.), (2, 2.25)]
    assert run.metric == 'accuracy/top1'
    assert run.metrics == [(1, 10.), (2, 20.)]


def test_another_run_in_the_same_work_dir_replaces_the_first(tmp_path):
    empty_record(tmp_path)
    log(tmp_path, '20260101_000000', train(1, 1, 3.), train(2, 2, 3.),
        {'step': 1, 'accuracy/top1': 80.}, {'step': 2, 'accuracy/top1': 90.})
    log(tmp_path, '20260102_000000', train(1, 1, 5.),
        {'step': 1, 'accuracy/top1': 10.})
    # tools/test.py
    log(tmp_path, '20260103_000000', {'step': 0, 'accuracy/top1': 99.})
    run = read_run(str(tmp_path))
    assert run.step_times == [(1, 5.)]
    assert run.metrics == [(1, 10.)]


def test_windows_of_iterations_in_an_epoch_loop(tmp_path):
    empty_record(tmp_path, by_epoch=False)
    log(tmp_path, '20260101_000000', train(1, 10, 3.), train(1, 20, 3.),
        {'step': 1, 'accuracy/top1': 80.}, train(2, 40, 3.),
        {'step': 2, 'accuracy/top1': 90.})
    assert read_run(str(tmp_path)).metrics == [(20, 80.), (40, 90.)]


def test_other_python_files_in_a_work_dir_are_no_configs(tmp_path):
    empty_record(tmp_path)
    (tmp_path / 'config.py').write_text("x = 1\nmodel = dict(type='A')\n")
    (tmp_path / 'my_criteria.py').write_text('def rule(kl):\n    ...\n')
    os.utime(tmp_path / 'config.py', (1, 1))
    assert read_run(str(tmp_path)).config == str(tmp_path / 'config.py')


def test_iterations_are_counted_where_windows_count_them(tmp_path):
    empty_record(tmp_path, by_epoch=False)
    log(tmp_path, '20260101_000000', train(1, 10, 3.), train(1, 20, 4.),
        {'step': 20, 'coco/bbox_mAP': .5})
    run = read_run(str(tmp_path))
    assert run.unit == 'iteration'
    assert run.step_times == [(10, 3.), (20, 4.)]
    assert run.metrics == [(20, .5)]


@pytest.mark.parametrize('content, message', [
    (None, 'trained with ELAPruneHook'),
    ('{"format": 1,', 'is no JSON'),
    ('{"format": 99, "decisions": []}', 'format 99'),
    ('[]', 'format None'),
])
def test_what_is_no_record_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_run(str(tmp_path))
    with pytest.raises(UsageError, match='is no folder'):
        read_run(str(tmp_path / 'nowhere'))


def test_no_window_has_ended(tmp_path):
    empty_record(tmp_path)
    with pytest.raises(UsageError, match='has ended yet'):
        decided(read_run(str(tmp_path)))


# --- cost --------------------------------------------------------------------


@needs_counter
def test_a_layers_operations_by_hand():
    backbone = ELAResNet(18, stem_channels=16, base_channels=16)
    macs = count_by_module(backbone, (3, 64, 64))
    assert macs[''] == count(backbone, (3, 64, 64)).macs
    channels, side, kernel, n = 32, 8, 3, 2
    pixels = side * side
    assert macs['layer2.attention.1'] == (
        9 * channels * pixels  # value
        + 2 * kernel * channels  # key and query; n C products of them are sums
        + n * channels * pixels)  # the weighted sum
    stage = sum(macs[f'layer2.{i}'] + macs[f'layer2.attention.{i}']
                for i in range(2))
    assert macs['layer2'] == stage


@needs_counter
def test_cost_before_and_after():
    model = toy_model()
    whole = count(model.backbone, (3, 32, 32)).macs
    model.backbone.skip_layers(['layer3.1', 'layer3.2', 'layer4.2'])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    cost = measure_cost(model, (32, 32), rounds=2)
    assert cost.macs_before == whole
    assert cost.macs_after == count(model.backbone, (3, 32, 32)).macs < whole
    assert [x.name for x in cost.layers if not x.active] == [
        'layer3.1', 'layer3.2', 'layer4.2']
    skipped = [getattr(model.backbone, f'layer{s}').attention[i]
               for s, i in ((3, 1), (3, 2), (4, 2))]
    assert cost.unused_parameters == sum(
        p.numel() for layer in skipped for p in layer.parameters())
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    for stage in cost.stages:
        layers = [x for x in cost.layers if x.name.startswith(stage.name)]
        assert stage.macs_before == sum(x.macs for x in layers)
        assert stage.seconds > 0 and stage.seconds_after > 0
    # The model stays as it was.
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert not model.backbone.layer3.active[1]


def test_attention_is_a_fixed_part_and_pairs():
    """Seconds of a stage made up from both, and found again for any mask."""
    fixed, pair = [1., 2., 3., 4.], .25
    layers = [LayerCost(f'layer1.{i}', True, 0, 0, x + 4 * pair, 'layer1')
              for i, x in enumerate(fixed)]
    stage = StageCost('layer1', 0, 0, 0, 0, 0, 0., 0., 0., pair)
    cost = Cost('', 0, 0, 0, 0, [stage], layers)
    for active in ((0, 1, 2, 3), (0, 3), (2, ), ()):
        expected = sum(fixed[i] for i in active) + pair * sum(
            1 for i in active for j in active if j <= i)
        names = [f'layer1.{i}' for i in active]
        assert cost.attention_seconds(names) == pytest.approx(expected)


@needs_counter
def test_pairs_are_told_from_layers(monkeypatch):
    """On made-up times of a stage, in which each pair costs the same."""

    def made_up(steps, rounds):
        masks = {
            name: step.__closure__[
                step.__code__.co_freevars.index('mask')].cell_contents
            for name, step in steps.items()}
        seconds = {}
        for name, mask in masks.items():
            active = [i for i, on in enumerate(mask[0]) if on]
            seconds[name] = [9. + sum(
                1. + i + .5 * (i_rank + 1) for i_rank, i in enumerate(active))]
        return seconds

    monkeypatch.setattr('ela_mm.analysis.cost.time_in_turns', made_up)
    cost = measure_cost(toy_model(), (32, 32), rounds=1)
    for stage in cost.stages:
        assert stage.pair_seconds == pytest.approx(.5)
    total = {n: len([x for x in cost.layers if x.name.startswith(n)])
             for n in ('layer1', 'layer3')}
    for layer in cost.layers:
        stage, i = layer.name.split('.')
        if stage in total:
            assert layer.seconds == pytest.approx(
                1. + int(i) + .5 * total[stage])


@needs_counter
@pytest.mark.parametrize('frozen, training, backward', [
    (-1, True, {'layer1', 'layer2', 'layer3', 'layer4'}),
    (2, True, {'layer3', 'layer4'}),
    (4, True, set()),
    (-1, False, set()),
])
def test_what_does_not_learn_is_timed_without_backward(
        frozen, training, backward, monkeypatch):
    seen, last = set(), []
    forward, back = AttentionStage.forward, torch.Tensor.backward

    def watched(self, x):
        last[:] = [self.name]
        return forward(self, x)

    def watched_back(self, *args, **kwargs):
        seen.update(last)
        return back(self, *args, **kwargs)

    monkeypatch.setattr(AttentionStage, 'forward', watched)
    monkeypatch.setattr(torch.Tensor, 'backward', watched_back)
    model = toy_model(frozen_stages=frozen, norm_eval=False)
    measure_cost(model, (32, 32), rounds=1, training=training)
    assert seen == backward


@pytest.mark.parametrize('name, shape', [
    ('faster_rcnn_ela_r50', (800, 1333)),
    ('ela_resnet50_imagenet', (224, 224)),
    ('ela_resnet56_cifar10', (32, 32)),
])
def test_picture_shapes_without_data(name, shape, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader].dataset.data_root = str(tmp_path / 'nowhere')
    assert picture_shape(cfg) == shape


def test_measured_without_training():
    model = random_weights(toy_model())
    batches = [dict(inputs=x) for x in ToyDataset().images.split(2)]
    kl = measure(model, batches).kl
    active = [x.name for x in model.backbone.attention_layers]
    found = measured_window(kl, active, '8 pictures')
    assert found.active == active
    assert found.series.shape == (4, len(kl))
    np.testing.assert_allclose(found.series.mean(0), found.kl, rtol=1e-5)
    assert outcome(found, dict(type='EBQM')).stability is not None


def test_a_users_criterion_is_compared():

    @FUNCTIONS.register_module(force=True)
    def the_last_one(kl):
        return np.arange(len(kl)) == len(kl) - 1

    own = dict(type='the_last_one')
    assert compare(window(criterion=own))[0].skipped == ['layer3.2']
    FUNCTIONS.module_dict.pop('the_last_one')
