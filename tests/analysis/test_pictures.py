"""What pictures and pages show, read back from them."""
import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy import stats
from support.page import Page
from support.toy import toy_runner
from support.training import tensorboard_of

from ela_mm.analysis.attention import AttentionRow, Measured
from ela_mm.analysis.cost import Cost, LayerCost, StageCost
from ela_mm.analysis.features import Features, LayerFeatures
from ela_mm.analysis.history import Run
from ela_mm.analysis.report.attention import attention_pictures
from ela_mm.analysis.report.cost import cost_picture
from ela_mm.analysis.report.features import features_picture
from ela_mm.analysis.report.page import Section, Table, render
from ela_mm.analysis.report.redundancy import timeline_picture
from ela_mm.analysis.report.whatif import counts_picture, stability_picture
from ela_mm.analysis.whatif import Stability, Window
from ela_mm.engine.journal import picture as journal_picture
from ela_mm.engine.journal.picture import decision_picture
from ela_mm.engine.journal.record import decision_from_json, read_record
from ela_mm.models.backbones.stages import AttentionLayerInfo
from ela_mm.plotting import KEPT, SKIPPED, save, to_array, to_png, to_svg

EBQM = dict(type='EBQM', gamma=.75, alpha=2., beta=5., mu=.2)


def layer(name, kl, mapped, status):
    return dict(name=name, stage=int(name[5]), index=int(name[-1]), kl=kl,
                kl_std=None if kl is None else .1 * kl, mapped=mapped,
                status=status)


DECISION = dict(
    window=[1, 2], epoch=2, iter=8, samples=64, criterion=EBQM,
    layers=[
        layer('layer1.0', None, None, 'kept (first of its stage)'),
        layer('layer1.1', .1, 0., 'skipped'),
        layer('layer1.2', .6, float(stats.beta(2, 5).cdf(.5)), 'kept'),
        layer('layer2.1', 1.1, 1., 'kept'),
        layer('layer2.2', 7., None, 'kept'),
    ],
    skipped=['layer1.1'], active=4, total=5, note=None,
    step_time_before=2., step_time_after=1.5)


def decision(**changes):
    return decision_from_json({**DECISION, **changes})


def points(axes, colour, marker):
    """Where markers of a colour are, as (x, y)."""
    return sorted(
        (float(x), float(y)) for line in axes.lines
        if line.get_marker() == marker and to_hex(line.get_color()) == to_hex(
            colour)
        for x, y in zip(*line.get_data()))


def test_a_decision_shows_every_layers_kl_and_fate():
    picture = decision_picture(decision())
    above, below = picture.figure.axes
    assert points(above, SKIPPED, 'X') == [(.1, 1.)]
    assert points(above, KEPT, 'o') == [(.6, 2.), (1.1, 3.), (7., 4.)]
    mapped = {x['kl']: x['mapped'] for x in DECISION['layers']}
    assert points(below, SKIPPED, 'X') == [(.1, 0.)]
    assert points(below, KEPT, 'o') == [(.6, mapped[.6]), (1.1, 1.)]
    lines = {line.get_label(): line for line in above.lines + below.lines}
    quantile = np.quantile([.1, .6, 1.1, 7.], .75)
    assert lines['quantile γ = 0.75'].get_xdata()[0] == pytest.approx(quantile)
    assert lines['μ = 0.2'].get_ydata()[0] == .2
    x, y = lines['Beta(2, 5)'].get_data()
    assert np.interp(.6, x, y) == pytest.approx(mapped[.6], abs=1e-3)
    text = [t.get_text() for t in above.texts]
    assert 'kept (first of its stage)' in text
    assert 'layer1.1 0.1 (skipped)' in picture.alt
    assert 'Skipped: layer1.1.' in picture.alt


def test_a_threshold_shows_itself_and_no_curve():
    picture = decision_picture(
        decision(criterion=dict(type='threshold', t=.3)))
    (axes, ) = picture.figure.axes
    assert any(line.get_label() == 't = 0.3' for line in axes.lines)


def test_a_window_without_measurements_is_drawn():
    layers = [layer('layer1.0', None, None, 'kept (first of its stage)'),
              layer('layer1.1', None, None, 'kept (not measured)')]
    picture = decision_picture(decision(
        layers=layers, note='no iteration was measured in this window'))
    assert 'no KL divergence was measured' in picture.alt
    to_png(picture.figure)


def test_equal_and_zero_divergences_are_drawn():
    layers = [layer(f'layer1.{i}', 0., None, 'kept') for i in range(3)]
    to_png(decision_picture(decision(layers=layers)).figure)


