"""What skipping costs, against networks in which the layers are skipped."""
import math
from copy import deepcopy
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from scipy import stats
from support import ROOT
from support.detector import small_config
from support.toy import ToyClassifier

import ela_mm  # noqa: F401
from ela_mm.analysis.ablate import Ablated, Cost, Redundancy, ablate
from ela_mm.analysis.report.ablate import ablation_section
from ela_mm.apis.data import annotated_batches, dataset_batches
from ela_mm.apis.loading import build_model, criterion_of, skip_mode_of
from ela_mm.errors import UsageError
from ela_mm.pruning.build import build_criterion

FIXED = build_criterion(dict(type='fixed', n=2))


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    model = ToyClassifier(
        dict(type='mmdet.ELAResNet', depth=34, base_channels=16))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=.04)
    model.backbone.skip_layers(['layer3.3'])
    return model.eval()


@pytest.fixture(scope='module')
def batches():
    generator = torch.Generator().manual_seed(1)
    return [dict(inputs=torch.randn(n, 3, 32, 32, generator=generator),
                 targets=torch.arange(n) % 2) for n in (4, 4, 2)]


@pytest.fixture(scope='module')
def found(network, batches):
    return ablate(network, iter(batches), FIXED)


@torch.no_grad()
def losses(model, batches, without=()):
    model = deepcopy(model)
    model.backbone.skip_layers(without)
    return np.array([float(model(**b, mode='loss')['loss']) for b in batches])


def test_each_layer_is_skipped_alone(network, batches, found):
    whole = losses(network, batches)
    sizes = [4, 4, 2]
    assert (found.images, found.batches) == (10, 3)
    assert found.loss == pytest.approx(np.average(whole, weights=sizes))
    names = [x.name for x in network.backbone.attention_layers if x.active]
    assert list(found.layers) == names and 'layer3.3' not in names
    for name in ('layer1.0', 'layer3.2', 'layer4.2'):
        added = losses(network, batches, [name]) - whole
        cost = found.layers[name]
        assert np.allclose(cost.added, added, atol=1e-6)
        assert cost.loss == pytest.approx(
            np.average(added, weights=sizes), abs=1e-6)
        low, high = stats.t.interval(.95, 2, 0, stats.sem(added))
        assert cost.margin == pytest.approx((high - low) / 2, rel=1e-3)
        assert cost.top1 is None  # the toy has no labels of its own


def test_the_decision_is_skipped_as_a_whole(network, batches, found):
    smallest = sorted(found.redundancy,
                      key=lambda name: found.redundancy[name].kl)[:2]
    assert sorted(found.decision.skipped) == sorted(smallest)
    added = losses(network, batches, smallest) - losses(network, batches)
    assert np.allclose(found.decision.added, added, atol=1e-6)
    assert found.criterion['type'] == 'fixed'


def test_the_decision_is_by_the_measure_of_the_run(network, batches, found):
    """By the conditional part: 0 wherever the layer before sees itself alone."""
    other = ablate(network, batches[:2], FIXED, accuracy=False,
                   redundancy='conditional')
    assert other.decision.skipped == ('layer1.1', 'layer2.1')
    assert sorted(found.decision.skipped) != ['layer1.1', 'layer2.1']
    sure = [n for n, x in other.redundancy.items() if x.stability == 1.]
    assert sure == ['layer1.1', 'layer2.1']
    section = ablation_section(other, 'drawn')
    assert 'by the conditional part' in ' '.join(section.text)
    assert 'conditional' in section.pictures[0].figure.axes[0].get_xlabel()
    with pytest.raises(UsageError, match="redundancy='kl'"):
        ablate(network, batches, FIXED, redundancy='kl')


def test_the_decision_of_what_asks_the_network(network, batches):
    other = ablate(network, batches[:1],
                   build_criterion(dict(type='ablation', n=2)), accuracy=False)
    costs = {name: other.layers[name].loss for name in other.redundancy}
    assert sorted(other.decision.skipped) == sorted(
        sorted(costs, key=costs.get)[:2])
    assert all(x.stability is None for x in other.redundancy.values())


