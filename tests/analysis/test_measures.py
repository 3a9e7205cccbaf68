"""Rankings by another measure than KL: what pictures, tables and whatif say."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.toy import ToyClassifier, ToyDataset

from ela_mm.analysis.attention import measure
from ela_mm.analysis.history import read_run
from ela_mm.analysis.report.redundancy import summarize, window_section
from ela_mm.analysis.report.whatif import counts_picture, whatif_section
from ela_mm.analysis.whatif import (
    compare,
    measured_window,
    outcome,
    recorded_window,
)
from ela_mm.engine.journal.picture import decision_picture
from ela_mm.engine.journal.record import decision_to_json, write_record
from ela_mm.errors import UsageError
from ela_mm.models.backbones.stages import AttentionLayerInfo
from ela_mm.pruning import LayerKL, decide
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.decision import Moment
from ela_mm.pruning.trust import Rules

NAMES = [f'layer1.{i}' for i in range(6)]
LAYERS = [AttentionLayerInfo(name, 1, i, True, i + 1, 'layer1')
          for i, name in enumerate(NAMES)]
UNIFORM = [np.log((i + 1) / i) for i in range(1, 6)]
# By KL 1.5 is the smallest, by its excess 1.1, by its first part 1.3.
KL = [.30, .45, .40, .50, .25]
FIRST = [.0, .35, .01, .2, .05]
FIXED = dict(type='fixed', n=1)


def measured(kl=KL):
    noise = np.random.default_rng(0).normal(0, .01, (40, 5))
    noise -= noise.mean(0)
    return {
        name: LayerKL(
            kl[i], .01, 80, 40, 0, (kl[i] + noise[:, i]).tolist(), [2] * 40,
            40, UNIFORM[i], FIRST[i], .01, (FIRST[i] + noise[:, i]).tolist())
        for i, name in enumerate(NAMES[1:])
    }


def decided(redundancy='paper', config=FIXED, rules=None, **kwargs):
    criterion = build_criterion(config)
    return decide(LAYERS, measured(**kwargs), criterion, criterion.config,
                  Moment((1, 1), 1, 40), redundancy=redundancy, rules=rules)


def run_of(folder, *decisions):
    write_record(
        dict(format=1, windows=[[1, 1]], by_epoch=True,
             criterion=decisions[0].criterion, skip='layer', layers=NAMES,
             active=NAMES[1:], decisions=list(map(decision_to_json, decisions))),
        str(folder))
    return read_run(str(folder))


@pytest.mark.parametrize('redundancy, values', [
    ('paper', KL), ('excess', np.subtract(KL, UNIFORM)),
    ('conditional', FIRST)])
def test_a_record_is_ranked_by_another_measure(redundancy, values):
    window = recorded_window(decided(), redundancy=redundancy)
    np.testing.assert_allclose(window.kl, values, atol=1e-6)
    np.testing.assert_allclose(window.series.mean(0), values, atol=1e-5)
    assert window.as_decided == (redundancy == 'paper')
    smallest = NAMES[1:][int(np.argmin(values))]
    assert outcome(window, FIXED).skipped == [smallest]
    # That of the run comes first; it did not rank so, unless by KL.
    first = compare(window, draws=9)[0]
    assert (first.label == 'this run') == window.as_decided
    assert first.skipped == [smallest]
    assert recorded_window(decided(redundancy)).as_decided
    np.testing.assert_allclose(recorded_window(decided(redundancy)).kl, values)


@pytest.mark.parametrize('rules, kl, config, went, why', [
    (Rules('wait'), UNIFORM, FIXED, [], "uninformative='wait'"),
    # The two smallest are alike: either goes in some resampled windows.
    (Rules(min_stability=.9), [.3, .3005, .1, .5, .6], dict(type='fixed', n=2),
     ['layer1.3'], 'min_stability')])
def test_what_the_run_did_is_not_what_its_criterion_says_alone(
        rules, kl, config, went, why):
    decision = decided(config=config, rules=rules, kl=kl)
    assert decision.skipped == went
    window = recorded_window(decision)
    outcomes = compare(window, draws=9)
    assert outcomes[0].label == "this run's criterion"
    assert len(outcomes[0].skipped) == config['n'] > len(went)
    said = [x for x in whatif_section(window, outcomes).text
            if 'is the criterion alone' in x]
    assert len(said) == 1 and why in said[0]
    assert f'skipped {"1.3" if went else "nothing"}: ' in said[0]
    plain = recorded_window(decided(config=config))
    assert compare(plain, draws=9)[0].label == 'this run'
    assert 'criterion alone' not in ' '.join(
        whatif_section(plain, compare(plain, draws=9)).text)
    ebqm = recorded_window(decided(
        config=dict(type='EBQM', mu=.9), rules=Rules('wait'), kl=UNIFORM))
    alone = outcome(ebqm, ebqm.criterion).skipped
    assert alone and (f'this run (framed) skips {len(alone)} by its criterion '
                      'alone') in counts_picture(ebqm).alt


def test_measures_without_training():
    model = ToyClassifier(
        dict(type='mmdet.ELAResNet', depth=34, base_channels=16))
    batches = [dict(inputs=x) for x in ToyDataset().images.split(4)]
    kl = measure(model, batches).kl
    for redundancy, one in (
            ('excess', lambda x: x.mean - np.log(2)),
            ('conditional', lambda x: 0.)):  # the first alone sees itself
        window = measured_window(kl, list(kl), '8 pictures', redundancy)
        at = window.names.index('layer2.1')
        assert window.kl[at] == pytest.approx(one(kl['layer2.1']), abs=1e-5)
        assert window.redundancy == redundancy


def test_a_record_without_the_measure_says_so():
    entry = decided()
    for layer in entry.layers:
        layer.excess = layer.conditional = None
    assert len(recorded_window(entry).names) == 5
    for redundancy in ('excess', 'conditional'):
        with pytest.raises(UsageError, match=f"'{redundancy}' is not recorded"):
            recorded_window(entry, redundancy=redundancy)
    with pytest.raises(UsageError, match="redundancy='kl'"):
        recorded_window(entry, redundancy='kl')


def test_what_is_said_names_the_measure(tmp_path):
    run = run_of(tmp_path, decided('excess'))
    section = window_section(run, run.decisions[0])
    said = ' '.join(section.text)
    assert 'ranked by the excess of the KL divergence' in said
    rows = {row[0]: row for row in section.tables[0].rows}
    assert rows['layer1.2'][1:5] == ['0.45', '0.01', '0.04453', '0.35']
    assert 'found the excess of the KL' in ' '.join(summarize(run))
    window = recorded_window(run.decisions[0])
    assert 'From the excess of the KL' in whatif_section(
        window, compare(window, draws=9)).text[0]
    paper = window_section(run, decided())
    assert 'ranked by' not in ' '.join(paper.text)


def test_a_frame_is_the_runs_own_alone():
    config = dict(type='EBQM')
    own = recorded_window(decided(config=config))
    other = recorded_window(decided(config=config), redundancy='excess')
    assert 'this run (framed)' in counts_picture(own).alt
    assert 'this run (framed)' not in counts_picture(other).alt


@pytest.mark.parametrize('redundancy, scale', [
    ('paper', 'log'), ('excess', 'linear'), ('conditional', 'log')])
def test_the_picture_draws_the_measure(redundancy, scale):
    decision = decided(redundancy, dict(type='EBQM'))
    picture = decision_picture(decision)
    axes, mapped = picture.figure.axes
    assert axes.get_xscale() == scale
    values = dict(zip(NAMES[1:], {
        'paper': KL, 'excess': np.subtract(KL, UNIFORM),
        'conditional': FIRST}[redundancy]))
    assert f'layer1.2 {values["layer1.2"]:.3g}' in picture.alt
    drawn = sorted(line.get_xdata()[0] for line in axes.lines
                   if len(line.get_xdata()) == 1
                   and line.get_marker() in ('o', 'X'))
    floor = 1e-4 if scale == 'log' else -np.inf
    assert drawn == pytest.approx(
        sorted(max(x, floor) for x in values.values()))
    assert redundancy == 'paper' or redundancy in axes.get_xlabel()


def test_a_summary_says_what_attention_costs_and_why_layers_went(tmp_path):
    decision = replace(decided(), as_drawn=True)
    run = run_of(tmp_path, decision)
    cost = SimpleNamespace(stages=[SimpleNamespace(seconds=2.)] * 2,
                           seconds_before=5., seconds_after=4.4)
    said = ' '.join(summarize(run, cost))
    assert ('with all attention layers takes 1.25 times as long as one without '
            'attention; as pruned, it takes 1.10 times as long.') in said
    # The section of the window says as much and no more.
    window = ' '.join(window_section(run, run.decisions[0]).text)
    assert 'random first weights' in said and 'random first weights' in window
    assert 'position' not in said and 'position' not in window


def test_a_saturated_window_is_no_decision_on_redundancy(tmp_path):
    run = run_of(tmp_path, decided(kl=[18.4, 18.41, 18.39, 18.4, 18.4]))
    assert 'ceiling of 18.4' in ' '.join(
        window_section(run, run.decisions[0]).text)
    assert 'was saturated' in ' '.join(summarize(run))
    equal = decided(kl=[18.42] * 5, config=dict(type='EBQM'))
    assert equal.saturated and not equal.skipped
    assert 'layer1.3 18.4' in decision_picture(equal).alt
    assert counts_picture(recorded_window(equal)).alt


# --- a criterion that asks the network ---------------------------------------


class Network:
    candidates = NAMES[1:]

    def added_loss(self, names):
        return .1 * len(names) if 'layer1.2' not in names else 5.


def test_a_record_cannot_answer_for_the_network(tmp_path):
    criterion = build_criterion(dict(type='ablation', n=2))
    decision = decide(LAYERS, measured(), criterion, criterion.config,
                      Moment((1, 1), 1, 40), network=Network())
    assert decision.skipped == ['layer1.1', 'layer1.3']
    run = run_of(tmp_path, decision)
    window = recorded_window(run.decisions[0])
    outcomes = compare(window, more=[dict(type='ablation', n=1)], draws=9)
    own, other = outcomes[0], outcomes[-1]
    assert own.skipped == decision.skipped and 'skipped 1.1, 1.3' in own.note
    assert not other.skipped and 'asks the network' in other.note
    assert own.stability is other.stability is None
    # The others can be compared, on the weights that were measured.
    ebqm = next(o for o in outcomes if o.label.endswith('COCO'))
    assert ebqm.note is None and ebqm.stability is not None
    section = whatif_section(window, outcomes)
    assert 'cannot be decided anew' in ' '.join(section.text)
    assert 'asked the network' in ' '.join(
        window_section(run, run.decisions[0]).text)
    assert 'did best without them' in ' '.join(summarize(run))
    assert not decision.by_position and decision.layers[2].mapped == 5.


def test_near_uniform_weights_are_no_excuse_for_the_network():
    criterion = build_criterion(dict(type='ablation', n=1))
    decision = decide(LAYERS, measured(kl=UNIFORM), criterion, criterion.config,
                      Moment((1, 1), 1, 40), network=Network(),
                      rules=Rules(uninformative='wait'))
    assert decision.skipped == ['layer1.1'] and not decision.by_position
