"""Times a step with and without the skipped layers, in turns."""
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, Callable, Iterator, List, Optional

import torch
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn

from ..models.backbones.layer_attention_mixin import find_backbone
from ..pruning.decision import Decision
from ..timing import time_in_turns
from .gain import now, quartiles
from .randomness import own_stream
from .ranks import unwrapped
from .trial import copy_of

# Fewer pairs of steps have no meaningful quartiles.
LEAST_ROUNDS = 3


def time_pruning(runner, decision: Decision, batch: Any, rounds: int) -> None:
    """Time steps with and without the layers that a decision skips, and log it.

    A copy of the network runs forward and backward, so the training itself is
    not affected: optimizer, averaged models, statistics of norms and random
    numbers stay as they are.

    Args:
        runner (Runner): Runner in training, right after the pruning.
        decision (Decision): Decision whose ``times.ratio`` is filled in. If
            that cannot be measured, a warning in the log says why.
        batch (Any): Training batch as its loader returns it; not changed.
        rounds (int): Number of pairs of steps.
    """
    reason = why_not(runner)
    if reason is None:
        try:
            ratios = step_ratios(runner, decision.skipped, decision.skip_mode,
                                 batch, rounds)
        except Exception as error:  # no reason to end a training
            reason = f'{type(error).__name__}: {error}'
    if reason is not None:
        runner.logger.warning(
            f'steps are not timed in turns (timing_rounds={rounds}): {reason}')
        return
    decision.times.ratio, decision.times.rounds = quartiles(ratios), rounds
    runner.logger.info(f'a step takes {decision.times.in_turns()}')


def why_not(runner) -> Optional[str]:
    """Say why steps of a copy on one rank would not represent this training.

    Args:
        runner (Runner): Runner in training.

    Returns:
        str | None: The reason; None if they do represent it.
    """
    if get_world_size() > 1:
        return ('there are several ranks, and steps of a copy exchange no '
                'gradients; tools/analyze.py cost times the network on one '
                'device')
    if runner.cfg.get('compile'):
        return 'the model is compiled, and its copy would not be'
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        return 'the model trains with several optimizers'
    # A forward set on a module (as activation_checkpointing does) belongs to
    # the original: calling it on the copy would change the original's norms and
    # gradients.
    given = [name for name, module in runner.model.named_modules()
             if 'forward' in vars(module)]
    if given:
        return f'{given[0]} has a forward that was given to it from outside'
    return None


def step_ratios(runner, names: List[str], mode: str, batch: Any,
                rounds: int) -> List[float]:
    """Time forward and backward of a copy, in turns.

    Args:
        runner (Runner): Runner in training.
        names (List[str]): Names of the skipped layers.
        mode (str): How they are skipped, ``'layer'`` or ``'retrieval'``.
        batch (Any): Training batch.
        rounds (int): Number of pairs to time, after one for warming up.

    Returns:
        List[float]: For each pair, the seconds without the layers over the
        seconds with them.
    """
    copy = copy_of(unwrapped(runner.model))
    backbone = find_backbone(copy)
    wrapper = _Backward(runner.optim_wrapper)

    def clock(choose: Callable[[], None]) -> float:
        choose()
        copy.zero_grad()
        data = deepcopy(batch)
        start = now()
        copy.train_step(data, wrapper)
        return now() - start

    with _random_numbers_kept(copy):
        seconds = time_in_turns(
            {'with': partial(backbone.restore_layers, names),
             'without': partial(backbone.skip_layers, names, mode)},
            rounds, warm_up=1, clock=clock)
    return [a / b for a, b in zip(seconds['without'], seconds['with'])]


class _Backward:
    """An optimizer wrapper that runs backward passes and changes no weight."""

    def __init__(self, wrapper: Any) -> None:
        self.optim_context = wrapper.optim_context  # autocast, for instance

    @staticmethod
    def update_params(loss: Tensor, *args, **kwargs) -> None:
        loss.backward()


@contextmanager
def _random_numbers_kept(model: nn.Module) -> Iterator[None]:
    device = next(model.parameters()).device
    devices = [device] if device.type == 'cuda' else []
    with own_stream(0), torch.random.fork_rng(devices):
        yield
