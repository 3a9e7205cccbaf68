"""Records and logs that somebody else wrote, or nobody: one sentence each."""
import copy
import json
import sys

import numpy as np
import pytest

from ela_mm.analysis.history import decided, read_run
from ela_mm.analysis.report.redundancy import (
    summarize,
    timeline_section,
    window_section,
)
from ela_mm.analysis.report.whatif import whatif_section
from ela_mm.analysis.whatif import Window, compare, recorded_window
from ela_mm.apis.launch import run
from ela_mm.engine.journal.record import FILE_NAME
from ela_mm.errors import UsageError


def layer(index, kl, mapped, status):
    return dict(
        name=f'layer1.{index}', stage=1, index=index, kl=kl,
        kl_std=None if kl is None else .1, bad_iterations=0,
        kl_iterations=[] if kl is None else [kl, .2, .4],
        mapped=mapped, status=status)


def record(**changes):
    """A whole one; ``changes`` are of its decision."""
    criterion = dict(type='EBQM', gamma=.75, alpha=2., beta=5., mu=.2)
    decision = dict(
        window=[1, 1], epoch=1, iter=3, samples=6, iterations=3,
        criterion=dict(criterion), skip='layer',
        layers=[layer(0, None, None, 'kept (first of its stage)'),
                layer(1, .1, 0., 'skipped'),
                layer(2, .6, .9, 'kept'),
                layer(3, 2., None, 'kept')],
        note=None, step_time_before=2., step_time_after=1.5,
        steps_timed=[3, 3])
    names = [x['name'] for x in decision['layers']]
    return dict(
        format=1, windows=[[1, 1]], by_epoch=True, criterion=criterion,
        skip='layer', layers=names, active=names[:1] + names[2:],
        decisions=[{**decision, **changes}])


def write(folder, content) -> str:
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    (folder / FILE_NAME).write_bytes(content)
    return str(folder)


def analyse(folder):
    """All that is said and drawn of a record without its network."""
    done = read_run(folder)
    sections = [timeline_section(done)]
    summarize(done)
    for decision in decided(done):
        window = recorded_window(decision, done.unit)
        sections.append(window_section(done, decision))
        if window.names:
            sections.append(whatif_section(window, compare(window, draws=3)))
    for section in sections:
        for picture in section.pictures:
            picture.figure.canvas.draw()
    return sections


def test_a_whole_one_is_analysed(tmp_path):
    assert len(analyse(write(tmp_path, record()))) == 3


def refuse(folder, text=''):
    with pytest.raises(UsageError, match=text) as error:
        read_run(folder)
    assert '\n' not in str(error.value) and FILE_NAME in str(error.value)


@pytest.mark.parametrize('content, text', [
    (b'\x80\x04\x95\xff\xfe', 'no JSON'),
    (b'', 'no JSON'),
    (b'[' * 10_000 + b']' * 10_000, 'no JSON'),
    (b'{"format": ' + b'[' * 10_000 + b']' * 10_000 + b'}', 'no JSON'),
    (b'{"format": 1' + b'0' * 5000 + b'}', 'no JSON'),
    (b'"text"', 'format None'),
    (dict(record(), format=2), 'format 2, .* reads 1: install the version'),
    (dict(record(), format='x' * 10_000), 'format .x{39}, '),
    (dict(format=1), "lacks 'by_epoch'"),
    (dict(record(), windows=[[1, 'x']]), 'entry 1 of entry 0 of windows'),
    (dict(record(), windows=[[1]]), 'entry 0 of windows of it has 1 entries'),
    (dict(record(), layers=[1]), 'entry 0 of layers of it is a int'),
    (record(layers=5), 'layers of a decision is a int'),
    (record(layers=[layer(1, float('nan'), 0., 'kept')]), 'kl of entry 0 of'),
    (record(layers=[layer(1, 1e999, 0., 'kept')]), 'kl of entry 0 of'),
    (record(layers=[layer(1, True, 0., 'kept')]), 'kl of .* is a bool'),
    (record(layers=[layer(1, 10**400, 0., 'kept')]), 'too large'),
    (record(layers=[dict(layer(1, .1, 0., 'kept'), kl_iterations=['x'])]),
     'kl_iterations'),
    (record(layers=[layer(1, .1, 0., 'gone')]), "'gone' is not a valid Outc"),
    (record(layers=[dict(layer(1, .1, 0., 'kept'), name='a\n\x1b[2J')]),
     'is called'),
    (record(samples='many'), 'samples of a decision is a str'),
    (record(steps_timed=[1]), 'steps_timed of a decision has 1 entries'),
    (record(criterion={}), "lacks 'type'"),
    (record(criterion=dict(type='threshold', t='x')), 'no record of decisions'),
    (record(criterion=dict(type='EBQM', gamma=7., alpha=2., beta=5., mu=.2)),
     'criterion EBQM'),
])
def test_what_is_wrong_is_said_in_one_line(tmp_path, content, text):
    refuse(write(tmp_path, content), text)


