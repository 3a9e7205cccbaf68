"""Puts into words why a ranking says little of what attention has learned."""
from typing import List, Optional

from .decision import Decision, LayerDecision
from .kl import CEILING
from .trust import RANKED, is_near, most, noise_of, rank_by_position

_SATURATED = ('attention is saturated: most KL divergences are 0 or at their '
              f'ceiling of {CEILING:.1f}, since a single layer has all of the '
              'weight, so this ranking says little of what is redundant')
_AS_DRAWN = ('attention is still as it was drawn: most KL divergences are those '
             "of the run's first step, so this ranking is that of random first "
             'weights')


def doubt_of(decision: Decision) -> Optional[str]:
    """Say why a decision's ranking says little of what attention has learned.

    Args:
        decision (Decision): Decision just taken, or read from a record.

    Returns:
        str | None: A sentence without its full stop; None if nothing speaks
        against the ranking.
    """
    if decision.saturated:
        return _SATURATED
    ranking = _ranking(decision) if decision.redundancy == 'paper' else ''
    if decision.as_drawn:
        return _AS_DRAWN + (f' and of position{ranking}' if ranking else '')
    if not decision.by_position:
        return None
    if decision.redundancy != 'paper':
        return ('attention is still near uniform: this ranking is of what is '
                'close to 0 everywhere')
    if not ranking:
        return ('attention is still near uniform in most layers: these rank by '
                'position in the stage')
    near = 'attention is still near uniform: ' * _is_near_uniform(decision)
    return f'{near}this ranking is by position in the stage{ranking}'


def _measured(decision: Decision) -> List[LayerDecision]:
    """Select the layers that have a KL divergence and an excess."""
    return [x for x in decision.layers
            if x.kl is not None and x.excess is not None]


def _ranking(decision: Decision) -> str:
    layers = _measured(decision)
    rank = rank_by_position([x.kl for x in layers],
                            [x.kl - x.excess for x in layers])
    return '' if rank is None or rank < RANKED else (
        f' (rank correlation with uniform weights {rank:.2f})')


def _is_near_uniform(decision: Decision) -> bool:
    return most(is_near(x.kl, noise_of(x.kl_std or 0., x.kl_iterations),
                        x.kl - x.excess)
                for x in _measured(decision))
