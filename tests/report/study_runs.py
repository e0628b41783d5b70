"""Writes run directories such as a study leaves, without training anything."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import numpy as np

from steepest.eval import metrics
from steepest.experiments import base
from steepest.training import config as config_lib

CONTEXT = 64
_END = {'adamw': 3.40, 'lion': 3.43, 'sophia': 3.37}
_SHIFT = {'gpt2': 0.0, 'llama': -0.06}
_SPEED = {'adamw': 21000.0, 'lion': 22500.0, 'sophia': 19200.0}
_BEST_LR = {'adamw': 4e-3, 'lion': 5e-4, 'sophia': 8e-4}
LRS = {
  'adamw': (1e-3, 2e-3, 4e-3, 8e-3),
  'lion': (2e-4, 4e-4, 8e-4, 1.6e-3),
  'sophia': (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3),
}
_TASKS = {
  'arc_easy': (0.25, 570, 0.40),
  'arc_challenge': (0.25, 299, 0.295),
  'hellaswag': (0.25, 500, 0.335),
  'mmlu': (0.25, 500, 0.30),
}
ENV = {
  'versions': {'steepest': '0.1.0', 'jax': '0.10.2', 'numpy': '2.4.6'},
  'python': '3.11.7',
  'platform': 'cpu',
  'device_kind': 'cpu',
  'devices': ['cpu:0'],
  'process_count': 1,
  'cpu_cores': 1,
  'git_commit': '0123456789abcdef0123456789abcdef01234567',
}


def config(
  model: str, optimizer: str, seed: int, stage: str, **changes: Any
) -> dict[str, Any]:
  """Returns a resolved config as the JSON of a run directory."""
  c = base.get_config()
  base.set_model(c, model)
  base.set_optimizer(c, optimizer)
  c.update({'seed': seed, 'stage': stage, 'batch_size': 16, 'steps': 400})
  c.model.update(
    {
      'num_layers': 4,
      'width': 256 if stage == 'final' else 128,
      'num_heads': 8,
      'context': CONTEXT,
    }
  )
  c.data.source = 'shards:corpus'
  c.schedule.warmup_steps = 20
  c.eval_every = 40
  tree = json.loads(config_lib.resolve(c).to_json())
  for key, value in changes.items():
    node = tree
    *path, leaf = key.split('__')
    for part in path:
      node = node[part]
    node[leaf] = value
  return tree


def write_run(
  path: pathlib.Path,
  settings: dict[str, Any],
  end: float,
  speed: float = 20000.0,
  status: str = 'finished',
  stop: int | None = None,
  rows: int = 200,
  fingerprint: str = 'f00d' * 16,
) -> dict[str, Any] | None:
  """Writes config, env, metrics and, unless unfinished, summary.

  Args:
    path: the run directory.
    settings: of `config`.
    end: loss that the curve comes down to.
    speed: tokens per second of training.
    status: 'finished', 'diverged' or 'unfinished'.
    stop: step at which a run that is not finished stops.
    rows: logged rows of the whole run.
    fingerprint: of the data.

  Returns:
    What summary.json holds.
  """
  path.mkdir(parents=True)
  rng = np.random.default_rng(abs(hash((path.name, end))) % 2**32)
  steps = settings['steps']
  every = max(1, steps // rows)
  per_step = settings['batch_size'] * settings['model']['context']
  stop = steps if stop is None else stop
  lines: list[dict[str, float]] = []
  for step in range(0, stop, every):
    share = (step + 1) / steps
    smooth = end + (8.3 - end) * np.exp(-9 * share) + 0.5 * (1 - share) ** 2
    if status == 'diverged' and step > 0.7 * stop:
      smooth += 9 * (step / stop - 0.7) ** 2 * 30
    tokens = (step + 1) * per_step
    # Before the first update a loss is the same for all of one seed.
    noise = rng.normal(0, 0.045) if step else 8.8 - smooth
    lines.append(
      {
        'step': step,
        'tokens': tokens,
        'seconds': tokens / speed,
        'train/loss': float(smooth + noise),
        'lr': settings['optimizer']['lr'] * min(1.0, (step + 1) / 20),
        'grad_norm': 1.0,
      }
    )
    if settings['eval_every'] and (step // every) % 10 == 9:
      lines[-1]['eval/loss'] = float(smooth + 0.035)
  for name, value in (('config', settings), ('env', ENV)):
    (path / f'{name}.json').write_text(json.dumps(value))
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)
  if status == 'unfinished':
    return None
  tail = lines[-max(1, round(len(lines) * 0.05)) :]
  sophia = settings['optimizer']['name'] == 'sophia'
  passes = stop // settings['optimizer']['hessian_every'] if sophia else 0
  tokens = stop * per_step
  summary: dict[str, Any] = {
    'status': status,
    'steps': stop,
    'tokens': tokens,
    'seconds': tokens / speed,
    'data_fingerprint': fingerprint,
  }
  if status == 'diverged':
    summary |= {'diverged_at_step': stop, 'train_loss': None, 'eval_loss': None}
  else:
    width = settings['model']['width']
    summary |= {
      'compile_seconds': 4.2,
      'goodput': {'steps': 0.9, 'waiting_for_data': 0.04, 'restarting': 0.06},
      'eval_seconds': 9.5,
      'checkpoint_seconds': 1.1,
      'train_loss': float(np.mean([row['train/loss'] for row in tail])),
      'eval_loss': end + 0.035,
      'eval_loss_by_source': {'web': end + 0.05, 'books': end + 0.02},
      'eval_bits_per_byte': (end + 0.035) / np.log(2) / 3.5,
      'eval_bits_per_byte_by_source': {'web': (end + 0.05) / np.log(2) / 4},
      'tokens_per_second': speed,
      'mfu': None,
      'mfu_convention': 'none',
      'parameters': 48 * width**2 + 2048 * width,
      'parameters_without_embeddings': 48 * width**2,
      'flops': 6.0 * 48 * width**2 * (tokens + passes * per_step * 0.98),
      'curvature_passes': passes,
      'optimizer_state_bytes': 4
      * (48 * width**2 + 2048 * width)
      * (1 if settings['optimizer']['name'] == 'lion' else 2),
      'peak_memory_bytes': None,
    }
  (path / 'summary.json').write_text(json.dumps(summary))
  return summary


def write_scores(
  path: pathlib.Path,
  right: dict[str, Sequence[int]],
  limit: int = 500,
  predictions: bool = True,
) -> None:
  """Writes eval/results.json and predictions.jsonl from right answers."""
  directory = path / 'eval'
  directory.mkdir()
  scores: dict[str, Any] = {}
  lines = []
  for key, answers in right.items():
    task, _, metric = key.partition('/')
    entry = scores.setdefault(task, {'n': len(answers)})
    entry[metric] = float(np.mean(answers))
    entry[f'{metric}_stderr'] = metrics.mean_stderr(answers)
    lines += [
      {'task': task, 'doc_id': i, 'metric': metric, 'pred': 1 - a, 'gold': 0}
      for i, a in enumerate(answers)
    ]
  info = {
    'limit': limit,
    'limit_rule': 'the first N questions of a task',
    'data': {f'{t}.jsonl': {'path': t, 'sha256': 'ab' * 32} for t in scores},
    'chance': {task: 0.25 for task in scores},
    'seconds': 12.0,
  }
  text = json.dumps({'info': info, 'metrics': scores})
  (directory / 'results.json').write_text(text)
  if predictions:
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (directory / 'predictions.jsonl').write_text(text)


def write_study(
  root: pathlib.Path,
  models: Sequence[str] = ('gpt2', 'llama'),
  optimizers: Sequence[str] = ('adamw', 'lion', 'sophia'),
  seeds: int = 2,
) -> None:
  """Writes the config, trials and finals of every cell, with scores.

  Sophia's fifth rate is one that the study added to its grid of four.
  """
  root.mkdir(parents=True, exist_ok=True)
  plan = {f'lrs_{name}': list(LRS[name][:4]) for name in optimizers}
  text = json.dumps({'study': {'search': 'grid', **plan}})
  (root / 'config.json').write_text(text)
  for model in models:
    for optimizer in optimizers:
      cell = f'{model}-{optimizer}'
      chosen = _write_trials(root / 'trials' / cell, model, optimizer)
      for seed in range(seeds):
        settings = config(model, optimizer, seed, 'final', optimizer__lr=chosen)
        end = _END[optimizer] + _SHIFT[model] + 0.004 * np.sin(7 * seed)
        end += 0.001 * np.cos(5 * seed + len(cell))
        path = root / 'finals' / cell / f'seed={seed}'
        speed = _SPEED[optimizer] * (1 + 0.004 * seed)
        write_run(path, settings, float(end), speed)
        write_scores(path, _answers(model, optimizer, seed))


def _write_trials(root: pathlib.Path, model: str, optimizer: str) -> float:
  """Writes the trials of one cell; returns the best learning rate."""
  losses = {}
  for lr in LRS[optimizer]:
    best = _BEST_LR[optimizer] * (2 if model == 'llama' else 1)
    end = _END[optimizer] + 0.4 + 0.035 * np.log2(lr / best) ** 2
    settings = config(model, optimizer, 0, 'tune', optimizer__lr=lr, steps=200)
    status = 'diverged' if lr > 3.1e-3 and optimizer == 'sophia' else 'finished'
    stop = 131 if status == 'diverged' else None
    write_run(
      root / f'lr={lr:g}', settings, float(end), status=status, stop=stop
    )
    if status == 'finished':
      losses[lr] = end
  return min(losses, key=lambda lr: losses[lr])


def _answers(model: str, optimizer: str, seed: int) -> dict[str, list[int]]:
  """Draws right answers; a question is as hard for every optimizer."""
  answers = {}
  bonus = {'adamw': 0.035, 'lion': 0.0, 'sophia': 0.012}[optimizer]
  rng = np.random.default_rng([len(model), len(optimizer), seed])
  for task, (_, count, rate) in _TASKS.items():
    hardness_Q = np.random.default_rng(len(task)).uniform(0, 1, count)
    for metric in ('acc',) if task == 'mmlu' else ('acc', 'acc_norm'):
      lift = bonus if task == 'arc_easy' else bonus / 4
      noisy_Q = 0.85 * hardness_Q + 0.15 * rng.uniform(0, 1, count)
      answers[f'{task}/{metric}'] = [int(x < rate + lift) for x in noisy_Q]
  return answers


# What the study with axes was made with: speed-ups over AdamW's curve, and what
# four epochs add to the loss.
SPEEDUPS = {'adamw': 1.0, 'lion': 0.8, 'sophia': 1.25}
EPOCHS_ADD = {'adamw': 0.05, 'lion': 0.06, 'sophia': 0.02}
FLOOR, SCALE, ALPHA = 3.0, 0.5, 0.4


def planted_loss(optimizer: str, budget: float, epochs: int = 1) -> float:
  """Returns the validation loss of a run of `budget` times the tokens."""
  power = (SPEEDUPS[optimizer] * budget) ** -ALPHA
  return FLOOR + SCALE * power + (EPOCHS_ADD[optimizer] if epochs > 1 else 0)


def write_axis_study(
  root: pathlib.Path,
  models: Sequence[str] = ('gpt2', 'llama'),
  seeds: int = 3,
  rows: int = 40,
) -> None:
  """Writes final runs of a study with axes of epochs and of tokens.

  Losses are those of `planted_loss`, moved alike for the runs of a seed.
  """
  root.mkdir(parents=True, exist_ok=True)
  plan = config('gpt2', 'adamw', 0, 'final')
  plan['study'] = {
    'axis_epochs': [4],
    'axis_tokens': [2.0, 4.0],
    'axis_batch_size': [],
    'axis_schedule': '',
    'retune': '',
    'target_steps': plan['steps'],
    'search': 'grid',
  }
  (root / 'config.json').write_text(json.dumps(plan))
  for model in models:
    for optimizer in SPEEDUPS:
      for suffix, budget, epochs in (
        ('', 1, 1),
        ('-epochs=4', 1, 4),
        ('-tokens=2', 2, 1),
        ('-tokens=4', 4, 1),
      ):
        for seed in range(seeds):
          settings = config(
            model,
            optimizer,
            seed,
            'final',
            data__epochs=epochs,
            steps=plan['steps'] * budget,
          )
          move = 0.004 * np.sin(7 * seed) + 0.0005 * np.cos(
            3 * seed + len(optimizer) + budget + epochs
          )
          path = root / f'finals/{model}-{optimizer}{suffix}/seed={seed}'
          write_run(
            path,
            settings,
            planted_loss(optimizer, budget, epochs) - 0.035 + float(move),
            _SPEED[optimizer],
            rows=rows,
            fingerprint=f'{epochs}' * 64,
          )
          answers = _answers(model, optimizer, seed)
          # Answers to MMLU are kept by subject, which these are not.
          write_scores(
            path, {k: v for k, v in answers.items() if k != 'mmlu/acc'}
          )