def test_layers_are_skipped_as_the_run_skips_them(network, batches):
    """Later layers still see them, alone and together, whatever decides."""
    criterion = build_criterion(dict(type='ablation', n=2))
    other = ablate(network, batches[:1], criterion, accuracy=False,
                   skip='retrieval')
    model = deepcopy(network)
    for names, cost in (['layer3.1'], other.layers['layer3.1']), (
            list(other.decision.skipped), other.decision):
        whole = losses(model, batches[:1])
        model.backbone.skip_layers(names, 'retrieval')
        assert np.allclose(cost.added, losses(model, batches[:1]) - whole,
                           atol=2e-7)
        model.backbone.restore_layers(names)
    whole = ablate(network, batches[:1], FIXED, accuracy=False)
    assert max(abs(cost.loss - whole.layers[name].loss)
               for name, cost in other.layers.items()) > 1e-5
    assert 'later layers still see' in ' '.join(
        ablation_section(other, 'drawn').text)
    costs = {name: other.layers[name].loss for name in other.redundancy}
    assert sorted(other.decision.skipped) == sorted(
        sorted(costs, key=costs.get)[:2])


def test_milliseconds_stand_beside_each_layer(found):
    times = SimpleNamespace(conditions='on paper', layers=[
        SimpleNamespace(name=name, seconds=.001 * i)
        for i, name in enumerate(found.layers)])
    section = ablation_section(found, 'drawn', times)
    assert 'on paper' in ' '.join(section.text)
    assert [float(row[-1]) for row in section.tables[0].rows] == list(
        range(len(found.layers)))
    without = ablation_section(found, 'drawn')
    assert {row[-1] for row in without.tables[0].rows} == {'-'}


def test_the_network_is_as_before(network, found):
    state = {x.name: x.active for x in network.backbone.attention_layers}
    assert [n for n, active in state.items() if not active] == ['layer3.3']
    assert all(s.observer is None for s in network.backbone.attention_stages)


def test_equation_11_is_the_sum_of_its_parts(network, batches, found):
    seen = {}
    network.backbone.observe(lambda name, prev, curr: seen.setdefault(
        name, []).append((prev.double(), curr.double())))
    losses(network, batches)  # a copy, whose stages hold the same observer
    with torch.no_grad():
        for batch in batches:
            network.backbone(batch['inputs'])
    network.backbone.observe(None)
    for name in ('layer1.2', 'layer3.4'):
        prev = torch.cat([p for p, _ in seen[name][-3:]])
        curr = torch.cat([c for _, c in seen[name][-3:]])
        n = prev.shape[-1]
        first = curr[..., :n] / curr[..., :n].sum(-1, keepdim=True)
        conditional = (prev * (prev / first).log()).sum(-1).mean().item()
        own = curr[..., n:].sum(-1)
        x = found.redundancy[name]
        assert x.conditional == pytest.approx(conditional, abs=1e-5)
        assert x.own_share == pytest.approx(own.mean().item(), abs=1e-6)
        assert x.kl == pytest.approx(
            conditional - (1 - own).log().mean().item(), abs=1e-5)
        assert x.excess == pytest.approx(
            x.kl - math.log(curr.shape[-1] / n), abs=1e-6)
    # layer3.4 is the fourth that is active: 3.3 is skipped.
    assert found.redundancy['layer3.4'].position == 4


def ablated(kl, costs):
    names = [f'layer1.{i}' for i in range(1, len(kl) + 1)]
    return Ablated(
        8, 2, 1., 50.,
        {n: Cost((n, ), np.array([c, c]), c, .1, -1.)
         for n, c in zip(names, costs)}, None, dict(type='EBQM'),
        {n: Redundancy(k, k, k, .5, i, .25)
         for i, (n, k) in enumerate(zip(names, kl))})


def test_rank_correlations():
    known = ablated([.1, .2, .3, .4, .5], [.1, .2, .3, .4, .9])
    assert known.rank_correlation('kl') == pytest.approx(1)
    assert known.rank_correlation('own_share') is None  # all the same
    mixed = ablated([1, 2, 3, 4, 5], [.2, .1, .3, .5, .4])
    assert mixed.rank_correlation('kl') == pytest.approx(1 - 6 * 4 / 120)
    assert ablated([1, 2, 3, 4], [1, 2, 3, 4]).rank_correlation('kl') is None


