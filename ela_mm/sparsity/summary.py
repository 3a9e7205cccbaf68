"""Summaries of the share of weights that exist: in words, as a table, for JSON."""
from typing import Any, Dict, Mapping

from .scheme import Tensors


def summary(masks: Tensors, density: float, dense: Mapping[str, str]) -> str:
    """Say how many weights exist, and why some layers are dense.

    Args:
        masks (Tensors): Masks by name of the layer, True where weights exist.
        density (float): Share of weights that was asked for.
        dense (Mapping[str, str]): Reasons why layers are not masked, by name.

    Returns:
        str: One line, without a newline.
    """
    counts = _counts(masks)
    total = sum(mask.numel() for mask in masks.values())
    exist = sum(counts.values())
    text = (f'{exist} of {total} weights of {len(masks)} layers '
            f'exist, a density of {exist / total:.4g}')
    full = [name for name, count in counts.items()
            if count == masks[name].numel()]
    if full and density < 1:
        text += f'; {len(full)} of them are dense, as they cannot have fewer'
    for reason in sorted(set(dense.values())):
        count = list(dense.values()).count(reason)
        text += f'; {count} layers are not masked ({reason})'
    return text


def density_table(masks: Tensors) -> str:
    """Lay out the density of every layer, in ASCII.

    Args:
        masks (Tensors): Masks by name of the layer.

    Returns:
        str: A header, and a line for each layer.
    """
    width = max(map(len, masks))
    rows = [f'{"layer":{width}}  {"weights":>10}  {"exist":>10}  density']
    rows += [f'{name:{width}}  {masks[name].numel():10}  {count:10}  '
             f'{count / masks[name].numel():.4f}'
             for name, count in _counts(masks).items()]
    return '\n'.join(rows)


def densities(masks: Tensors) -> Dict[str, Any]:
    """Collect the densities for a JSON file.

    Args:
        masks (Tensors): Masks by name of the layer.

    Returns:
        Dict[str, Any]: ``density_reached``, the density of all layers, and
        ``layers``, a list with the name, counts and density of each.
    """
    counts = _counts(masks)
    sizes = {name: mask.numel() for name, mask in masks.items()}
    return dict(
        density_reached=sum(counts.values()) / sum(sizes.values()),
        layers=[
            dict(name=name, weights=sizes[name], exist=count,
                 density=count / sizes[name])
            for name, count in counts.items()
        ])


def _counts(masks: Tensors) -> Dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}
