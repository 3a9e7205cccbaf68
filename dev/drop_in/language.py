"""A small BERT for detectors that read text, in place of one to download."""
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

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
