"""Times a step with and without the layers that a pruning skips, in turns."""
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, Callable, Iterator, List, Optional

import torch
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn

from ..models.backbones.layer_attention_mixin import find_backbone
from ..pruning.decision import Decision
from ..timing import time_in_turns
from .gain import now, quartiles
from .randomness import own_stream
from .trial import copy_of

# Fewer pairs of steps have no quartiles to speak of.
LEAST_ROUNDS = 3


def time_pruning(runner, decision: Decision, batch: Any, rounds: int) -> None:
    """Time steps with and without what a decision has skipped, and say so.

    The network that trains is left alone: a copy runs forward and backward.
    Optimizer, averages, norms' statistics and random numbers stay as they are.

    Args:
        runner (Runner): While it trains, right after the pruning.
        decision (Decision): Gets ``times.ratio``, unless it cannot be
            measured: then a sentence in the log says why.
        batch (Any): Of the training, as its loader gave it; not changed.
        rounds (int): Pairs of steps.
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
    """Say what a copy's steps on one rank would not tell of this training.

    Args:
        runner (Runner): While it trains.

    Returns:
        str | None: The reason; None where they do.
    """
    if get_world_size() > 1:
        return ('there are several ranks, and steps of a copy exchange no '
                'gradients; tools/analyze.py cost times the network on one '
                'device')
    if runner.cfg.get('compile'):
        return 'the model is compiled, and its copy would not be'
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        return 'the model trains with several optimizers'
    # Such as activation_checkpointing gives it: of the original, whose norms
    # and gradients a copy would change.
    given = [name for name, module in runner.model.named_modules()
             if 'forward' in vars(module)]
    if given:
        return f'{given[0]} has a forward that was given to it from outside'
    return None


def step_ratios(runner, names: List[str], mode: str, batch: Any,
                rounds: int) -> List[float]:
    """Time forward and backward of a copy, in turns.

    Args:
        runner (Runner): While it trains.
        names (List[str]): Of layers that are skipped.
        mode (str): How they are.
        batch (Any): Of the training.
        rounds (int): Timed pairs; one more warms up.

    Returns:
        List[float]: Seconds without the layers over those with them, of each
        pair.
    """
    model = runner.model
    copy = copy_of(model.module if is_model_wrapper(model) else model)
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
    """Stands in for an optimizer's wrapper, and changes no weight."""

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
