"""NaN, which compares as nothing, is said and never ranked or passed over."""
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.toy import ToyClassifier
from torch import nn

from ela_mm.analysis.ablate import Ablated, Cost, Redundancy, ablate
from ela_mm.analysis.attention import measure
from ela_mm.analysis.compare import compare_runs
from ela_mm.analysis.features import look
from ela_mm.analysis.history import read_run
from ela_mm.analysis.report.ablate import ablation_section
from ela_mm.analysis.report.compare import (
    compare_sections,
    summarize_comparison,
)
from ela_mm.analysis.report.redundancy import summarize, timeline_picture
from ela_mm.analysis.similarity import compare_features
from ela_mm.apis.onnx import _difference
from ela_mm.errors import UsageError
from ela_mm.experiments.validity.cells import Measures
from ela_mm.experiments.validity.starts import _distance
from ela_mm.pruning.build import build_criterion

# --- networks ----------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ToyClassifier(dict(type='mmdet.ELAResNet', depth=18,
                              base_channels=16))


@pytest.fixture
def batches():
    return [dict(inputs=torch.randn(4, 3, 32, 32),
                 targets=torch.arange(4) % 2)]


@pytest.mark.parametrize('analyse', [
    measure, compare_features,
    lambda model, batches: ablate(model, batches, build_criterion()),
    lambda model, batches: look(model, batches[0], ['layer4.1']),
], ids=['attention', 'similarity', 'ablate', 'features'])
def test_a_network_that_has_diverged_is_not_looked_at(analyse, network,
                                                      batches):
    name = 'backbone.layer3.1.conv1.weight'
    with torch.no_grad():
        network.get_parameter(name)[0, 0, 0, 0] = math.inf
    with pytest.raises(UsageError, match=f'^{name} .* has diverged'):
        analyse(network, batches)


def test_a_loss_that_is_none_has_nothing_added_to_it(network, batches):
    batches[0]['inputs'][1] = math.nan
    with pytest.raises(UsageError, match='all active layers is nan'):
        ablate(network, batches, build_criterion())


def test_a_layer_without_which_the_loss_is_nan_has_no_rank():
    costs = dict(zip('abcdef', [.5, math.nan, .1, .4, .3, .2]))
    found = Ablated(
        8, 2, 1., None,
        {n: Cost((n, ), np.array([c, c]), c, .1, None)
         for n, c in costs.items()}, None, dict(type='EBQM'),
        {n: Redundancy(c, i, i, .5, i)
         for i, (n, c) in enumerate(zip(costs, [.1, .2, .3, .4, .5, .6]))})
    assert found.rank_correlation('kl') is None
    section = ablation_section(found, 'drawn')
    assert 'are finite' in ' '.join(section.text)
    assert 'Cheapest to skip: c, f, e; dearest: a, d, e.' in (
        section.pictures[0].alt)


def test_a_graph_that_gives_nan_is_said_to(monkeypatch):
    """Although another of its outputs differs by a number."""
    session = SimpleNamespace(run=lambda _, inputs: [
        inputs['images'] + np.float32(1e-6), inputs['images'] * np.nan])
    monkeypatch.setitem(sys.modules, 'onnxruntime', SimpleNamespace(
        InferenceSession=lambda *args, **kwargs: session))

    class Twice(nn.Module):

        def __init__(self):
            super().__init__()
            self.unused = nn.Conv2d(3, 1, 1)  # says how many channels

        def forward(self, x):
            return x, x

    with pytest.raises(UsageError, match='differs from PyTorch by nan'):
        _difference(Twice(), 'graph.onnx', 1, (4, 4))


def test_a_largest_kl_of_a_study_is_nan_where_one_is():
    measures = Measures()
    weights = torch.full((4, 1, 3), 1 / 3)
    measures.see('layer1.1', torch.full((4, 1, 2), .5), weights)
    measures.see('layer1.2', weights, torch.full((4, 1, 4), math.nan))
    assert math.isnan(_distance(None, measures)['largest_kl'])


# --- runs --------------------------------------------------------------------


def run_of(folder, losses, metrics):
    """What mmengine leaves of a run, a step and a validation an epoch."""
    place = folder / '20260101_000000' / 'vis_data'
    place.mkdir(parents=True)
    lines = []
    for epoch, (loss, metric) in enumerate(zip(losses, metrics), start=1):
        lines += [dict(epoch=epoch, iter=epoch, loss=loss, time=.1),
                  {'accuracy/top1': metric, 'step': epoch}]
    (place / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return str(folder)


NAN = math.nan


@pytest.fixture
def diverged(tmp_path):
    return run_of(tmp_path / 'diverged', [2., 1., NAN, math.inf],
                  [50., 60., NAN, NAN])


@pytest.fixture
def sound(tmp_path):
    return run_of(tmp_path / 'sound', [2., NAN, 1.], [40., 80., 70.])


def test_a_run_ends_as_its_log_does(diverged, sound):
    run = read_run(diverged, needs_record=False)
    np.testing.assert_equal(run.losses, [(1, 2.), (2, 1.), (3, NAN), (4, NAN)])
    np.testing.assert_equal(run.metrics, [(1, 50.), (2, 60.), (3, NAN),
                                          (4, NAN)])
    assert (run.best, run.diverged) == ((2, 60.), 3)
    run = read_run(sound, needs_record=False)  # a step that a scaler skips
    assert (run.best, run.diverged) == ((2, 80.), None)


def test_a_run_without_a_number_has_no_best(tmp_path):
    run = read_run(run_of(tmp_path, [NAN], [NAN]), needs_record=False)
    assert (run.best, run.diverged) == (None, 1)
    assert 'accuracy/top1 is nan in epoch 1.' in summarize(run)


def test_a_summary_says_that_a_run_has_diverged(diverged):
    run = read_run(diverged, needs_record=False)
    said = summarize(run)
    assert 'accuracy/top1 is nan in epoch 4 (highest: 60 in epoch 2).' in said
    assert ('The training has diverged: its loss is not finite from epoch 3 '
            'on.') in said
    assert 'nan in epoch 4' in timeline_picture(run).alt


def test_a_run_that_has_diverged_is_no_end_of_a_range(diverged, sound,
                                                      tmp_path):
    third = run_of(tmp_path / 'third', [2.], [30.])
    found = compare_runs([diverged, sound, third], count=False)
    said = summarize_comparison(found)
    assert said[0].startswith(
        'accuracy/top1 ends between 30 (third) and 70 (sound).')
    assert said[1:] == [
        'diverged has diverged: its loss is not finite from epoch 3 on.']
    (table, ) = compare_sections(found)[0].tables
    metric, best, loss = (table.header.index(x) for x in (
        'metric', 'best', 'loss'))
    assert [[row[x] for x in (metric, best, loss)] for row in table.rows] == [
        ['top1 nan', '60', 'nan'], ['top1 70', '80', '1'],
        ['top1 30', '30', '2']]
