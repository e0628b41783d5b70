"""Values that strangers give to --config.KEY: whatever they are, one line.

Each key gets values of its own and of every other kind. The command then comes
as far as its first training step, which is traced, or ends with a line that
says what is wrong, and leaves nothing.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import re
import shutil
import sys

from absl import flags
from hypothesis import HealthCheck, given, settings, strategies as st
import jax
import numpy as np
import pytest

from steepest.data import corpus
from steepest.experiments import base
from steepest.launch import study, train
from steepest.training import run as assemble
from steepest.training.step import train_step

_ROOT = pathlib.Path(__file__).parent.parent.parent
# As many for the ordinary run, and for the slow one.
_FEW, _MANY = 60, 3000
_SMALL = (
  f'--config.data.source=flat:{_ROOT}/tests/golden/tokens.npy',
  '--config.model.num_layers=1',
  '--config.model.width=16',
  '--config.model.context=16',
  '--config.steps=3',
)
_VARIANTS = ('gpt2,adamw', 'llama,lion', 'gpt2,sophia', 'llama,sophia')
_KEYS = base.flatten(base.get_config())
_STUDY = {
  key: value
  for key, value in base.flatten(base.get_study_config()).items()
  if key.startswith('study.')
}
_INTEGERS = st.one_of(
  st.sampled_from([-1, 0, 1, 2, 3, 8, 2**31, 2**32, 2**63, 2**70]),
  st.integers(-(2**70), 2**70),
  st.integers(0, 64),
)
_REALS = st.one_of(
  st.floats(),
  st.floats(0, 1),
  st.sampled_from(['nan', 'inf', '-inf', '1e400', '1e-400', '0', '-0.0']),
)
_TEXTS = st.one_of(
  st.text(max_size=12),
  st.sampled_from(
    [
      *('', ' ', 'None', 'true', 'False', '[', '{}', '-', '__import__("os")'),
      *('../../etc/passwd', 'a\nb', '\x00', '\udcff', '<script>', '$(touch x)'),
      *('x' * 5000, '0x10', '1e3'),
    ]
  ),
)
_PAIRS = st.one_of(
  st.lists(_REALS, max_size=3).map(lambda reals: ','.join(map(str, reals))),
  st.sampled_from(['()', '(1,)', '0.9,0.99', "('a', 'b')", '(nan, 0.9)', '(']),
)
_NAMES = st.sampled_from(
  [
    *('gpt2', 'llama', 'adamw', 'lion', 'sophia', 'mup', 'sp', 'completep'),
    *('times_lr', 'times_role_lr', 'hutchinson', 'constant', 'linear', 'wsd'),
    *('bfloat16', 'float64', 'full', 'silu', 'linear:2', 'tune'),
    *('hf:', 'hf:/', '*'),
    *('hf:tests/golden/gpt2', 'hf:tests/golden/tokens.npy', 'shards:/'),
    *('flat:/dev/zero', 'flat:tests', 'arc_easy', 'arc_easy:-1', 'x:1', '²'),
  ]
)
_OF_TYPE = {
  bool: st.sampled_from(['True', 'false', '2', 'maybe']),
  int: _INTEGERS.map(str),
  float: _REALS.map(str),
  str: _NAMES | _TEXTS,
  tuple: _PAIRS,
}
# What the optimizer's or the model's own file says may be anything.
_OF_TYPE[type(None)] = st.one_of(*_OF_TYPE.values())


@st.composite
def _overrides(draw, keys):
  """Draws keys and values, of their own kind more often than of another."""
  found = []
  for _ in range(draw(st.integers(1, 3))):
    key = draw(st.sampled_from(sorted(keys)))
    kind = _OF_TYPE[type(keys[key])]
    if not draw(st.integers(0, 3)):
      kind = st.one_of(*_OF_TYPE.values())
    found.append((key, draw(kind)))
  return found


class _Reached(BaseException):
  """The run has come as far as its first step."""


@contextlib.contextmanager
def _own_flags():
  """What the command defines and parses is gone afterwards."""
  before, argv = set(flags.FLAGS), sys.argv
  try:
    yield
  finally:
    sys.argv = argv
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def _call(command, arguments):
  """Returns exit status and stderr of a command; None: it would train."""
  said = io.StringIO()
  with (
    _own_flags(),
    contextlib.redirect_stderr(said),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    sys.argv = [f'launch/{command.__name__}.py', *arguments]
    try:
      command.main()
    except SystemExit as end:
      return end.code, said.getvalue()
    except _Reached:
      return None, said.getvalue()
  raise AssertionError('the command came back')


def _trace(setup, data, hypers, *_):
  """In the place of `fit`: all of it up to compiling the first step."""
  batch = next(data.train(0))
  whole = dataclasses.replace(setup, microbatches=1)
  fn = functools.partial(train_step, whole)
  with jax.set_mesh(setup.mesh):
    jax.eval_shape(fn, setup.shapes, batch, hypers, np.uint32(0))
  raise _Reached


def _stop(*_):
  """In the place of what a study does once it is checked."""
  raise _Reached


def _fuzz(command, keys, given_, workdir, examples):
  ends = {1: 0, None: 0}

  @settings(
    max_examples=examples,
    deadline=None,
    database=None,
    # The ordinary run always tries the same, the slow one ever others.
    derandomize=examples < _MANY,
    suppress_health_check=list(HealthCheck),
  )
  @given(st.sampled_from(given_), _overrides(keys))
  def check(arguments, overrides):
    words = [f'--config.{key}={value}' for key, value in overrides]
    code, said = _call(command, [*arguments, f'--workdir={workdir}', *words])
    ends[code] += 1
    if code is None:
      shutil.rmtree(workdir, ignore_errors=True)
      return
    lines = [x for x in said.splitlines() if not x.startswith('note: ')]
    assert len(lines) == 1 and lines[0].startswith('error: '), said
    assert len(said) < 1000, said
    # Never one of Python's own that nobody thought of.
    assert not re.match(r'error: \w*Error: ', said), said
    # It names what was given: a key, a value, or the file behind it.
    known = [key.rpartition('.')[2].rstrip('s') for key, _ in overrides]
    for _, value in overrides:
      known += [value, value.partition(':')[2]]
    assert any(text and text in said for text in known), said
    assert not workdir.exists(), said

  check()
  # Neither end may be all there is.
  assert ends[None] and ends[1], ends


@pytest.mark.parametrize(
  'examples', [_FEW, pytest.param(_MANY, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('command', [train, study])
def test_hostile_values_end_in_one_line(
  monkeypatch, tmp_path, command, examples
):
  monkeypatch.chdir(_ROOT)
  monkeypatch.setattr(assemble, 'fit', _trace)
  monkeypatch.setattr(corpus, 'ready', _stop)
  keys, given_ = _STUDY, [('--config=experiments/quickstart.py',)]
  if command is train:
    keys = _KEYS
    given_ = [(f'--config=experiments/tiny.py:{v}', *_SMALL) for v in _VARIANTS]
  _fuzz(command, keys, given_, tmp_path / 'run', examples)
