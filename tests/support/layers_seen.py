"""How to look into layers of any family, and what each should have done."""
from typing import List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_mm.models.backbones.conformer import ConformerStage
from ela_mm.models.backbones.dense import DenseStage
from ela_mm.models.backbones.detached import DetachedStage
from ela_mm.models.backbones.spans import SquareStage
from ela_mm.models.backbones.vit import BlockGroup, MapBlockGroup


def as_map(x, *beside) -> Tensor:
    """What blocks pass on, as maps (B, C, H, W)."""
    if isinstance(x, tuple) and isinstance(x[-1], tuple):
        x, *beside = x  # MViT's, with the size of the map
    if isinstance(x, (list, tuple)):
        return torch.cat(list(x))
    if x.ndim == 4 or not beside or not isinstance(beside[0], tuple):
        return x  # plain transformers' tokens stay what they are
    height, width = beside[0]
    return x.permute(0, 2, 1).reshape(*x.shape[::2], height, width)


class Seen(NamedTuple):
    """Of one layer: what its block returned, and what went on from there."""
    of_block: Tensor
    after: Tensor


def as_tokens(x, *beside) -> Tensor:
    """The same of blocks of maps (B, H, W, C)."""
    return x.flatten(1, 2)


def as_square(x, *beside) -> Tensor:
    """The same of maps, or of tokens that form a square map."""
    return x if x.ndim == 4 else x.transpose(1, 2).unflatten(
        2, (round(x.shape[1]**.5), -1))


def as_added(x, *beside) -> Tensor:
    """The same of all features of a dense block: what the last layer added."""
    return x[-1] if isinstance(x, list) else x


def as_branch(x, *beside) -> Tensor:
    """The same of a map, or of a map beside tokens."""
    return x[0] if isinstance(x, tuple) else x


def form_of(stage: nn.Module):
    """How to see what blocks of a stage pass on."""
    forms = {MapBlockGroup: as_tokens, SquareStage: as_square,
             DenseStage: as_added, ConformerStage: as_branch}
    return next((form for kind, form in forms.items()
                 if isinstance(stage, kind)), as_map)


def run_and_see(net: nn.Module, x: Tensor) -> List[List[Seen]]:
    """Run a network and note, by stage and layer, what attention did."""
    stages = net.attention_stages
    of_block = [[None] * len(stage) for stage in stages]
    after = [[None] * len(stage) for stage in stages]
    handles = []

    def see(s: int, i: int):
        form = form_of(stages[s])
        hw = getattr(stages[s], 'hw_shape', None)  # where no host tells it

        def before(module, args):
            if i:
                after[s][i - 1] = form(*args, hw)

        def behind(module, args, output):
            of_block[s][i] = form(output, *args[1:], hw)

        return before, behind

    for s, stage in enumerate(stages):
        for i in range(len(stage)):
            before, behind = see(s, i)
            parts = [net.get_submodule(part) for part in stage.block_parts(i)]
            handles += [parts[0].register_forward_pre_hook(before),
                        parts[-1].register_forward_hook(behind)]

        def end(module, args, output, s=s):
            form = form_of(module)
            if isinstance(module, DetachedStage):
                after[s][:] = map(form, output)
            elif isinstance(module, DenseStage):
                after[s][-1] = output[:, -module.attention[-1].channels:]
            else:
                after[s][-1] = form(
                    output, *args[1:], getattr(module, 'hw_shape', None))

        handles.append(stage.register_forward_hook(end))
    net(x)
    for handle in handles:
        handle.remove()
    return [[Seen(*pair) for pair in zip(*both)]
            for both in zip(of_block, after)]


def formula(stage: nn.Module, maps: List[Tensor],
            hw: Tuple[int, int] = ()) -> List[Tensor]:
    """Each layer's term by equations 4 and 5, in einsum, of an eval network.

    Args:
        stage (Stage): Whose mask decides who attends and who is seen.
        maps (List[Tensor]): (B, C, H, W), what the blocks have returned;
            (B, N, C) of plain transformers.
        hw (Tuple[int, int]): H and W of these.
    """
    keys, values, terms = [], [], []
    tokens = isinstance(stage, BlockGroup)
    for i, (layer, x) in enumerate(zip(stage.attention, maps)):
        if tokens:  # norm first; the last tokens are patches, row by row
            whole = normalized(layer.norm, x.permute(0, 2, 1)[..., None])
            extra = x.shape[1] - hw[0] * hw[1]
            beside, x = whole[:, :, :extra, 0], whole[:, :, extra:].reshape(
                *whole.shape[:2], *hw)
        pooled = x.mean((2, 3))[:, None]  # (B, 1, C)
        split = (len(x), -1, layer.head_dim)
        pad = layer.key.weight.shape[-1] // 2
        if stage.visible[i]:
            keys.append(F.conv1d(pooled, layer.key.weight,
                                 padding=pad).reshape(split))
            values.append(F.conv2d(
                x, layer.value.weight, padding=1,
                groups=x.shape[1]).unflatten(1, split[1:]))
        if not stage.active[i]:
            terms.append(torch.zeros_like(maps[i]))
            continue
        query = F.conv1d(pooled, layer.query.weight, padding=pad)
        logits = torch.einsum('bhd,nbhd->bhn', query.reshape(split),
                              torch.stack(keys)) / layer.head_dim**.5
        term = torch.einsum('bhn,nbhdyx->bhdyx', logits.softmax(-1),
                            torch.stack(values)).flatten(1, 2)
        if tokens:
            term = torch.cat([beside, term.flatten(2)], 2).permute(0, 2, 1)
            scale = 1. if layer.scale is None else layer.scale.weight
            terms.append(term * scale)
            continue
        term = normalized(layer.norm, term)
        if isinstance(layer.act, nn.ReLU):
            term = term.clamp(min=0)
        if layer.scale is not None:
            term = term * layer.scale.weight[:, None, None]
        terms.append(term)
    return terms


def normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm of (B, C, H, W) by its definition, in eval mode."""
    if isinstance(norm, nn.LayerNorm):
        mean, var = x.mean(1, True), x.var(1, unbiased=False, keepdim=True)
    elif isinstance(norm, nn.GroupNorm):
        assert norm.num_groups == 1
        mean = x.mean((1, 2, 3), True)
        var = x.var((1, 2, 3), unbiased=False, keepdim=True)
    else:
        mean, var = (v[:, None, None]
                     for v in (norm.running_mean, norm.running_var))
    x = (x - mean) / (var + norm.eps).sqrt()
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]