def paths(value, path=()):
    """Of everything in a record."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(
        value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, path + (key, ))


ODD = (None, 'x', '', -1, .5, 1e308, float('nan'), 10**30, [], {}, True, [[1]])


def test_any_other_value_anywhere_is_read_or_refused(tmp_path):
    refused = 0
    for path in list(paths(record()))[1:]:
        for value in ODD:
            changed = copy.deepcopy(record())
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            folder = write(tmp_path, changed)
            try:
                recorded_window(decided(read_run(folder))[0])
            except UsageError as error:
                refused += 1
                assert '\n' not in str(error)
    assert refused > 500


@pytest.mark.parametrize('changes', [
    dict(layers=[]),
    dict(layers=[dict(layer(1, .1, 0., 'skipped'), kl_std=None),
                 layer(2, .3, .5, 'kept')]),
    dict(layers=[dict(layer(1, -.1, 0., 'skipped'), kl_std=-.1),
                 layer(2, 1e14, .5, 'kept')]),
    # To a user's own criterion, the names of parameters mean what it likes.
    dict(criterion=dict(type='own', gamma=[1], mu='a', alpha={}, beta=None)),
    dict(criterion=dict(type='')),
    dict(criterion=dict(type='EBQM', gamma=.5)),
    dict(criterion=dict(type='threshold')),
    dict(criterion=dict(type='normal', alpha=2., beta=5., gamma=.8, mu=.17)),
    dict(samples=None, iterations=None, steps_timed=None, skip=None),
])
def test_what_passes_is_analysed(tmp_path, changes):
    analyse(write(tmp_path, record(**changes)))


def test_a_tool_ends_in_one_line(tmp_path):
    folder = write(tmp_path, b'\xff\xfe\0')
    with pytest.raises(SystemExit, match='^error: .*is no JSON.*$'):
        run(lambda: analyse(folder))


# --- logs --------------------------------------------------------------------


def test_of_a_log_what_can_be_read_counts(tmp_path):
    write(tmp_path, record())
    lines = [
        b'\x80\x04\xff\xfe', b'[' * 10_000, b'[1, 2]', b'"iter"', b'5', b'null',
        b'{"iter": "x", "epoch": 1, "time": 1.0}',
        b'{"iter": [1], "epoch": 1, "time": 1.0}',
        b'{"iter": 1, "epoch": {}, "time": 1.0}',
        b'{"iter": 2, "epoch": 1, "time": "soon"}',
        b'{"iter": 3, "epoch": 1, "time": NaN}',
        b'{"iter": 4, "epoch": 1, "time": 1e999}',
        b'{"iter": 5, "epoch": 1, "time": 3.0, "data_time": 1.0}',
        b'{"iter": 6, "epoch": 1, "time": 3.0, "data_time": []}',
        b'{"coco/bbox_mAP": 0.9}',
        b'{"coco/bbox_mAP": 0.9, "step": "x"}',
        b'{"coco/bbox_mAP": 0.9, "step": [1]}',
        b'{"coco/bbox_mAP": NaN, "step": 1}',
        b'{"coco/bbox_mAP": 0.5, "step": 2}',
    ]
    folder = tmp_path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_bytes(b'\n'.join(lines))
    found = read_run(str(tmp_path))
    assert found.step_times == [(1, 2.)]
    assert found.metric == 'coco/bbox_mAP'
    np.testing.assert_equal(found.metrics, [(1, np.nan), (2, .5)])
    analyse(str(tmp_path))


def test_a_record_does_not_say_what_to_import(tmp_path, monkeypatch):
    """mmengine imports what a dotted type names, and the criterion calls it."""
    (tmp_path / 'smuggled.py').write_text(
        'def run(kl):\n    raise SystemExit("called")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    window = Window('epoch 1', ['layer1.1', 'layer1.2'], np.array([.1, 3.]),
                    None, ['layer1.1', 'layer1.2'],
                    criterion=dict(type='smuggled.run'))
    own, *others = compare(window)
    assert 'smuggled' not in sys.modules
    assert 'register the criterion' in own.note and not own.skipped
    assert any(proposal.skipped for proposal in others)
