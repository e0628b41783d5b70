"""Axes of a study: points, names and what a point changes."""

import math

from hypothesis import given, settings, strategies as st
import pytest

from steepest.experiments import base, cpu_study
from steepest.tuning import axes, cells


def _config(**study):
  config = base.get_study_config()
  config.study.update(study)
  return config


_VALUES = st.fixed_dictionaries(
  {
    'axis_epochs': st.lists(st.integers(1, 8), unique=True),
    'axis_batch_size': st.lists(
      st.sampled_from([128, 256, 512, 1024]), unique=True
    ),
    'axis_schedule': st.lists(
      st.sampled_from(['cosine', 'wsd', 'constant']), unique=True
    ).map(','.join),
    'axis_tokens': st.lists(st.sampled_from([0.5, 1, 2, 4.0]), unique=True),
    'axes_mode': st.sampled_from(axes.MODES),
  }
)


@given(_VALUES, st.sampled_from(['', 'epochs', 'batch_size,tokens']))
@settings(max_examples=12, deadline=None)
def test_every_target_has_a_directory_and_the_tokens_it_says(study, retune):
  config = _config(**study, retune=retune)
  found = cells.cells(config)
  names = [str(cell) for cell in found]
  assert len(set(names)) == len(names)
  # What there was before there were axes has the same name.
  assert names[:6] == [
    f'{m}-{o}' for o in ('adamw', 'lion', 'sophia') for m in ('gpt2', 'llama')
  ]
  others = [len(axis.others) for axis in axes.axes(config)]
  count = 1 + sum(others)
  if study['axes_mode'] == 'product':
    count = math.prod(n + 1 for n in others)
  assert len(found) == 6 * count
  own = config.study.target_steps * config.batch_size
  for cell in found:
    run = cells.target_config(config, cell, {}, 0)
    point = dict(cell.point)
    share = point['tokens'] if 'tokens' in point else 1
    assert run.steps * run.batch_size == share * own
    for axis, value in (
      ('epochs', run.data.epochs),
      ('batch_size', run.batch_size),
      ('schedule', run.schedule.kind),
    ):
      assert (axis in point) == (f'{axis}=' in str(cell))
      if axis in point:
        assert value == point[axis]
    searched = cells.search_of(config, cell)
    assert {name for name, _ in searched.point} == set(point) & set(
      retune.split(',')
    )
    # A search never depends on what is not retuned.
    trial = cells.trial_config(config, searched, {'lr': 1e-3})
    assert trial.steps * trial.batch_size == (
      config.steps * config.batch_size * (share if 'tokens' in retune else 1)
    )


def test_a_larger_batch_is_the_same_run_in_fewer_steps():
  config = _config(axis_batch_size=(2048, 64, 4))
  config.microbatches, config.eval_every = 8, 300
  config.schedule.warmup_steps = 200
  _, large, small, least = (
    cells.target_config(config, cell, {}, 0)
    for cell in cells.cells(config)
    if (cell.model, cell.optimizer) == ('gpt2', 'lion')
  )
  assert (large.steps, large.schedule.warmup_steps) == (5000, 50)
  assert (large.eval_every, large.microbatches) == (75, 32)
  assert (small.steps, small.schedule.warmup_steps) == (160_000, 1600)
  assert (small.eval_every, small.microbatches) == (2400, 1)
  assert least.microbatches == 1


def test_the_study_of_epochs_keeps_the_names_of_single_epochs():
  names = [str(cell) for cell in cells.cells(cpu_study.get_config())]
  assert names[:2] == ['gpt2-adamw', 'llama-adamw']
  assert names[6:8] == ['gpt2-adamw-epochs=4', 'llama-adamw-epochs=4']
  assert len(names) == 12


@pytest.mark.parametrize(
  ('study', 'said'),
  [
    ({'axis_epochs': (0,)}, r'axis_epochs=\(0,\): give whole numbers above 0'),
    ({'axis_epochs': (1.5,)}, 'give whole numbers'),
    ({'axis_batch_size': (64, 64)}, 'each value once'),
    ({'axis_batch_size': (768,)}, r'13333\.3 steps of a run'),
    ({'axis_schedule': 'cosin'}, 'there are constant, linear, cosine, wsd'),
    ({'axis_tokens': (1e-9,)}, 'steps of a run'),
    ({'axes_mode': 'all'}, 'one_at_a_time, product'),
    ({'retune': 'epoch'}, 'there are epochs, batch_size, schedule, tokens'),
  ],
)
def test_what_is_wrong_with_an_axis_takes_one_line(study, said):
  config = _config(**study)
  with pytest.raises(ValueError, match=said) as error:
    for cell in cells.cells(config):
      cells.search_of(config, cell)
      cells.target_config(config, cell, {}, 0)
  assert '\n' not in str(error.value)
