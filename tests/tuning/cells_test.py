"""Cells of a study: their points, names and what each of them trains."""

import math
import pathlib

from hypothesis import given, settings, strategies as st
import pytest

from steepest.experiments import base, cpu_study, quickstart
from steepest.models import config as model_config, parametrization
from steepest.training import config as config_lib
from steepest.tuning import cells

_ROOT = pathlib.Path(__file__).parent.parent.parent


def _config(**study):
  config = base.get_study_config()
  for key, value in study.items():
    config.study[key] = value
  return config


_SIZES, _KINDS = [128, 256, 512, 1024], ['cosine', 'wsd', 'constant']
_VALUES = st.fixed_dictionaries(
  {
    'axis_width': st.lists(st.integers(1, 3), unique=True),
    'axis_depth': st.lists(st.integers(1, 3), unique=True),
    'axis_parametrization': st.lists(st.sampled_from(['sp']), unique=True),
    'axis_epochs': st.lists(st.integers(1, 8), unique=True),
    'axis_batch_size': st.lists(st.sampled_from(_SIZES), unique=True),
    'axis_schedule': st.lists(st.sampled_from(_KINDS), unique=True),
    'axis_tokens': st.lists(st.sampled_from([0.5, 1, 2, 4.0]), unique=True),
    'axes_mode': st.sampled_from(cells.MODES),
  }
)


