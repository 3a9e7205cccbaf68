"""What a run says of its windows and of the layers that it skips."""
from typing import Dict, List, Optional, Sequence

from mmengine.runner import BaseLoop, IterBasedTrainLoop

from ...pruning.decision import Decision, Outcome
from ...pruning.windows import Window, Windows, window_name

# Why a layer was out before the window, in the order of saying.
_BEFORE = ('in earlier windows', 'by hand', 'in frozen stages',
           'when the training began')


def gone_before(decision: Decision, earlier: Sequence[str],
                by_hand: Sequence[str], frozen: Sequence[str]
                ) -> Dict[str, int]:
    """Count the layers that were skipped when a window began, by reason.

    Args:
        decision (Decision): Of the window.
        earlier (Sequence[str]): Names that earlier decisions of the run have
            skipped.
        by_hand (Sequence[str]): Names that were skipped in a checkpoint.
        frozen (Sequence[str]): Names of layers in frozen stages.

    Returns:
        Dict[str, int]: Reasons that occur, in words, and their numbers.
    """
    counts = dict.fromkeys(_BEFORE, 0)
    for layer in decision.layers:
        if layer.outcome is Outcome.SKIPPED_BEFORE:
            reason = next((i for i, names in enumerate(
                (earlier, by_hand, frozen)) if layer.name in names), -1)
            counts[_BEFORE[reason]] += 1
    return {reason: count for reason, count in counts.items() if count}


def skipped_sentence(decision: Decision,
                     before: Optional[Dict[str, int]] = None) -> str:
    """Say how many layers a decision skips and what that leaves.

    Args:
        decision (Decision): It skips something.
        before (Dict[str, int], optional): From :func:`gone_before`.

    Returns:
        str: The numbers skipped now, active, and skipped before add up to all
        layers.
    """
    more = ' more' if before else ''
    others = ', '.join(f'{count} {reason}'
                       for reason, count in (before or {}).items())
    return (f'skipped {len(decision.skipped)}{more}: {decision.active} of '
            f'{decision.total} attention layers active' +
            (f' (skipped before: {others})' if others else ''))


def dashes_sentence(decision: Decision) -> Optional[str]:
    """Explain what has no number in the table of a decision.

    Args:
        decision (Decision): Any.

    Returns:
        str | None: None where everything has a number.
    """
    criterion = decision.criterion
    ranked = [layer for layer in decision.layers if layer.kl is not None]
    mapped = [layer for layer in ranked if layer.mapped is not None]
    said = []
    if len(ranked) < len(decision.layers):
        said.append("KL: a stage's first active layer has none before it, and "
                    'skipped ones are not measured')
    if not mapped and ranked:
        said.append('mapped: nothing was ranked')
    elif len(mapped) < len(ranked):
        gamma = criterion.get('gamma')  # of a user's criterion it may be any
        said.append('mapped: out of reach' + (
            f', above the {gamma:g}-quantile'
            if isinstance(gamma, (int, float)) else '') +
            ', and kept whatever mu is')
    if mapped and all(layer.stability is None for layer in mapped):
        said.append('stability: ' + (
            'the network itself was asked' if criterion['type'] == 'ablation'
            else 'there are no two steps to resample'))
    return f'where the table has -, {"; ".join(said)}' if said else None


def early_end(windows: Windows, left: Sequence[Window], how: str) -> str:
    """Say which windows nothing was decided in, and why.

    Args:
        windows (Windows): Of the run.
        left (Sequence[Window]): Those that have not ended; at least one.
        how (str): The training ended, in words.

    Returns:
        str: A sentence without a full stop.
    """
    names = [windows.name(window) for window in left]
    return f'nothing was decided on {_listed(names)}: the training {how}'


def how_it_ended(runner, error: Optional[BaseException]) -> str:
    """Say how a training came to its end before its last window did.

    Args:
        runner (Runner): Whose loop has ended.
        error (BaseException, optional): That has ended it.

    Returns:
        str: Goes on from 'the training'.
    """
    if error is not None:
        return f'was ended by a {type(error).__name__} {where(runner)}'
    if getattr(runner.train_loop, 'stop_training', False):
        return (f'was stopped {where(runner)}, by EarlyStoppingHook or another '
                'that sets train_loop.stop_training')
    return f'ended {where(runner)}'


def where(runner) -> str:
    """Say how far a training has come, such as ``'after epoch 4 of 12'``."""
    loop = runner._train_loop
    if not isinstance(loop, BaseLoop) or not runner.iter:
        return 'before the first step was done'
    by_epoch = not isinstance(loop, IterBasedTrainLoop)
    unit, done, length = (
        ('epoch', runner.epoch, runner.max_epochs) if by_epoch else
        ('iteration', runner.iter, runner.max_iters))
    if runner.message_hub.runtime_info.get('loop_stage') == 'val':
        return f'in the validation after {unit} {done} of {length}'
    if by_epoch and runner.iter != done * len(loop.dataloader):
        return f'in epoch {done + 1} of {length}'
    return f'after {unit} {done} of {length}'


def _listed(names: List[str]) -> str:
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def within(windows: Windows, window: Optional[Window]) -> str:
    """Say that something happens in a window; nothing outside of one."""
    return '' if window is None else (
        f', in the window of {window_name(window, windows.unit)}')
