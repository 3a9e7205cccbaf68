"""What a question is put to: a run's work dir, or a config and a checkpoint."""
import os.path as osp
from typing import List, NamedTuple, Optional, Sequence

from mmengine.config import Config

from ..apis.launch import check_checkpoint
from ..apis.loading import check_is_config, read_config
from ..engine.checkpoints import latest_intact
from ..errors import UsageError
from .history import find_config

FOLDER = 'ela_analysis'


class Source(NamedTuple):
    """Files that belong together.

    Attributes:
        work_dir (str | None): Of a run.
        config (str | None): That it was trained with, unless another is
            named.
        checkpoint (str | None): Its latest, unless another is named.
        rest (List[str]): What else was named, such as pictures.
    """
    work_dir: Optional[str]
    config: Optional[str]
    checkpoint: Optional[str]
    rest: List[str]

    def read_config(self, options: Optional[dict] = None) -> Config:
        """Read the config.

        Raises:
            UsageError: If there is none, or it is no config of a model.
        """
        if self.config is None:
            where = f' in {self.work_dir!r}' if self.work_dir else ''
            raise UsageError(f'no config{where}: name it with --config')
        return read_config(self.config, options)

    def check(self, needs_checkpoint: bool = True,
              takes_more: bool = False) -> 'Source':
        """Check what can be checked before anything is built.

        Args:
            needs_checkpoint (bool): Defaults to True.
            takes_more (bool): Whether something may be named besides.
                Defaults to False.

        Raises:
            UsageError: If something is missing, damaged or too much.
        """
        if self.rest and not takes_more:
            raise UsageError(f'{self.rest[0]!r}: expected WORK_DIR, or CONFIG '
                             'CHECKPOINT, and nothing more')
        if self.checkpoint is None and needs_checkpoint:
            where = (f'no checkpoint in {self.work_dir!r}' if self.work_dir
                     else f'config {self.config!r} without a checkpoint')
            raise UsageError(f'{where}: expected WORK_DIR, or CONFIG '
                             'CHECKPOINT, or name it with --checkpoint')
        check_checkpoint(self.checkpoint)
        return self

    @property
    def folder(self) -> str:
        """Where results go: beside the run."""
        if self.work_dir is not None:
            return osp.join(self.work_dir, FOLDER)
        if self.checkpoint is not None and '://' not in self.checkpoint:
            return osp.join(osp.dirname(self.checkpoint) or '.', FOLDER)
        name = osp.splitext(osp.basename(self.config or ''))[0]
        return osp.join('work_dirs', name, FOLDER)  # as tools/train.py does


def find_source(words: Sequence[str],
                config: Optional[str] = None,
                checkpoint: Optional[str] = None) -> Source:
    """Make out what was named on a command line.

    Args:
        words (Sequence[str]): ``WORK_DIR ...`` or ``CONFIG CHECKPOINT ...``;
            of the latter, what is named by an option is left out.
        config (str, optional): By its option.
        checkpoint (str, optional): By its option.

    Returns:
        Source: Not checked yet.

    Raises:
        UsageError: If nothing is named, or no such work dir.
    """
    rest = list(words)
    if rest and osp.isdir(rest[0]):
        work_dir = rest.pop(0)
        return Source(work_dir, config or find_config(work_dir), checkpoint
                      or latest_intact(work_dir)[0], rest)
    if config is None:
        if not rest:
            raise UsageError('nothing is named: expected WORK_DIR, or CONFIG '
                             'CHECKPOINT')
        config = rest.pop(0)
        if not osp.exists(config) and not osp.splitext(config)[1]:
            raise UsageError(f'{config!r} is no folder: expected WORK_DIR, that '
                             'of a run, or CONFIG CHECKPOINT')
        check_is_config(config)
    if checkpoint is None and rest:
        checkpoint = rest.pop(0)
    return Source(None, config, checkpoint, rest)