@given(_VALUES, st.sampled_from(['', 'epochs', 'batch_size,tokens']))
@settings(max_examples=8, deadline=None)
def test_every_target_has_a_directory_and_the_tokens_it_says(study, retune):
  study = {k: tuple(v) if k != 'axes_mode' else v for k, v in study.items()}
  config = _config(**study, retune=retune, models='gpt2', optimizers='lion')
  found = cells.cells(config)
  names = [str(cell) for cell in found]
  assert len(set(names)) == len(names)
  # The study's own values add nothing to a name.
  assert names[0] == 'gpt2-lion'
  others = [len(axis.others) for axis in cells.axes(config)]
  count = 1 + sum(others)
  if study['axes_mode'] == 'product':
    count = math.prod(n + 1 for n in others)
  assert len(found) == count
  own = config.study.target_steps * config.batch_size
  for cell in found[:40]:
    run = cells.target_config(config, cell, {}, 0)
    point = dict(cell.point)
    share = point['tokens'] if 'tokens' in point else 1
    assert run.steps * run.batch_size == share * own
    for axis, value in (
      ('width', run.model.width // config.model.width),
      ('depth', run.model.num_layers // config.model.num_layers),
      ('parametrization', run.parametrization.kind),
      ('epochs', run.data.epochs),
      ('batch_size', run.batch_size),
      ('schedule', run.schedule.kind),
    ):
      assert (axis in point) == (f'-{axis}=' in str(cell))
      if axis in point:
        assert value == point[axis]
    searched = cells.search_of(config, cell)
    names = {name for name, _ in searched.point}
    assert names == set(point) & set(retune.split(','))
    # A search never depends on what is not retuned.
    trial = cells.trial_config(config, searched, {'lr': 1e-3}, 0)
    assert trial.model.width == config.model.width
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


@pytest.mark.parametrize('model', ['gpt2', 'llama'])
def test_targets_are_wider_proxies_under_mup(model):
  config = quickstart.get_config()
  cell = cells.Cell(model, 'sophia')
  proxy = cells.trial_config(config, cell, {'lr': 1e-3}, 0)
  target = cells.target_config(config, cell, {'lr': 1e-3}, seed=1)
  ratio = config.study.width_ratio
  assert target.model.width == ratio * proxy.model.width
  shapes = model_config.resolve(target.model, 2048, target.dtype)
  rules = parametrization.resolve(target.parametrization, shapes)
  assert shapes.head_dim == proxy.model.head_dim
  assert shapes.num_heads == ratio * proxy.model.num_heads
  assert shapes.mlp_dim == ratio * proxy.model.mlp_dim
  for fan_in in ('width', 'heads', 'mlp'):
    factors = rules.factors(rules.hidden(fan_in)[0])
    wanted = (1 / ratio, ratio, 1 / ratio)
    assert (factors.lr, factors.rho, factors.eps) == wanted
  assert rules.readout_multiplier == 1 / ratio
  # The proxy is its own base, where µP is the standard parametrization.
  shapes = model_config.resolve(proxy.model, 2048, proxy.dtype)
  rules = parametrization.resolve(proxy.parametrization, shapes)
  assert rules.factors(rules.hidden('mlp')[0]).lr == 1.0


def test_widths_that_are_searched_share_their_base():
  config = _config(
    axis_width=(1, 4), width_ratio=1, retune='width', trial_seeds=2
  )
  own, wide = (cells.Cell('llama', 'lion', p) for p in ((), (('width', 4),)))
  a, b = (cells.trial_config(config, c, {}, 1) for c in (own, wide))
  assert (a.seed, b.seed) == (1, 1)
  assert b.model.width == 4 * a.model.width
  assert b.model.mlp_dim == 4 * a.model.mlp_dim
  assert a.parametrization == b.parametrization
  target = cells.target_config(config, wide, {}, 0)
  assert target.model.to_dict() == b.model.to_dict()
  name = cells.trial_dir(config, pathlib.Path(), wide, 3, 1)
  assert str(name) == 'trials/llama-lion-width=4/003/seed=1'


def test_each_size_has_its_tokens_for_each_parameter():
  config = _config(
    tokens_per_parameter=20.0, axis_width=(1, 4), axis_tokens=(0.5,)
  )
  config.study.axes_mode = 'product'
  config.model.update(vocab_size=512, width=32, num_heads=2, num_layers=3)
  config.model.context, config.batch_size = 16, 2
  for cell in cells.cells(config):
    if not str(cell).startswith('gpt2-adamw'):
      continue
    run = cells.target_config(config, cell, {}, 0)
    d = run.model.width
    # Token and position embeddings, blocks with biases, the last norm.
    count = (512 + 16) * d + 3 * (12 * d * d + 13 * d) + 2 * d
    assert cells.parameters(run) == count
    tokens = count * (10 if ('tokens', 0.5) in cell.point else 20)
    assert abs(run.steps * 2 * 16 - tokens) <= 16


def test_cells_differ_only_in_their_optimizer():
  config = quickstart.get_config()
  a, b = (
    cells.target_config(config, cells.Cell('llama', o), {}, 0).to_dict()
    for o in ('adamw', 'lion')
  )
  a.pop('optimizer'), b.pop('optimizer')
  assert a == b


def test_all_optimizers_are_those_that_there_are():
  config = quickstart.get_config()
  config.study.optimizers = 'all'
  files = {path.stem for path in (_ROOT / 'optimizers').glob('*.py')}
  found = cells.optimizers(config)
  assert {'adamw', 'lion', 'sophia'} <= set(found) <= files
  assert found == sorted(found)
  assert len(cells.cells(config)) == 2 * len(found)
  config.study.optimizers = 'sophia,adamw'
  assert cells.optimizers(config) == ['sophia', 'adamw']
  assert len(cells.cells(cpu_study.get_config())) == 12


_MINE = """
import optax
from steepest.optimizers.optimizer import Optimizer, lr
OPTIMIZER = Optimizer(
  'steady', 'Steady', 'here', lambda h: optax.identity(), {'lr': lr(0.1)})
"""


def test_files_outside_name_no_directories(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('a.py', 'b.py'):
    (tmp_path / name).write_text(_MINE)
  config = quickstart.get_config()
  config.study.update(models='gpt2', optimizers='adamw,./a.py')
  config_lib.make_absolute(config)
  monkeypatch.chdir('/')
  found = cells.cells(config)
  assert list(map(str, found)) == ['gpt2-adamw', 'gpt2-steady']
  run = cells.target_config(config, found[1], {}, 0)
  assert run.optimizer.name == str(tmp_path / 'a.py')
  config.study.optimizers += f',{tmp_path / "b.py"}'
  with pytest.raises(ValueError, match='once, with its own name'):
    cells.cells(config)
  monkeypatch.chdir(tmp_path)
  config.eval_tasks = 'arc_easy:5,./trivia.py:20'
  config_lib.make_absolute(config)
  assert config.eval_tasks == f'arc_easy:5,{tmp_path / "trivia.py"}:20'


@pytest.mark.parametrize(
  ('study', 'said'),
  [
    ({'optimizers': 'lino'}, "did you mean 'lion'"),
    ({'optimizers': 'lion,lion'}, 'once'),
    ({'axis_epochs': (0,)}, r'axis_epochs=\(0,\): give whole numbers above 0'),
    ({'axis_epochs': (1.5,)}, 'give whole numbers'),
    ({'axis_batch_size': (64, 64)}, 'each value once'),
    ({'axis_batch_size': (768,)}, r'13333\.3 steps of a run'),
    ({'axis_schedule': ('cosin',)}, 'there are constant, linear, cosine, wsd'),
    ({'axis_parametrization': ('up',)}, 'there are sp, mup'),
    ({'axis_tokens': (1e-9,)}, 'steps of a run'),
    ({'axes_mode': 'all'}, 'one_at_a_time, product'),
    ({'retune': 'epoch'}, 'there are width, depth, parametrization, '),
    ({'retune': 'width', 'axis_width': (3,)}, 'set study.width_ratio=1'),
    ({'tokens_per_parameter': 20.0}, 'set model.vocab_size'),
    ({'target': {'mesh': {'fspd': 8}}}, 'study.target: .*fspd'),
    ({'target': {'mesh': {'fsdp': 'all'}}}, 'study.target: .*fsdp'),
  ],
)
def test_what_is_wrong_with_a_study_takes_one_line(study, said):
  with pytest.raises(ValueError, match=said) as error:
    config = _config(**study)
    for cell in cells.cells(config):
      cells.search_of(config, cell)
      cells.target_config(config, cell, {}, 0)
  assert '\n' not in str(error.value)
