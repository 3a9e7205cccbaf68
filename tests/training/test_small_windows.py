"""Windows of one step, stages of two layers: sentences, no crashes."""
import pytest
from support.toy import toy_runner
from support.training import log_of

from ela_mm.analysis.history import read_run
from ela_mm.analysis.report.redundancy import summarize, window_section
from ela_mm.analysis.report.whatif import whatif_section
from ela_mm.analysis.whatif import compare, recorded_window


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Of a ResNet-18, whose stages have two layers: one candidate each."""
    folder = tmp_path_factory.mktemp('small')
    toy_runner(
        folder, max_epochs=1, windows=[(1, 1), (2, 2), (4, 4)],
        hook=dict(by_epoch=False, picture=True, redundancy='conditional'),
        **{'model.backbone.depth': 18}).train()
    return read_run(str(folder)), folder


def test_a_second_layer_has_no_conditional_part(run):
    done, folder = run
    assert len(done.decisions) == 3
    for decision in done.decisions:
        assert not decision.skipped
        assert 'no stage has a third layer' in decision.note
        ranked = [x for x in decision.layers if x.kl is not None]
        assert [x.conditional for x in ranked] == [0.] * 4
        assert all(x.kl > 0 for x in ranked)
    assert 'nothing pruned on iteration 1: no stage' in log_of(folder)
    assert 'no picture of the redundancy' not in log_of(folder)


def test_a_window_of_one_step(run):
    done, _ = run
    for decision in done.decisions:
        assert (decision.steps, decision.samples) == (1, 2)
        assert all(x.kl_std == 0. for x in decision.layers if x.kl is not None)
        assert all(x.stability is None for x in decision.layers)
        window = recorded_window(decision, done.unit, 'paper')
        outcomes = compare(window)
        assert all(o.stability is None for o in outcomes)
        assert any(o.skipped for o in outcomes)
        said = ' '.join(whatif_section(window, outcomes).text)
        assert 'nothing is known of how stable' in said
        assert 'no stage has a third layer' in ' '.join(
            window_section(done, decision).text)
    assert 'Nothing was pruned' in ' '.join(summarize(done))
