"""The coordinate check passes the right rules and fails each wrong one."""

import dataclasses
import io
import json

import numpy as np
import pytest
import rich.console

from steepest.models import parametrization
from steepest.models.parametrization import Parametrization
from steepest.optimizers import optimizer as optimizer_lib
from steepest.training import state
from steepest.tuning import coordinates


class _Attention(Parametrization):
  @property
  def attention_scale(self):
    return self.model.head_dim**-0.5


class _Readout(Parametrization):
  @property
  def readout_multiplier(self):
    return 1.0


def _wrong(**changes):
  """Rules with other factors: numbers, or functions of the right ones."""

  class Wrong(Parametrization):
    def factors(self, role):
      right = super().factors(role)
      made = {k: v(right) if callable(v) else v for k, v in changes.items()}
      return dataclasses.replace(right, **made)

  return Wrong


_MAIN = ('adamw', 'lion', 'sophia')
# A wrong rule -> its class and a quantity that must give it away.
_WRONG = {
  'attention': (_Attention, 'level/last_block/attention_limits'),
  'readout': (_Readout, 'change/logits'),
  'hidden_lr': (_wrong(lr=1.0), 'change/last_block'),
  'spectral_lr': (_wrong(spectral=1.0), 'update/hidden/spectral'),
  'angle_lr': (_wrong(spectral=1.0), 'change/last_block'),
  'norm_lr': (_wrong(norm=lambda f: f.lr), 'update/hidden/spectral'),
  'rho': (_wrong(rho=1.0), 'unclipped/hidden'),
  'sp': (Parametrization, 'change/last_block'),
}


# Optimizers whose hidden matrices have another column than Adam's.
_RULES = {
  'muon': 'spectral_lr',
  'adamh': 'angle_lr',
  **dict.fromkeys(('dion', 'muonh', 'normuon', 'scion'), 'norm_lr'),
}


def _check(model, optimizer, rule, widths, seeds, depths=(2,), depth='none'):
  """Returns the quantities that fail."""
  wrong, _ = _WRONG.get(rule, (Parametrization, ''))
  resolve = parametrization.resolve

  def rules(config, shapes):
    right = resolve(config, shapes)
    fields = dataclasses.fields(right)
    return wrong(**{f.name: getattr(right, f.name) for f in fields})

  kind = 'sp' if rule == 'sp' else 'mup'
  settings = coordinates.Settings(
    model, optimizer, kind, depth, widths, depths, steps=10, seeds=seeds
  )
  console = rich.console.Console(file=io.StringIO())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parametrization, 'resolve', rules)
    rows = coordinates.check(settings, console)
  for row in rows:
    if row.band is not None:
      print(model, optimizer, rule, row.quantity, f'{row.slope:+.2f}')
  return {row.quantity for row in rows if not row.passed}


def test_the_right_rules_pass():
  """That wrong ones do not is seen of the command, below."""
  assert not _check('gpt2', 'lion', 'right', (32, 128), 1)


def _rules():
  """Returns (optimizer, rule) of all checks.

  Prodigy has none: its estimate starts at 1e-6 and takes more steps to grow, as
  do Kron's factors, which start at 1.
  """
  for optimizer in sorted({*optimizer_lib.names()} - {'kron', 'prodigy'}):
    wrong = [_RULES[optimizer] if optimizer in _RULES else 'hidden_lr']
    if optimizer in _MAIN:
      wrong = ['attention', 'readout', 'hidden_lr', 'sp']
    if optimizer == 'sophia':
      wrong.append('rho')
    rules = ['right', *wrong]
    yield from ((optimizer, rule) for rule in rules)


@pytest.mark.slow
@pytest.mark.parametrize('optimizer, rule', list(_rules()))
@pytest.mark.parametrize('model', ['gpt2', 'llama'])
def test_every_rule(model, optimizer, rule):
  if rule != 'right':
    assert _WRONG[rule][1] in _check(model, optimizer, rule, (32, 128), 2)
  elif optimizer in _MAIN:
    assert not _check(model, optimizer, rule, (32, 128), 2)
  else:
    # Two runs at two widths leave some slopes to chance.
    assert not _check(model, optimizer, rule, (32, 64, 128, 256), 4)


def test_attention_logits_are_those_of_the_model():
  """Softmax of the logits times the values is what the output layer gets."""
  for model in ('gpt2', 'llama'):
    settings = coordinates.Settings(
      model, 'lion', 'mup', 'none', (32, 64), (2,), 1, 1
    )
    size = coordinates.Size(settings, 64, 2)
    params = state.init(size.setup, 0).params
    # Queries start at zero, where every scale gives the same logits.
    kernel = params['block_0']['query']['kernel']
    params['block_0']['query']['kernel'] = kernel + np.random.default_rng(
      0
    ).normal(size=kernel.shape).astype('f4')
    tokens = np.arange(2 * 64, dtype=np.int32).reshape(2, 64)
    found = size.activations(params, tokens)
    logits = np.full((2, 4, 64, 64), -np.inf)
    rows, columns = np.tril_indices(64)
    logits[:, :, rows, columns] = found['first_block/attention_logits']
    # A pair of a token with itself: the square of its key's length.
    key = np.asarray(found['first_block/key']).reshape(2, 64, 4, 16)
    squares = (key**2).sum(-1).transpose(0, 2, 1) * 8**0.5 / 16
    limits = found['first_block/attention_limits'][:, :, rows == columns]
    np.testing.assert_allclose(limits, squares, rtol=1e-4)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    value = np.asarray(found['first_block/value']).reshape(2, 64, 4, 16)
    mixed = np.einsum('BHqk,BkHh->BqHh', weights, value).reshape(2, 64, 64)
    output = params['block_0']['output']
    expected = mixed @ np.asarray(output['kernel'])
    if 'bias' in output:
      expected += np.asarray(output['bias'])[None, None]
    np.testing.assert_allclose(found['first_block/output'], expected, atol=2e-5)


def test_text_is_the_same_for_every_width():
  text = coordinates.read_text()
  a = coordinates.text_batch(text, 4, 16, seed=1, step=2)
  b = coordinates.text_batch(coordinates.read_text(), 4, 16, seed=1, step=2)
  np.testing.assert_array_equal(a['inputs'], b['inputs'])
  np.testing.assert_array_equal(a['inputs'][:, 1:], a['targets'][:, :-1])
  c = coordinates.text_batch(text, 4, 16, seed=1, step=3)
  assert (a['inputs'] != c['inputs']).any()


def test_the_command_fails_wrong_rules(fork_commands, tmp_path):
  out = tmp_path / 'out'
  few = ['--widths=32,128', '--seeds=1', '--optimizer=lion']
  (failed,) = fork_commands(
    [('coordcheck', [*few, '--parametrization=sp', f'--out={out}'])]
  )
  assert failed.code == 1 and not failed.err
  last = failed.out.splitlines()[-1]
  assert last.startswith('coordinate check failed: ')
  assert last.endswith(f'{out / "coordcheck.html"}')
  saved = json.loads((out / 'coordcheck.json').read_text('utf-8'))
  assert saved['passed'] is False
  rows = {row['quantity']: row for row in saved['rows']}
  # Each of Lion's updates is lr, and sp has no factor on it.
  assert rows['update/hidden']['slope'] == pytest.approx(0, abs=1e-3)
  for name in ('update/hidden', 'change/last_block', 'change/logits'):
    assert rows[name]['passed'] is False
  assert {p.name for p in out.iterdir()} == {
    'coordcheck.json',
    'coordcheck.html',
  }
