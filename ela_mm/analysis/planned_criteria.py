"""Describes what the criteria of a training will do."""
from typing import Any, Dict, List, Mapping, Optional

from ..pruning.build import build_criterion
from ..pruning.criteria import CRITERIA
from ..pruning.kl import MEASURES, check_redundancy
from ..pruning.windows import Windows

# What happens in a window whose ranking says little; nothing under 'prune'.
_UNINFORMATIVE = dict(
    warn='where attention has learned nothing that ranks layers, a warning '
    'says so',
    wait='where attention has learned nothing that ranks layers, a window '
    'skips none')


def describe_criterion(config: Dict[str, Any],
                       redundancy: str = 'paper') -> str:
    """Say in words what a criterion skips.

    Args:
        config (Dict[str, Any]): ``type`` and all parameters of the criterion.
        redundancy (str): Measure that it ranks by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.

    Returns:
        str: A sentence without a full stop.
    """
    kind, own = config['type'], {**config}
    own.pop('type')
    measure = MEASURES[redundancy]
    if kind == 'EBQM':
        return (f'EBQM: of the prunable layers, those whose {measure} is '
                f'up to the {own["gamma"]:g}-quantile are in reach; stretched '
                f'to 0 to 1 and mapped by Beta({own["alpha"]:g}, '
                f'{own["beta"]:g}), a layer is skipped below mu = '
                f'{own["mu"]:g}')
    if kind == 'fixed':
        return (f'fixed: the {own["n"]} layer{"s" * (own["n"] != 1)} of smallest '
                f'{measure}')
    if kind == 'threshold':
        return f'threshold: layers whose {measure} is below {own["t"]:g} nats'
    if kind == 'ablation':
        limits = [f'until there are {own["n"]}'] * (own['n'] is not None)
        if own['budget'] is not None:
            limits.append('as long as together they add no more than '
                          f'{own["budget"]:g}')
        return ('ablation: the layers without which the loss rises least, on '
                f'{own["images"]} pictures held out of the training set, '
                f'{" and ".join(limits)}')
    parameters = ', '.join(f'{k} = {v}' for k, v in own.items())
    by = '' if redundancy == 'paper' else f', by the {measure}'
    return f'{kind}' + (f' with {parameters}' if parameters else '') + by


def criteria_in_words(hook: Optional[Mapping[str, Any]],
                      prunable: int) -> List[str]:
    """Describe the criteria of all windows of a training.

    Args:
        hook (Mapping, optional): Config of its ELAPruneHook, if any.
        prunable (int): Number of layers that the first window can skip.

    Returns:
        List[str]: Sentences without full stops, on the criterion of the run
        and on those of single windows.

    Raises:
        UsageError: On a config that the hook would refuse.
    """
    if hook is None:
        return []
    config = build_criterion(hook.get('criterion')).config
    windows = Windows(hook.get('windows'), hook.get('by_epoch', True))
    own = {given: build_criterion(x).config
           for given, x in windows.criteria.items()}
    redundancy = check_redundancy(hook.get('redundancy', 'paper'))
    said = []
    if len(own) < len(windows.given):
        said.append(describe_criterion(config, redundancy))
    said += [f'{given} has its own: {describe_criterion(x, redundancy)}'
             for given, x in own.items()]
    first = own.get(windows.given[0], config)
    said[-1] += (f'; at most {most_of(first, prunable)} of {prunable} '
                 'prunable layers in the first window')
    return said


def rules_in_words(hook: Optional[Mapping[str, Any]]) -> List[str]:
    """Say when a criterion is not followed, and how layers are skipped.

    Args:
        hook (Mapping, optional): Config of the ELAPruneHook, if any.

    Returns:
        List[str]: Sentences without full stops.
    """
    if hook is None:
        return []
    rule = _UNINFORMATIVE.get(hook.get('uninformative', 'warn'))
    said = [rule] if rule and not _asks_network(hook) else []
    share = hook.get('min_stability')
    if isinstance(share, (int, float)) and share:
        said.append(f'a layer goes only if at least {share:.0%} of resampled '
                    'windows skip it')
    if hook.get('skip') == 'retrieval':
        said.append('later layers still see a skipped one')
    return said


def _asks_network(hook: Mapping[str, Any]) -> bool:
    """Return whether no window is decided by attention weights."""
    configs = [window.get('criterion') if isinstance(window, Mapping) else None
               for window in hook.get('windows') or [{}]]
    return all(build_criterion(own or hook.get('criterion')).asks_network
               for own in configs)


def most_of(config: Dict[str, Any], prunable: int) -> int:
    """Compute the largest number of layers a criterion can skip in a window.

    Args:
        config (Dict[str, Any]): ``type`` and all parameters of the criterion.
        prunable (int): Number of candidates.

    Returns:
        int: The number. 0 with fewer than two candidates, which cannot be
        ranked, except for ``'ablation'``, which measures on the network.
    """
    if prunable < (1 if config['type'] == 'ablation' else 2):
        return 0
    if config['type'] in ('fixed', 'ablation') and config['n'] is not None:
        return min(prunable, int(config['n']))
    if config['type'] not in CRITERIA or 'gamma' not in config:
        return prunable
    reach = int((prunable - 1) * config['gamma'] + 1e-9) + 1
    # EBQM maps the largest value in reach to 1, so that layer stays.
    return reach - 1 if config['type'] == 'EBQM' else reach
