"""Files that hold an optimizer, here and elsewhere, and those that do not."""

import pytest

from steepest.optimizers import optimizer

_MOMENTUM = """
import optax
from steepest.optimizers.optimizer import Hyper, Optimizer
OPTIMIZER = Optimizer(name='momentum', label='Momentum SGD',
  reference='Polyak 1964', transform=lambda h: optax.trace(h.b1),
  hyperparameters={'lr': Hyper(0.1, range=(1e-3, 1.0)), 'b1': Hyper(0.9)})
"""


def test_a_file_elsewhere_is_an_optimizer(tmp_path, monkeypatch, setup, draw):
  """θ ← θ - lr·m, m ← b1·m + g, twice by hand; decay is the chain's."""
  (tmp_path / 'mine.py').write_text(_MOMENTUM)
  monkeypatch.chdir(tmp_path)
  found = optimizer.find('./mine.py')
  assert optimizer.find('./mine.py') is found, 'loaded once'
  assert found.label == 'Momentum SGD'
  of = setup('./mine.py', weight_decay=0.01, clip_norm=0.0)
  start, g0, g1 = draw(0), draw(1), draw(2)
  params, state = start, of.chain.init(start)
  for grads in (g0, g1):
    params, state, _ = of.update(grads, state, params)
  for name, p in start.items():
    p = p - 0.1 * g0[name] - 0.01 * p
    p = p - 0.1 * (0.9 * g0[name] + g1[name]) - 0.01 * p
    assert abs(p - params[name]).max() < 1e-6


@pytest.mark.parametrize(
  'text, said',
  [
    ('x = 1', 'must define OPTIMIZER'),
    ('OPTIMIZER = 3', 'must define OPTIMIZER'),
    ('raise SystemExit(2)', 'cannot be imported: SystemExit: 2'),
    ('x =', 'SyntaxError: .*line 1'),
    ('import nowhere', 'ModuleNotFoundError: No module named .nowhere'),
    (_MOMENTUM.replace("'momentum'", "'a/b'"), 'only letters, digits, - and'),
    (_MOMENTUM.replace("'lr': Hyper(0.1, range=(1e-3, 1.0)), ", ''), "'lr' is"),
    (_MOMENTUM.replace('(1e-3, 1.0)', '(1.0, 1e-3)'), 'lowest value first'),
    (_MOMENTUM.replace('Hyper(0.9)', '0.9'), r"\['b1'\]: give a Hyper"),
    (
      _MOMENTUM.replace("label='Momentum SGD',", ''),
      "missing 1 required positional argument: 'label'",
    ),
  ],
)
def test_what_a_file_lacks_is_one_line(tmp_path, text, said):
  path = tmp_path / 'mine.py'
  with pytest.raises(FileNotFoundError, match=r'mine\.py: no such file'):
    optimizer.find(str(path))
  path.write_text(text)
  with pytest.raises(ValueError, match=said) as error:
    optimizer.find(str(path))
  assert 'mine.py' in str(error.value) and '\n' not in str(error.value)
