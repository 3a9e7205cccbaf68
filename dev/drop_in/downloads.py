"""Small networks in place of those that models download."""
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator
from unittest import mock

import torch
from torch import Tensor

# What pictures may show, as the text of a batch says.
CLASSES = ('cat', 'dog')
_WORDS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', *CLASSES)


@contextmanager
def small_bert() -> Iterator[None]:
    """Build models within it: their BERT has two layers and random weights.

    Raises:
        ImportError: If transformers is not installed.
    """
    import transformers

    def config(name: str, **kwargs: Any) -> transformers.BertConfig:
        return transformers.BertConfig(vocab_size=len(_WORDS),
                                       num_hidden_layers=2)

    def model(name: str, config: transformers.BertConfig,
              add_pooling_layer: bool) -> transformers.BertModel:
        return transformers.BertModel(config, add_pooling_layer)

    def tokenizer(name: str) -> transformers.BertTokenizerFast:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'vocab.txt'
            path.write_text('\n'.join(_WORDS), encoding='utf-8')
            return transformers.BertTokenizerFast(str(path))

    with mock.patch.object(transformers.BertConfig, 'from_pretrained', config), \
            mock.patch.object(transformers.BertModel, 'from_pretrained', model), \
            mock.patch.object(transformers.AutoTokenizer, 'from_pretrained',
                              tokenizer):
        yield


@contextmanager
def small_clip() -> Iterator[None]:
    """Build models within it: CLIP, which gives their targets, has two layers.

    Its width, patches and features are those of ViT-B/16, its weights random.
    """
    shapes = {
        'visual.conv1.weight': (768, 3, 16, 16),
        'visual.positional_embedding': (197, 768),
        'visual.proj': (768, 512),
        'text_projection': (512, 512),
        'positional_embedding': (77, 512),
        'token_embedding.weight': (8, 512),
        'ln_final.weight': (512, ),
        # Layers are counted by their names.
        'transformer.resblocks.0': (),
        'visual.0.attn.in_proj_weight': (),
        'visual.1.attn.in_proj_weight': (),
    }

    def load(path: str) -> Dict[str, Tensor]:
        return {name: .02 * torch.randn(shape)
                for name, shape in shapes.items()}

    with mock.patch('mmpretrain.models.selfsup.milan._load_checkpoint', load):
        yield
