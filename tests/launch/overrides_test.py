"""Values that strangers give to --config.KEY: whatever they are, one line.

Each key gets values of its own and of every other kind. The command then comes
as far as its first training step, which is traced, or ends with a line that
says what is wrong, and leaves nothing.
"""

import contextlib
import io
import pathlib
import shutil
import sys

from absl import flags
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import pytest

from steepest.experiments import base
from steepest.launch import assemble
from steepest.launch import cli
from steepest.launch import train
from steepest.training.step import Step

_ROOT = pathlib.Path(__file__).parent.parent.parent
# As many for the ordinary run, and for the slow one.
_FEW, _MANY = 100, 5000
_SMALL = (
  f'--config.data.source=flat:{_ROOT}/tests/golden/tokens.npy',
  '--config.model.num_layers=1',
  '--config.model.width=16',
  '--config.model.context=16',
  '--config.steps=3',
)
_VARIANTS = ('gpt2,adamw', 'llama,lion', 'gpt2,sophia', 'llama,sophia')
_KEYS = cli.flatten(base.get_config())
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
    *('bfloat16', 'float64', 'full', 'silu', 'linear:2', 'rollback:2', 'tune'),
    *('rollback:0', 'rollback:99999999999', 'skip_update', 'hf:', 'hf:/', '*'),
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


@st.composite
def _override(draw):
  """Draws a key and a value, of its own kind more often than of another."""
  key = draw(st.sampled_from(sorted(_KEYS)))
  own = draw(st.integers(0, 3)) > 0
  kinds = _OF_TYPE[type(_KEYS[key])] if own else st.one_of(*_OF_TYPE.values())
  return key, draw(kinds)


_OVERRIDES = st.lists(_override(), min_size=1, max_size=3)


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


def _call(arguments):
  """Returns exit status and stderr of launch.train; None: it would train."""
  said = io.StringIO()
  with (
    _own_flags(),
    contextlib.redirect_stderr(said),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    sys.argv = ['launch/train.py', *arguments]
    try:
      train.main()
    except SystemExit as end:
      return end.code, said.getvalue()
    except _Reached:
      return None, said.getvalue()
  raise AssertionError('the command came back')


def _trace(loop, init):
  """In the place of Loop.run: all of it up to compiling the first step."""
  program = loop.program
  batch = next(loop.data.train(0))
  step = Step(program.logits, program.chain, program.estimator, 1)
  with jax.set_mesh(program.mesh):
    jax.eval_shape(step, program.state_shapes, batch, loop._args, loop._seed)
  raise _Reached


def _fuzz(monkeypatch, workdir, examples):
  monkeypatch.chdir(_ROOT)
  monkeypatch.setattr(assemble.Loop, 'run', _trace)
  ends = {1: 0, None: 0}

  @settings(
    max_examples=examples,
    deadline=None,
    database=None,
    # The ordinary run always tries the same, the slow one ever others.
    derandomize=examples == _FEW,
    suppress_health_check=list(HealthCheck),
  )
  @given(st.sampled_from(_VARIANTS), _OVERRIDES)
  def check(variant, overrides):
    code, said = _call(
      [
        f'--config=experiments/tiny.py:{variant}',
        *_SMALL,
        f'--workdir={workdir}',
        *(f'--config.{key}={value}' for key, value in overrides),
      ]
    )
    ends[code] += 1
    if code is None:
      shutil.rmtree(workdir)
      return
    lines = said.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: '), said
    assert len(said) < 1000, said
    # It names what was given: a key, or the file behind it.
    given_ = [key.rpartition('.')[2] for key, _ in overrides]
    given_ += [value.partition(':')[2] for _, value in overrides]
    assert any(text and text in said for text in given_), said
    assert not workdir.exists(), said

  check()
  assert min(ends.values()) > examples // 10, ends


def test_hostile_values_end_in_one_line(monkeypatch, tmp_path):
  _fuzz(monkeypatch, tmp_path / 'run', _FEW)


@pytest.mark.slow
def test_thousands_of_hostile_values_end_in_one_line(monkeypatch, tmp_path):
  _fuzz(monkeypatch, tmp_path / 'run', _MANY)
