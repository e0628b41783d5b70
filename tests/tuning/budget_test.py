"""What a study takes: sums of what its runs take, each by the planner."""

import io
import re

import pytest
from rich.console import Console

from steepest.experiments import base, paper_study, paper_target, quickstart
from steepest.training import planner
from steepest.tuning import budget, budget_table, cells, certainty, plans


def _config(**study):
  config = quickstart.get_config()
  config.study.update(models='gpt2', optimizers='adamw,sophia', seeds=3)
  config.study.update(study)
  return config


class _Planner:
  """A step takes half a second of chips that share its 100 GiB."""

  def __init__(self, config, chip):
    self.config, self._chip = config, chip

  def plan(self, setting):
    n, capacity = setting.devices, self._chip.memory
    peak = 100 * 2**30 * (1 if self.config.stage == 'tune' else 64) // n
    seconds = 0.5 / n
    return planner.Plan(
      setting, {}, peak, capacity, 1.0, {}, {}, seconds, 0.4, 'compute'
    )


@pytest.fixture
def chip(monkeypatch):
  """Returns a chip of 80 GiB whose planner is known."""
  monkeypatch.setattr(plans, 'make_planner', _Planner)
  return plans.chip('h100')


def test_hours_are_those_of_all_steps(chip):
  config = _config(axis_epochs=(4,))
  found = budget.parts(config, chip, 64)
  assert [f'{p.kind} {p.cell} {p.runs}' for p in found] == [
    'tune gpt2-adamw 5',
    'tune gpt2-sophia 5',
    'train gpt2-adamw 3',
    'train gpt2-sophia 3',
    'train gpt2-adamw-epochs=4 3',
    'train gpt2-sophia-epochs=4 3',
  ]
  # Of 100 GiB two chips hold half each; a target has all.
  assert [p.plan.setting.devices for p in found] == [2, 2, 64, 64, 64, 64]
  assert all(p.plan.fits == (p.kind == 'tune') for p in found)
  assert found[0].tokens == 500 * 8 * 128
  assert found[0].hours == pytest.approx(5 * 500 * 0.5 / 3600)
  assert found[3].hours == pytest.approx(3 * 800 * 0.5 / 3600)
  assert all(part.alone == part.hours for part in found)
  assert budget.hours(found, 'tune') == pytest.approx(2 * found[0].hours)
  # Where no number of chips holds a trial, it is planned on one.
  alone = budget.parts(config, chip, 1)
  assert [p.plan.setting.devices for p in alone] == [1] * 6
  assert not alone[0].plan.fits


def test_shared_steps_are_taken_once(chip):
  config = _config(optimizers='adamw', axis_tokens=(2,))
  config.schedule.kind = 'wsd'
  _, short, long = budget.parts(config, chip, 1)
  # The last fifth is the decay.
  assert (short.steps, long.steps) == (160, 1600)
  assert short.alone == pytest.approx(5 * short.hours)
  assert long.alone == pytest.approx(long.hours)


def test_the_table_says_what_half_of_each_budget_does(chip):
  config = _config()
  found = budget.parts(config, chip, 1)
  out = Console(file=io.StringIO(), width=160)
  spread = certainty.Spread(0.02, 0.3, 'a test')
  budget_table.show(config, found, 'h100', 1, spread, out)
  text = out.file.getvalue()
  for part in found:
    assert f'{part.kind} {part.cell}' in text
  widths = [certainty.half_width(spread, n, 2) for n in (3, 2)]
  seeds = next(row for row in text.splitlines() if row.startswith('seeds'))
  assert all(f'± {width:.2g} nats' in seeds for width in widths)
  trials = next(row for row in text.splitlines() if row.startswith('trials'))
  # Rates in factors of two, then of four.
  assert f'{certainty.missed(spread, 2):.2g} nats' in trials
  assert f'{certainty.missed(spread, 4):.2g} nats' in trials
  assert 'from a test' in text


def test_the_papers_study_has_its_targets():
  config = paper_study.get_config()
  targets = cells.cells(config)
  assert len(targets) * config.study.seeds == 12
  for cell in targets:
    words = cell.model, cell.optimizer, 'multi' if cell.point else 'single'
    wanted = base.flatten(paper_target.get_config(','.join(words)))
    lr = {'lr': wanted['optimizer.lr']}
    found = base.flatten(cells.target_config(config, cell, lr, 0))
    unlike = {key for key in wanted if found[key] != wanted[key]}
    # Resolved shapes are the same; LLaMA shares GPT-2's tokenizer.
    allowed = {'model.num_kv_heads', 'parametrization.base_depth'}
    if cell.model == 'llama':
      allowed |= {
        'model.mlp_dim',
        'parametrization.base_mlp_dim',
        'model.vocab_size',
        'data.source',
      }
    assert unlike == allowed


@pytest.mark.parametrize(
  ('keys', 'said'),
  [
    ('mesh.fsp=8', 'no such key; did you mean mesh.fsdp'),
    ('microbatches=x', 'give a value as 1'),
    ('optimizer.betas=1', 'only numbers and words'),
  ],
)
def test_wrong_keys_of_targets_take_one_line(keys, said):
  config = _config(target_keys=keys)
  with pytest.raises(ValueError, match=said):
    cells.target_config(config, cells.cells(config)[0], {}, 0)


@pytest.mark.slow
def test_the_papers_study_is_planned(run_command):
  arguments = '--config=experiments/paper_study.py', '--chip=h100'
  result = run_command('study', '--plan', *arguments, '--devices=64')
  assert result.returncode == 0, result.stderr
  rows = result.stdout.splitlines()
  assert sum(row.startswith('train ') for row in rows) == 12
  assert any('for 12 target runs' in row for row in rows)
  # A part of it is what launch.bench says of the target.
  target = '--config=experiments/paper_target.py:gpt2,adamw,single'
  one = run_command('bench', '--plan', target, '--chip=h100', '--devices=64')
  step = re.search(r'FLOP and ([\d.]+ s) a step', one.stdout)[1]
  assert step in next(row for row in rows if row.startswith('train gpt2-adamw'))