def run_of(**kwargs):
    record = dict(layers=['a'] * 5, active=['a'] * 4, decisions=[DECISION],
                  windows=[[1, 2]], by_epoch=True)
    values = dict(work_dir='w', record=record, config=None, checkpoint=None,
                  unit='epoch', step_times=[(1, 2.), (2, 2.), (3, 1.5)],
                  metric='coco/bbox_mAP', metrics=[(2, .1), (4, .3)])
    return Run(**{**values, **kwargs})


def test_the_timeline_shows_price_and_gain():
    picture = timeline_picture(run_of())
    active, step, metric = picture.figure.axes
    assert list(active.lines[0].get_ydata()) == [5, 4, 4]
    assert list(active.lines[0].get_xdata()) == [0, 2, 4]
    assert list(step.lines[0].get_ydata()) == [2., 2., 1.5]
    assert list(metric.lines[0].get_ydata()) == [.1, .3]
    for axes in (active, step, metric):  # where a pruning was
        assert [x.get_xdata()[0] for x in axes.lines[1:]] == [2]
    assert '5 from epoch 0, 4 from epoch 2' in picture.alt
    (alone, ) = timeline_picture(
        run_of(step_times=[], metric=None, metrics=[])).figure.axes
    assert alone.get_title(loc='left') == 'active layers'


def test_half_of_the_steps_lie_in_the_band():
    quartiles = [(1, 1.8, 2.3), (2, 1.9, 2.1), (3, 1.4, 1.6)]
    _, step, _ = timeline_picture(run_of(step_quartiles=quartiles)).figure.axes
    (band, ) = step.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(x, y) for x, *between in quartiles for y in between} <= corners
    assert step.get_ylim() == (0., pytest.approx(1.15 * 2.3))
    _, step, _ = timeline_picture(run_of()).figure.axes  # an older record
    assert not step.collections


def measured():
    layers = [AttentionLayerInfo(f'layer1.{i}', 1, i, i != 1)
              for i in range(3)]
    rows = [AttentionRow('layer1.0', 1, ['layer1.0'], np.array([1.]),
                         np.array([0.])),
            AttentionRow('layer1.2', 1, ['layer1.0', 'layer1.2'],
                         np.array([.3, .7]), np.array([.05, .06]))]
    return Measured(4, layers, rows, {})


def test_heat_maps_hold_the_weights_and_leave_skipped_rows_out():
    (picture, ) = attention_pictures(measured())
    mean, spread = (axes.images[0].get_array() for axes in
                    picture.figure.axes[:2])
    expected = np.full((3, 3), np.nan)
    expected[0, 0], expected[2, [0, 2]] = 1., [.3, .7]
    np.testing.assert_array_equal(np.ma.filled(mean, np.nan), expected)
    expected[0, 0], expected[2, [0, 2]] = 0., [.05, .06]
    np.testing.assert_array_equal(np.ma.filled(spread, np.nan), expected)
    texts = [t.get_text() for t in picture.figure.axes[0].texts]
    assert 'skipped' in texts and '0.70' in texts
    assert 'layer1.2 attends most to layer1.2 (0.70)' in picture.alt
    assert 'Skipped: layer1.1' in picture.alt


WINDOW = Window('epoch 1', ['a', 'b', 'c', 'd'], np.array([.1, .2, .5, 4.]),
                None, ['a', 'b', 'c', 'd'], ['a'], EBQM)


def test_the_runs_own_setting_is_framed():
    picture = counts_picture(WINDOW)
    first, second = picture.figure.axes
    assert len(first.patches) == 2 and not second.patches
    columns = [t.get_text() for t in first.get_xticklabels()]
    rows = [t.get_text() for t in first.get_yticklabels()]
    frame = first.patches[0]
    assert columns[round(frame.get_x() + .5)] == '0.2'
    assert rows[round(frame.get_y() + .5)] == '0.75'
    other = counts_picture(
        WINDOW._replace(criterion=dict(EBQM, alpha=3., gamma=.7)))
    assert len(other.figure.axes) == 3  # its shapes are none of the paper's
    assert len(other.figure.axes[2].patches) == 2


def test_stability_is_drawn_per_layer():
    shares = dict(a=1., b=.8, c=0., d=0.)
    picture = stability_picture(WINDOW, Stability(.8, shares))
    (axes, ) = picture.figure.axes
    bars = list(axes.patches)
    assert bars[1].get_width() == .8 and bars[1].get_hatch()
    assert not bars[0].get_hatch()
    assert '80%' in axes.get_title(loc='left')
    assert 'b 80%' in picture.alt
    assert stability_picture(WINDOW, None) is None


