"""Sentences for the log, about windows and skipped layers."""
from typing import Dict, List, Optional, Sequence

from mmengine.runner import BaseLoop, IterBasedTrainLoop

from ...pruning.decision import Decision, Outcome
from ...pruning.windows import Window, Windows, window_name

# Reasons why a layer was skipped before the window, in the order of mention.
_BEFORE = ('in earlier windows', 'by hand', 'in frozen stages',
           'when the training began')


def gone_before(decision: Decision, earlier: Sequence[str],
                by_hand: Sequence[str], frozen: Sequence[str]
                ) -> Dict[str, int]:
    """Count the layers that were skipped when a window began, by reason.

    Args:
        decision (Decision): Decision on the window.
        earlier (Sequence[str]): Names of layers that earlier decisions of the
            run have skipped.
        by_hand (Sequence[str]): Names of layers that were skipped by hand in a
            checkpoint.
        frozen (Sequence[str]): Names of layers in frozen stages.

    Returns:
        Dict[str, int]: Number of layers by reason, in words; reasons without
        any are left out.
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
    """Say how many layers a decision skips and how many stay active.

    Args:
        decision (Decision): Decision that skips layers.
        before (Dict[str, int], optional): Layers skipped before, from
            :func:`gone_before`. Defaults to None: not mentioned.

    Returns:
        str: A sentence without a full stop. With ``before``, the numbers add
        up to all layers.
    """
    more = ' more' if before else ''
    others = ', '.join(f'{count} {reason}'
                       for reason, count in (before or {}).items())
    return (f'skipped {len(decision.skipped)}{more}: {decision.active} of '
            f'{decision.total} attention layers active' +
            (f' (skipped before: {others})' if others else ''))


def dashes_sentence(decision: Decision) -> Optional[str]:
    """Explain the cells without a number in the table of a decision.

    Args:
        decision (Decision): Decision of the table.

    Returns:
        str | None: A sentence without a full stop; None if every cell has a
        number.
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
        gamma = criterion.get('gamma')  # a user's criterion may have any type
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
    """Say which windows were not decided, and why.

    Args:
        windows (Windows): Windows of the run.
        left (Sequence[Window]): Windows that have not ended; at least one.
        how (str): How the training ended, from :func:`how_it_ended`.

    Returns:
        str: A sentence without a full stop.
    """
    names = [windows.name(window) for window in left]
    return f'nothing was decided on {_listed(names)}: the training {how}'


def how_it_ended(runner, error: Optional[BaseException]) -> str:
    """Say how a training ended before its last window.

    Args:
        runner (Runner): Runner whose train loop has ended.
        error (BaseException, optional): Exception that ended it, if any.

    Returns:
        str: Continuation of a sentence that begins with 'the training'.
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
    """Return ', in the window of ...', or '' outside of a window."""
    return '' if window is None else (
        f', in the window of {window_name(window, windows.unit)}')
