"""Finds what to analyse: a run's work dir, or a config and a checkpoint."""
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
    """Files to analyse.

    Attributes:
        work_dir (str | None): Work dir of a run, if one was given.
        config (str | None): Config that was given, or that of the run.
        checkpoint (str | None): Checkpoint that was given, or the latest of
            the run.
        rest (List[str]): What else was given, such as images.
    """
    work_dir: Optional[str]
    config: Optional[str]
    checkpoint: Optional[str]
    rest: List[str]

    def read_config(self, options: Optional[dict] = None) -> Config:
        """Read the config.

        Args:
            options (dict, optional): Options that override the config's.

        Raises:
            UsageError: If there is none, or if it is no config of a model.
        """
        if self.config is None:
            where = f' in {self.work_dir!r}' if self.work_dir else ''
            raise UsageError(f'no config{where}: name it with --config')
        return read_config(self.config, options)

    def check(self, needs_checkpoint: bool = True,
              takes_more: bool = False) -> 'Source':
        """Check what can be checked before anything is built.

        Args:
            needs_checkpoint (bool): Whether there has to be a checkpoint.
                Defaults to True.
            takes_more (bool): Whether ``rest`` may have entries. Defaults to
                False.

        Returns:
            Source: Itself.

        Raises:
            UsageError: If something is missing, damaged or superfluous.
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
        """Folder for results, in the work dir or beside the checkpoint."""
        if self.work_dir is not None:
            return osp.join(self.work_dir, FOLDER)
        if self.checkpoint is not None and '://' not in self.checkpoint:
            return osp.join(osp.dirname(self.checkpoint) or '.', FOLDER)
        name = osp.splitext(osp.basename(self.config or ''))[0]
        return osp.join('work_dirs', name, FOLDER)  # as in tools/train.py


def find_source(words: Sequence[str],
                config: Optional[str] = None,
                checkpoint: Optional[str] = None) -> Source:
    """Interpret the arguments of a command line.

    Args:
        words (Sequence[str]): Positional arguments: ``WORK_DIR ...``, or
            ``CONFIG CHECKPOINT ...`` without those given by an option.
        config (str, optional): Value of the option ``--config``.
        checkpoint (str, optional): Value of the option ``--checkpoint``.

    Returns:
        Source: The files; not checked yet.

    Raises:
        UsageError: If nothing is given, or a work dir does not exist.
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