def test_cost_is_drawn_per_stage_and_layer():
    cost = Cost('here', 10, 2, 100, 90, [
        StageCost('layer1', 5, 3, 50, 20, 10, .1, .15, .12, .001)
    ], [LayerCost('layer1.0', True, 2, 5, .02),
        LayerCost('layer1.1', False, 2, 5, .03)])
    picture = cost_picture(cost)
    above, below = picture.figure.axes
    widths = [p.get_width() for p in above.patches[:4]]
    assert widths == pytest.approx([100, 50, 100, 20])
    assert [p.get_width() for p in below.patches[:2]] == [20, 30]
    assert below.patches[1].get_hatch() and not below.patches[0].get_hatch()
    assert '150.0 with all layers, 120.0 as pruned' in picture.alt


def test_features_stand_over_their_divergence():
    image = np.zeros((8, 8, 3))
    cam = np.random.default_rng(0).random((8, 8))
    pruned = [LayerFeatures('layer3.0', True, None, cam),
              LayerFeatures('layer3.1', False, None, cam)]
    whole = [LayerFeatures('layer3.0', True, None, cam),
             LayerFeatures('layer3.1', True, .25, 1 - cam)]
    picture = features_picture(Features(image, 'class 3', pruned, whole))
    labels = [axes.get_xlabel() for axes in picture.figure.axes]
    assert labels == ['as pruned', 'first', 'skipped', 'all layers put back',
                      'first', 'KL 0.25']
    assert 'class 3' in picture.figure._suptitle.get_text()
    assert 'correlate by -1.00 to 1.00' in picture.alt


# --- how they leave ----------------------------------------------------------


def test_pictures_are_the_same_every_time_and_touch_no_settings(tmp_path):
    own = {'font.size': 13., 'svg.fonttype': 'none', 'axes.spines.top': True}
    plt.rcParams.update(own)  # a user's, which no earlier test has touched
    before = dict(plt.rcParams)
    figures = plt.get_fignums()
    first, second = (to_svg(decision_picture(decision()).figure)
                     for _ in range(2))
    assert first == second
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == figures
    array = to_array(decision_picture(decision()).figure)
    assert array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    plt.rcdefaults()
    path = save(decision_picture(decision()), str(tmp_path / 'new'))
    assert plt.imread(path).shape[2] in (3, 4)


def test_a_page_needs_nothing_else():
    picture = decision_picture(decision())
    text = render('A <title>', ['said & done'], [
        Section('One: part', ['a < b'],
                [Table('cells', ['x'], [['<i>']])], [picture]),
        Section('Two')], ['made by hand'])
    page = Page(text)
    assert 'A &lt;title&gt;' in text and '<i>' not in text
    assert 'said &amp; done' in text
    (image, ) = page.images
    assert image['alt'] == picture.alt
    kind, data = re.fullmatch('data:image/(.+);base64,(.+)',
                              image['src']).groups()
    assert kind == 'svg+xml' and b'<svg' in base64.b64decode(data)
    for link in page.links:  # its own parts alone
        assert link.startswith(('data:', '#'))
    assert {x[1:] for x in page.links if x.startswith('#')} <= page.ids
    assert not {'script', 'link', 'iframe'} & set(page.tags)
    assert '@media print' in text and 'name="viewport"' in text


# --- while training ----------------------------------------------------------


def test_each_pruning_sends_its_picture(tmp_path):
    toy_runner(tmp_path, max_epochs=2, windows=[(1, 1), (2, 2)],
               hook=dict(picture=True)).train()
    found = sorted(p.name for p in tmp_path.glob('**/vis_image/*'))
    iters = [d['iter'] for d in read_record(tmp_path)['decisions']]
    assert found == [f'ela_redundancy_{n}.png' for n in iters]
    drawn = plt.imread(next(tmp_path.glob('**/vis_image/*')))
    assert drawn.std() > .05  # not blank


def test_no_picture_by_one_option(tmp_path):
    toy_runner(tmp_path, max_epochs=1, hook=dict(picture=False)).train()
    assert not list(tmp_path.glob('**/vis_image/*'))


def test_a_picture_that_fails_does_not_end_the_training(tmp_path, monkeypatch,
                                                        caplog):
    monkeypatch.setattr(journal_picture, '_kl_panel', None)
    runner = toy_runner(tmp_path, max_epochs=1, hook=dict(picture=True))
    runner.train()
    (log, ) = tmp_path.glob('**/*.log')
    assert 'no picture of the redundancy: TypeError' in log.read_text()
    assert runner.epoch == 1


def test_the_picture_reaches_tensorboard(tmp_path):
    reader = tensorboard_of(tmp_path, picture=True)
    (image, ) = reader.Images('ela_redundancy')
    assert image.step == 4 and image.width > 300
