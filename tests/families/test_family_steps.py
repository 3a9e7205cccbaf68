"""Times of other families than ResNet: what is timed under which name."""
import csv
import re

import pytest
from support.running import tool

from ela_mm.errors import UsageError
from ela_mm.experiments import benchmark
from ela_mm.experiments.families import FAMILIES


def test_variants_are_what_they_are_called():
    names = (*benchmark.VARIANTS, *benchmark.COMPARED)
    offered = [v for v in names if benchmark.offers('cspnext-s', v)]
    active = {}
    for variant in offered:
        net = benchmark.build_backbone('cspnext-s', variant)
        active[variant] = sum(x.active for x in net.attention_layers)
        observed = any(x.observer is not None for x in net.attention_stages)
        assert observed == (variant == 'measuring')
    assert active == {
        'plain': 0, 'base': 6, 'measuring': 6, 'ELA 25%': 4, 'ELA 50%': 4,
        'ELA 80%': 4}  # four stages, whose first is never skipped
    for variant in set(names) - set(offered):
        with pytest.raises(UsageError, match=re.escape(repr(variant))):
            benchmark.build_backbone('cspnext-s', variant)


@pytest.mark.slow
def test_the_tool_times_every_family(tmp_path):
    process = tool('benchmark.py', '--networks', *FAMILIES, '--rounds', 1,
                   '--batch', 1, '--size', 224, '--no-peak', '--out', tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    with open(tmp_path / 'benchmark.csv') as file:
        rows = list(csv.DictReader(file))
    assert {row['network'] for row in rows} == set(FAMILIES)
    for row in rows:
        if row['variant'] == 'base':
            assert float(row['kept']) > 1
            layers = row['active'].split(' of ')
            assert layers[0] == layers[1]