def test_what_the_section_says(found):
    section = ablation_section(found, 'drawn')
    said = ' '.join(section.text)
    assert 'If a window ended with these weights, fixed would skip' in said
    assert '95%' in said
    layers, ranks = section.tables
    assert [row[0] for row in layers.rows] == list(found.layers)
    rho = {row[0]: row[1] for row in ranks.csv[1:]}
    assert rho['kl'] == found.rank_correlation('kl') is not None
    assert section.pictures[0].name == 'ablation'


def test_a_single_batch_has_no_interval(network, batches):
    found = ablate(network, batches[:1], build_criterion())
    assert found.layers['layer1.0'].margin is None
    assert all(x.stability is None for x in found.redundancy.values())
    assert 'one batch alone' in ' '.join(
        ablation_section(found, 'drawn').text)


def test_no_picture_and_no_labels(network, batches):
    with pytest.raises(UsageError, match='no picture'):
        ablate(network, [], FIXED)
    with pytest.raises(UsageError, match='has to load annotations'):
        ablate(network, [dict(inputs=batches[0]['inputs'])], FIXED)
    assert [x.name for x in network.backbone.attention_layers
            if not x.active] == ['layer3.3']


def test_a_network_that_is_pruned_already(network, batches):
    pruned = deepcopy(network)
    backbone = pruned.backbone
    names = [x.name for x in backbone.attention_layers]
    backbone.skip_layers(names[2:])
    found = ablate(pruned, batches[:1], FIXED, accuracy=False)
    assert list(found.layers) == names[:2] and list(found.redundancy) == names[1:2]
    assert found.decision is None  # one candidate is not ranked
    assert ablation_section(found, 'drawn').pictures
    backbone.skip_layers(names)
    with pytest.raises(UsageError, match='all 16 attention layers are skipped'):
        ablate(pruned, batches, FIXED)


def test_a_validation_set_smaller_than_a_batch(digits_root):
    cfg = small_config(digits_root)
    cfg.val_dataloader.update(batch_size=500, drop_last=True)
    (batch, ) = annotated_batches(cfg, 4)
    assert 0 < len(batch['inputs']) < 500


def test_boxes_fit_the_resized_picture(digits_root):
    cfg = small_config(digits_root)
    for step in cfg.val_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (192, 192)
    if not any(x.type == 'Resize' for x in cfg.val_dataloader.dataset.pipeline):
        cfg.val_dataloader.dataset.pipeline.insert(
            1, dict(type='Resize', scale=(192, 192), keep_ratio=True))

    def boxes(batches):
        sample = next(batches)['data_samples'][0]
        tensor = sample.gt_instances.bboxes
        return getattr(tensor, 'tensor', tensor), sample.scale_factor

    plain, factor = boxes(dataset_batches(cfg, 1))
    fitting, _ = boxes(annotated_batches(cfg, 1))
    assert factor[0] > 1
    assert torch.allclose(fitting, factor[0] * plain)


def test_the_criterion_of_a_config(digits_root):
    cfg = small_config(digits_root)
    assert criterion_of(cfg) == cfg.custom_hooks[0].criterion
    assert skip_mode_of(cfg) == 'layer'
    cfg.custom_hooks[0].skip = 'retrieval'
    assert skip_mode_of(cfg) == 'retrieval'
    cfg.custom_hooks = []
    assert criterion_of(cfg) is None


def test_pictures_of_several_sizes_share_a_batch(tmp_path):
    """Padded by mmpretrain's preprocessor, which its collate would not reach."""
    for name, size in (('a', (40, 52)), ('b', (48, 36))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / '0.png'), np.random.default_rng(
            0).integers(255, size=(*size, 3), dtype=np.uint8))
    cfg = Config.fromfile(ROOT / 'configs' / 'ela_resnet20_digits.py')
    cfg.model.head.num_classes = 2
    cfg.val_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path), with_label=True,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    (batch, ) = annotated_batches(cfg, 2, 2)
    found = ablate(model, [batch], FIXED)
    mean, std = cfg.data_preprocessor.mean[0], cfg.data_preprocessor.std[0]
    inputs = torch.zeros(2, 3, 48, 52)
    for i, picture in enumerate(batch['inputs']):
        inputs[i, :, :picture.shape[1], :picture.shape[2]] = (
            picture.float() - mean) / std
    with torch.no_grad():
        logits = model(inputs, mode='tensor')
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert found.top1 == 50 * float((logits.argmax(1) == torch.tensor(
        [0, 1])).sum())
