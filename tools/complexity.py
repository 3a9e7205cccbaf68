"""Parameters and GMACs of every network of the paper, beside the paper's.

What the paper calls FLOPs are multiply-accumulates.
"""
import argparse
from typing import List, Optional, Tuple

from mmengine.registry import MODELS
from torch import nn

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.analysis import count
from ela_mm.apis.launch import run

ATTENTION = {'plain': None, 'MRLA-light': 'light', 'MRLA-base': 'base'}
# (classes, depth, attention) -> parameters in M and GFLOPs of tables 1 and 2.
# ELA has MRLA-base's parameters: skipped layers stay in the state dict.
PAPER = {
    (10, 20): {'plain': (0.22, None), 'MRLA-light': (0.23, None),
               'MRLA-base': (0.23, None)},
    (100, 20): {'plain': (0.24, None), 'MRLA-light': (0.25, None),
                'MRLA-base': (0.25, None)},
    (10, 56): {'plain': (0.59, None), 'MRLA-light': (0.62, None),
               'MRLA-base': (0.62, None)},
    (100, 56): {'plain': (0.61, None), 'MRLA-light': (0.64, None),
                'MRLA-base': (0.64, None)},
    (10, 110): {'plain': (1.15, None), 'MRLA-light': (1.21, None),
                'MRLA-base': (1.21, None)},
    (100, 110): {'plain': (1.17, None), 'MRLA-light': (1.23, None),
                 'MRLA-base': (1.23, None)},
    (1000, 50): {'plain': (25.6, 4.1), 'MRLA-light': (25.7, 4.2),
                 'MRLA-base': (25.7, 4.6)},
    (1000, 101): {'plain': (44.5, 7.8), 'MRLA-light': (44.9, 7.9),
                  'MRLA-base': (44.9, None)},
}


def build(classes: int, depth: int, attention: Optional[str]) -> nn.Module:
    """A classifier as the configs build it."""
    name, channels = (('ELAResNet', 2048) if classes == 1000 else
                      ('ELAResNet_CIFAR', 256))
    return MODELS.build(
        dict(
            _scope_='mmpretrain',
            type='ImageClassifier',
            backbone=dict(type=name, depth=depth, attention=attention),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=classes,
                in_channels=channels)))


def rows() -> List[Tuple[str, ...]]:
    """One row per network: ours and the paper's."""
    table = []
    for (classes, depth), published in PAPER.items():
        data = 'ImageNet' if classes == 1000 else f'CIFAR-{classes}'
        side = 224 if classes == 1000 else 32
        for name, attention in ATTENTION.items():
            cost = count(
                build(classes, depth, attention), (3, side, side))
            millions, giga = published[name]
            table.append(
                (data, f'ResNet-{depth}', name, f'{cost.parameters / 1e6:.4f}',
                 f'{millions:.2f}', f'{cost.macs / 1e9:.3f}',
                 f'{cost.retrieval_macs / 1e9:.3f}',
                 '-' if giga is None else f'{giga:.1f}'))
    return table


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__.splitlines()[0]).parse_args()
    header = ('data', 'network', 'attention', 'parameters, M', 'paper',
              'GMACs', 'of it retrieval', 'paper')
    print('| ' + ' | '.join(header) + ' |')
    print('| ' + ' | '.join('---' for _ in header) + ' |')
    for row in rows():
        print('| ' + ' | '.join(row) + ' |')


if __name__ == '__main__':
    run(main)
