"""What compared runs have to share and what they may differ in, as a table."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rule:
  """What has to be equal, or may differ, between compared runs.

  Attributes:
    subject: what it is about.
    told_by: what tells it.
    group: 'equal', 'paired by seed' or 'may differ' within a group.
    axis: the same between two groups that are compared along an axis.
    otherwise: what happens where it is not so.
  """

  subject: str
  told_by: str
  group: str
  axis: str
  otherwise: str


_OUT = 'left out, with the difference'
_NO_EFFECT = 'no effect, with the difference'
RULES = (
  Rule(
    'Data and their order',
    'data fingerprint (SHA-256 of the shards, tokenizer, context, mixture, '
    'shuffle, epochs); the seed fixes the order',
    'equal',
    'equal, but for epochs on that axis',
    f'{_OUT}; {_NO_EFFECT}',
  ),
  Rule(
    'Tokens, steps and batch size',
    'tokens, steps, batch_size',
    'equal',
    'equal, but on the axes of tokens and batch size',
    f'{_OUT}; {_NO_EFFECT}',
  ),
  Rule(
    'Model and parametrization',
    'model.*, parametrization.*',
    'equal, multipliers that were searched apart',
    'equal',
    f'{_OUT}; {_NO_EFFECT}',
  ),
  Rule(
    'Initial weights and first batch',
    'seed; train/loss before the first update, within rounding',
    'equal for each seed',
    'paired by seed',
    _OUT,
  ),
  Rule(
    'Schedule: kind, warm-up, final fraction',
    'schedule.*',
    'equal, a warm-up that was searched apart',
    'equal, but for the kind on that axis; warm-up follows the batch size',
    f'{_OUT}; {_NO_EFFECT}',
  ),
  Rule(
    'Clipping, decay convention, precision',
    'optimizer.clip_norm, optimizer.decay_mode, dtype.*',
    'equal',
    'equal',
    f'{_OUT}; {_NO_EFFECT}',
  ),
  Rule('Seeds', 'seed', 'equal', 'paired by seed', _OUT),
  Rule(
    'Tuning budget',
    'planned trials and tokens of a trial; rates added at an edge are listed',
    'equal',
    'may differ',
    'losses and scores are shown but not ranked, unless accepted explicitly',
  ),
  Rule(
    'Benchmark questions',
    'number and SHA-256 of the documents',
    'equal',
    'equal',
    'that benchmark is not compared',
  ),
  Rule(
    'Machine, mesh, micro-batches, recomputation',
    'env.json, mesh.*, microbatches, model.remat',
    'may differ',
    'may differ',
    'times and speeds are not compared',
  ),
  Rule(
    'Optimizer and its hyperparameters',
    'optimizer.*, but for clipping and the decay convention',
    'may differ; equal for the seeds of one optimizer',
    'may differ where an axis was searched anew',
    _OUT,
  ),
)
