"""Times that can be compared: several steps in turns, as ratios."""
import statistics
import time
from typing import Callable, Dict, List


def seconds_of(step: Callable[[], None]) -> float:
    """Time a step that is over when it returns."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def time_in_turns(
        steps: Dict[str, Callable[[], None]],
        rounds: int,
        warm_up: int = 2,
        progress: Callable = iter,
        clock: Callable[[Callable[[], None]], float] = seconds_of
) -> Dict[str, List[float]]:
    """Time several steps, one after the other in every round.

    Args:
        steps (Dict[str, Callable]): By variant.
        rounds (int): Timed rounds.
        warm_up (int): Rounds that are not timed. Defaults to 2.
        progress (Callable): Wraps the list of rounds, to show a bar.
        clock (Callable): Runs a step and says how many seconds it took.
            Defaults to :func:`seconds_of`.

    Returns:
        Dict[str, List[float]]: Seconds, one per round.
    """
    seconds = {name: [] for name in steps}
    for number in progress(range(warm_up + rounds)):
        for name, step in steps.items():
            taken = clock(step)
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: List[float], reference: List[float]) -> float:
    """Median over rounds of a variant's time over the reference's."""
    return statistics.median(a / b for a, b in zip(seconds, reference))
