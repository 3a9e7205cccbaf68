"""Code that tools/train.py and tools/test.py share: arguments to Runner."""
import argparse
import datetime
import logging
import os
import os.path as osp
import sys
import warnings
from tempfile import TemporaryFile
from typing import Any, Callable, Iterator, Optional, TextIO
from urllib.error import URLError

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.dist import master_only
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..engine.checkpoints import is_intact
from ..errors import INTERRUPTED, UsageError, while_read
from .data import prepare_config
from .loading import config_from_file, override, settings
from .options import options_explained


def load_config(args: argparse.Namespace) -> Config:
    """Load the config and apply the common options.

    Args:
        args (argparse.Namespace): Arguments ``config``, ``work_dir``,
            ``launcher``, ``local_rank`` and ``cfg_options`` (see
            :func:`~ela_mm.apis.loading.settings`).

    Returns:
        Config: Config with launcher, work dir and defaults of data loaders set.

    Raises:
        UsageError: If the file does not exist or is no config, or if an option
            is malformed.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = config_from_file(args.config)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    override(cfg, settings(args.cfg_options))
    return prepare_config(cfg)


def check_has(cfg: Config, *names: str) -> None:
    """Raise a UsageError unless a config has some settings, not None."""
    missing = [name for name in names if cfg.get(name) is None]
    if missing:
        raise UsageError(
            f'{cfg.filename or "the config"} has no {" and no ".join(missing)}'
            f': expected {", ".join(names)}')


def check_checkpoint(path: Optional[str]) -> None:
    """Raise a UsageError if a local checkpoint is missing or damaged."""
    if path is None or '://' in path:
        return
    if not osp.isfile(path):
        raise UsageError(f'checkpoint {path!r} does not exist')
    if not is_intact(path):
        raise UsageError(
            f'checkpoint {path!r} is damaged, probably cut off while it was '
            'written, or none that torch loads: expected a whole one, such as '
            'the one before it')


def set_up_distributed(cfg: Config) -> None:
    """Make a launcher work without a GPU, which mmengine would require.

    Without a launcher, or with a GPU, nothing happens.

    Args:
        cfg (Config): Config, changed in place. ``env_cfg.dist_cfg.timeout`` is
            used as in mmengine.

    Raises:
        UsageError: On a launcher or option that needs GPUs, or if this process
            was not started by torchrun.
    """
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher != 'pytorch':
        raise UsageError(f'--launcher {cfg.launcher} needs GPUs; on CPUs use '
                         'torchrun and --launcher pytorch')
    if 'RANK' not in os.environ:
        raise UsageError('--launcher pytorch expects to be started by '
                         'torchrun, which sets RANK and its like')
    if cfg.get('sync_bn'):
        raise UsageError(f'sync_bn={cfg.sync_bn!r} needs GPUs: SyncBatchNorm '
                         'does not train on CPUs; leave it out')
    synchronised = list(_synchronised(cfg.get('model') or {}, 'model'))
    if synchronised:
        raise UsageError(
            "norms of type 'SyncBN' need GPUs where there are several "
            'processes: --cfg-options ' + ' '.join(
                f'{place}.type=BN' for place in synchronised))
    options = {}
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    if timeout is not None:  # in seconds, as in mmengine
        options['timeout'] = datetime.timedelta(seconds=timeout)
    dist.init_process_group('gloo', **options)
    wrapper = cfg.get('model_wrapper_cfg') or ConfigDict()
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    # mmengine's defaults if no wrapper is given.
    wrapper.setdefault('broadcast_buffers', False)
    wrapper.setdefault('find_unused_parameters',
                       cfg.get('find_unused_parameters', False))
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper


def _synchronised(node: Any, place: str) -> Iterator[str]:
    """Find the synchronised norms in a model's config."""
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            yield place
        node = node.items()
    elif isinstance(node, (list, tuple)):
        node = enumerate(node)
    else:
        return
    for name, child in node:
        yield from _synchronised(child, f'{place}.{name}')


def build_runner(cfg: Config, trains: bool = True) -> Runner:
    """Build the runner that the config asks for.

    Args:
        cfg (Config): The whole config.
        trains (bool): Whether it will train. If not, its config is written to
            the folder of its log, so as not to replace that of the training in
            the work dir. Defaults to True.

    Returns:
        Runner: Runner of the config's ``runner_type``.

    Raises:
        UsageError: If nothing can be written to the work dir, or on an option
            that its class does not have.
    """
    _check_work_dir(cfg.work_dir)
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    if not trains:
        kind = cfg.get('runner_type', Runner)
        kind = RUNNERS.get(kind) if isinstance(kind, str) else kind
        if kind is not None:  # else building it raises an error
            build = type(kind.__name__, (kind, ),
                         dict(dump_config=_dump_beside_log)).from_cfg
    with options_explained(cfg._cfg_dict):
        runner = build(cfg)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):
            _escape(handler.stream)
    return runner


def _check_work_dir(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
        with TemporaryFile(dir=path) as file:
            file.write(b'0')
    except OSError as error:
        raise UsageError(
            f'the work dir {path!r} cannot be written to ({error.strerror}): '
            'expected a folder that can; --work-dir names another') from None


@master_only
def _dump_beside_log(runner: Runner) -> None:
    name = osp.basename(runner.cfg.filename or 'config.py')
    runner.cfg.dump(osp.join(runner.log_dir, name))


def _escape(stream: TextIO) -> None:
    """Make a stream escape what it cannot encode, instead of failing."""
    if hasattr(stream, 'reconfigure'):  # streams of notebooks have none
        stream.reconfigure(errors='backslashreplace')


def run(main: Callable[[], None]) -> None:
    """Run a tool's main function; end with one line on errors of users."""
    _escape(sys.stdout)
    # mmengine loads pkg_resources anew for every config, which warns each time.
    warnings.filterwarnings(
        'ignore', 'pkg_resources is deprecated', UserWarning)
    try:
        with while_read():
            main()
    except UsageError as error:
        sys.exit(f'error: {error}')
    except URLError as error:
        sys.exit(f'error: a download failed ({error.reason}): expected a '
                 'network, or what is wanted where the config looks for it')
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(INTERRUPTED)
