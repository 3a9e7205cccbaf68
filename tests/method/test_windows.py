"""Windows as people think of them: what they are in a training, or a sentence."""
import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ela_mm.engine.warm_up import end_of, rise_of
from ela_mm.errors import UsageError
from ela_mm.pruning.windows import Course, Windows, window_name


def resolved(windows, *course):
    found = Windows(windows)
    found.resolve(Course(*course))
    return found.spans


@pytest.mark.parametrize('windows, message', [
    (1, 'windows=1: expected a list of pairs'),
    (None, 'windows=None: expected a list'),
    ('after_warmup', "windows='after_warmup': expected a list"),
    ({1, 2}, 'expected a list of pairs'),
    ((1, 7), r'is a single pair: expected a list of them, windows=\[\(1, 7\)\]'),
    (('after_warmup', 1), r"single pair.*\[\('after_warmup', 1\)\]"),
    ([(1, 1.0)], r'\(1, 1.0\) mixes a count with a share'),
    ([(0, 0.1)], r'or two shares of the training, such as \(0.0, 0.1\)'),
    ([(1.0, 3.0)], r'\(1.0, 3.0\): expected two shares.*0.0 <= first < last <='
     ' 1.0; epochs and iterations are whole numbers'),
    ([(1.0, 1.0)], 'whole numbers, without a decimal point'),
    ([(float('nan'), .5)], r'\(nan, 0.5\): expected two shares'),
    ([(0, 1)], r'counting starts at 1; shares.*\(0.0, 0.1\)'),
    ([('warmup', 1)], r"\('warmup', 1\): expected.*\('after_warmup', 1\)"),
    ([('after_warmup', 0)], r"\('after_warmup', 0\): expected"),
    ([('after_warmup', 1.)], r"\('after_warmup', 1.0\): expected"),
    ([(True, 2)], r'\(True, 2\): expected a pair'),
    ([(1, '2')], r"\(1, '2'\): expected a pair"),
    ([dict(first='after_warmup', last=1)], r"window=\('after_warmup', 1\)"),
    ([dict(window=(1, 1), last=1)], 'expected the keys first and last, or wind'),
])
def test_what_is_no_window_is_said(windows, message):
    with pytest.raises(UsageError, match=message):
        Windows(windows)


@pytest.mark.parametrize('windows, course, message', [
    ([('after_warmup', 1)], (12, ), 'has no warm-up.*or a window like'),
    ([('after_warmup', 2)], (12, 11), r"\('after_warmup', 2\), epochs 12 to 13, "
     'lies past the last epoch of the training, 12'),
    ([(0., .04), (.04, .08)], (12, ), r'windows \(0.0, 0.04\), epoch 1, and '
     r'\(0.04, 0.08\), epoch 1, overlap'),
    ([(2, 3), (.1, .3)], (10, ), r'\(2, 3\) and \(0.1, 0.3\), epochs 2 to 3, '),
    ([('after_warmup', 3), (.5, .6)], (10, 4), 'epochs 5 to 7, and .*epoch 6, '),
    ([(4, 4)], (3, ), r'\(4, 4\) lies past the last epoch of the training, 3'),
])
def test_what_has_no_place_in_a_training_is_said(windows, course, message):
    with pytest.raises(UsageError, match=message):
        resolved(windows, *course)


def test_all_kinds_mixed_are_in_the_order_of_time():
    windows = Windows([(.5, .65), dict(window=('after_warmup', 1), criterion=7),
                       dict(first=1, last=1, criterion=8)])
    assert windows.spans == [] and windows.are_relative
    windows.resolve(Course(12, 2))
    assert windows.spans == [(1, 1), (3, 3), (7, 8)]
    assert [windows.criteria.get(windows.given_of(w)) for w in windows.spans
            ] == [8, 7, None]
    assert list(map(windows.name, windows.spans)) == [
        'epoch 1', "epoch 3 ('after_warmup', 1)", 'epochs 7 to 8 (0.5, 0.65)']
    assert window_name((2, 2), 'iteration') == 'iteration 2'


SHARES = st.fractions(0, 1, max_denominator=1000)


@given(SHARES, SHARES, st.integers(1, 5000))
def test_a_share_has_what_has_its_middle_in_it(a, b, length):
    assume(a < b)
    # No middle lies on a bound, where floats would decide.
    assume(all((2 * share * length) % 2 != 1 for share in (a, b)))
    ((first, last), ) = resolved([(float(a), float(b))], length)
    inside = [n for n in range(1, length + 1)
              if a * length < n - Fraction(1, 2) < b * length]
    assert 1 <= first <= last <= length
    if inside:
        assert (first, last) == (inside[0], inside[-1])
    else:
        assert first == last
        assert abs(first - Fraction(1, 2) - a * length) <= 1


@given(st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True),
       st.integers(40, 400))
def test_shares_that_meet_leave_nothing_out(cuts, length):
    cuts = [cut / 40 for cut in sorted(cuts)]
    spans = resolved(list(zip(cuts, cuts[1:])), length)
    assert all(b[0] == a[1] + 1 for a, b in zip(spans, spans[1:]))
    assert [*cuts][0] == 0. and spans[0][0] == 1 or cuts[0] > 0
    assert cuts[-1] < 1 or spans[-1][1] == length


def test_what_a_run_has_begun_stays():
    windows = Windows([(0., .3), (.5, 1.)])
    windows.resolve(Course(10))
    windows.begun = {(0., .3): (1, 3)}
    windows.resolve(Course(20))
    assert windows.spans == [(1, 3), (11, 20)]
    windows.begun = {(0., .3): (1, 11)}
    with pytest.raises(UsageError, match='epochs 1 to 11, and'):
        windows.resolve(Course(20))


@pytest.mark.parametrize('kind, options, rise', [
    ('LinearLR', dict(start_factor=.1, end=5), (0, 5)),
    ('LinearLR', dict(begin=2), (2, math.inf)),
    ('LinearLR', dict(start_factor=1., end_factor=.1, end=5), None),
    ('LinearLR', dict(param_name='momentum', end=5), None),
    ('LinearMomentum', dict(end=5), None),
    ('ConstantLR', dict(factor=.1, end=5), (0, 5)),
    ('ConstantLR', dict(factor=1, end=5), None),
    ('QuadraticWarmupLR', dict(end=5), (0, 5)),
    ('OneCycleLR', dict(total_steps=100), (0, 30)),
    ('OneCycleLR', dict(pct_start=.1, begin=10, end=60), (10, 15)),
    ('CosineAnnealingLR', dict(T_max=9), None),
])
def test_what_warms_up(kind, options, rise):
    assert rise_of(kind, options) == rise


@pytest.mark.parametrize('rises, over', [
    ([], None), ([(5, 9)], None), ([(0, 4)], 4), ([(4, 9), (0, 4)], 9),
    ([(0, 4), (5, 9)], 4), ([(0, 9), (0, 4)], 9)])
def test_a_warm_up_begins_with_the_training(rises, over):
    assert end_of(rises) == over
