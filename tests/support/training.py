"""What a training leaves behind, and who watches it."""
from mmengine.hooks import Hook

from support.toy import toy_runner

# What a record has of the clock, and two equal runs do not share.
TIMES = ('step_time_before', 'step_time_after', 'steps_timed',
         'step_quartiles_before', 'step_quartiles_after', 'step_ratio',
         'step_ratio_rounds', 'step_times', 'step_times_resumed')


def without_times(entry: dict) -> dict:
    """A record, or a decision of one, without what the clock said."""
    entry = {k: v for k, v in entry.items() if k not in TIMES}
    if 'decisions' in entry:
        entry['decisions'] = list(map(without_times, entry['decisions']))
    return entry


def log_of(work_dir) -> str:
    return ''.join(p.read_text() for p in work_dir.glob('*/*.log'))


def tensorboard_of(work_dir, **hook):
    """What TensorBoard reads of one epoch of the toy, pruned at its end."""
    from tensorboard.backend.event_processing import event_accumulator
    toy_runner(
        work_dir, max_epochs=1, hook=hook,
        visualizer=dict(
            type='Visualizer',
            vis_backends=[dict(type='TensorboardVisBackend')])).train()
    (events, ) = work_dir.glob('**/events.out.tfevents.*')
    reader = event_accumulator.EventAccumulator(str(events.parent))
    reader.Reload()
    return reader


class ValidationSpy(Hook):
    """Writes down what each validation used and gave."""
    priority = 'LOWEST'

    def __init__(self):
        self.iters, self.active, self.mask, self.energy = [], [], [], []

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.iters.append(runner.iter)
            backbone = runner.model.backbone
            self.active.append(
                sum(layer.active for layer in backbone.attention_layers))
            self.mask.append(int(backbone.active.sum()))

    def after_val_epoch(self, runner, metrics=None):
        self.energy.append(metrics['energy'])
