"""Roles, factors and initial values against Table 8, by hand."""

import pathlib

from flax import linen as nn, traverse_util
import jax
import numpy as np
import pytest

from steepest.models import parametrization
from steepest.optimizers import build

_NAMES = ('gpt2', 'llama')
# Width 128 over 32, heads 8·16 over 4·8, MLP 384 over 64: all ratios differ.
_WIDE = {
  'width': 128,
  'num_heads': 8,
  'head_dim': 24,
  'mlp_dim': 384,
  'tie_embeddings': False,
}
_BASE = {
  'base_width': 32,
  'base_num_heads': 4,
  'base_head_dim': 8,
  'base_mlp_dim': 64,
}


def _roles(built):
  flat = traverse_util.flatten_dict(built.boxed, sep='/')
  return {path: box.role for path, box in flat.items()}


def _stds(built):
  flat = traverse_util.flatten_dict(built.params, sep='/')
  return {path: float(np.std(value)) for path, value in flat.items()}


@pytest.mark.parametrize('name', _NAMES)
def test_initial_spreads(build_model, name):
  """Standard deviation of every matrix, by its role."""
  residual = (2 * 2) ** -0.5
  for kind, readout in (('sp', 128**-0.5), ('mup', 32**-0.5)):
    built = build_model(name, kind, rules=_BASE, **_WIDE)
    stds = _stds(built)
    wanted = {'embedding': 0.02, 'positions': 0.02, 'readout': readout}
    for layer in ('block_0', 'block_1'):
      for matrix in ('query', 'key', 'value', 'mlp_up', 'mlp_gate'):
        wanted[f'{layer}/{matrix}/kernel'] = 128**-0.5
      wanted[f'{layer}/output/kernel'] = (8 * 24) ** -0.5 * residual
      wanted[f'{layer}/mlp_down/kernel'] = 384**-0.5 * residual
    for path, std in stds.items():
      if path in wanted:
        assert std == pytest.approx(wanted[path], rel=0.05), (kind, path)
      else:
        assert std == 0, (kind, path)
    flat = traverse_util.flatten_dict(built.params, sep='/')
    for path, value in flat.items():
      if path.endswith(('gain', 'bias')):
        assert value[0] == path.endswith('gain'), path


def test_factors_by_hand(build_model):
  """m = 4; fan-ins 128/32, 192/32 and 384/64."""
  built = build_model('gpt2', 'mup', rules=_BASE, **_WIDE)
  factors = {
    path: built.rules.factors(role) for path, role in _roles(built).items()
  }
  lrs = {
    'query/kernel': 32 / 128,
    'key/kernel': 32 / 128,
    'value/kernel': 32 / 128,
    'mlp_up/kernel': 32 / 128,
    'output/kernel': 32 / 192,
    'mlp_down/kernel': 64 / 384,
  }
  for path, f in factors.items():
    tail = path.partition('/')[2]
    assert f.lr == pytest.approx(lrs[tail] if tail in lrs else 1), path
    if path.endswith(('gain', 'bias')):
      assert not any(f.decay.values()), path
    else:
      assert f.decay == {
        'independent': 1,
        'times_lr': 1,
        'times_role_lr': pytest.approx(f.lr),
        'over_width': pytest.approx(f.lr),
      }, path
    assert (f.rho, f.eps) == (4, 1 / 4), path
  assert built.rules.readout_multiplier == 1 / 4
  # √8/24, which at 8 would be 1/√8.
  assert built.rules.attention_scale == pytest.approx(8**0.5 / 24)


def test_rules_that_are_off_have_no_factors(build_model):
  off = {**_BASE, 'scale_rho': False, 'depth_rule': 'completep'}
  mup = build_model('gpt2', 'mup', rules={**off, 'base_depth': 1}, **_WIDE)
  sp = build_model('gpt2', 'sp', rules=_BASE, **_WIDE)
  for role in _roles(sp).values():
    f = sp.rules.factors(role)
    assert (f.lr, f.rho, f.eps) == (1, 1, 1)
    assert mup.rules.factors(role).rho == 1
  assert sp.rules.readout_multiplier == 1
  assert sp.rules.attention_scale == 24**-0.5


@pytest.mark.parametrize('name', _NAMES)
def test_without_gains_the_rest_stays(build_model, name):
  """Gains start at one: the logits are those of the model that has them."""
  with_gains, without = (
    build_model(name, norm_gain=given) for given in (True, False)
  )
  flat = lambda built: traverse_util.flatten_dict(built.params, sep='/')
  left = {k: v for k, v in flat(with_gains).items() if not k.endswith('gain')}
  assert left.keys() == flat(without).keys()
  tokens = np.arange(8)[None]
  params = {k: left[k] for k in flat(without)}
  np.testing.assert_allclose(
    without.logits(traverse_util.unflatten_dict(params, sep='/'), tokens),
    with_gains.logits(with_gains.params, tokens),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  'given, heads_dim, head_dim, mlp_dim',
  [
    # Nothing given: everything shrinks by 128/32.
    ({}, 192 / 4, 192 / 4 / 8, 96),
    # Heads of a fixed size: their number shrinks.
    ({'base_head_dim': 24}, 192 / 4, 24, 96),
    # A fixed number of heads: their size shrinks.
    ({'base_num_heads': 8}, 192 / 4, 6, 96),
    ({'base_num_heads': 2, 'base_head_dim': 24}, 48, 24, 96),
    ({'base_mlp_dim': 100}, 192 / 4, 6, 100),
  ],
)
def test_base_shapes_of_zero_follow_the_width(
  build_model, given, heads_dim, head_dim, mlp_dim
):
  rules = build_model(
    'gpt2', 'mup', rules={'base_width': 32, **given}, **_WIDE
  ).rules
  assert rules.base_heads_dim == heads_dim
  assert rules.base_head_dim == head_dim
  assert rules.base_mlp_dim == mlp_dim


@pytest.mark.parametrize('base_kv_heads', [0, 2, 4])
def test_key_and_value_heads_have_a_base(build_model, base_kv_heads):
  """4 of 8 heads of 24 features, width 128, against 4 heads of 8, width 32."""
  rules = {**_BASE, 'base_num_kv_heads': base_kv_heads}
  shapes = {**_WIDE, 'num_kv_heads': 4}
  built = build_model('llama', 'mup', rules=rules, **shapes)
  # √(o/i) / √max(o, i), here and there; 0 keeps two query heads to each.
  here = (96 / 128 / 128) ** 0.5
  out = 8 * (base_kv_heads or 2)
  there = (out / 32 / max(out, 32)) ** 0.5
  for path, role in _roles(built).items():
    if path.endswith(('key/kernel', 'value/kernel')):
      factor = built.rules.factors(role).spectral
      assert factor == pytest.approx(here / there), path


def test_the_page_renders_the_table():
  root = pathlib.Path(__file__).parent.parent.parent
  page = (root / 'docs' / 'parametrization.md').read_text('utf-8')
  for kind, rows in parametrization.TABLE.items():
    section = page.partition(f'| `{kind}` |')[2].partition('\n\n')[0]
    for role, row in rows.items():
      assert f'| {role} | {" | ".join(row)} |' in section, (kind, role)
    for column in row._fields[-4:]:
      assert f'`{column}`' in section
  cells = parametrization.BRANCH[1:]
  assert f'| branch | {" | ".join(cells)} |' in page


@pytest.mark.parametrize(
  'rule, alpha', [('completep', 1.0), ('depth_mup', 0.5)]
)
def test_depth_factors_by_hand(build_model, rule, alpha):
  """d = 4/1 at the base width, so only the depth's factors show."""
  built = build_model(
    'gpt2',
    'mup',
    rules={'depth_rule': rule, 'base_depth': 1},
    num_layers=4,
    tie_embeddings=False,
  )
  assert built.rules.residual_multiplier == 4**-alpha
  for path, role in _roles(built).items():
    f = built.rules.factors(role)
    if path.startswith('block'):
      assert f.lr == 4 ** (alpha - 1), path
      assert (f.rho, f.eps) == (4**alpha, 4**-alpha), path
      if path.endswith('kernel'):
        assert f.decay['times_lr'] == f.decay['independent'] == 1, path
        assert f.decay['times_role_lr'] == 4 ** (alpha - 1), path
    else:
      assert (f.lr, f.rho, f.eps) == (1, 1, 1), path
  # Residual projections start at the base's 1/√(2·1), not at 1/√(2·4).
  std = _stds(built)['block_3/mlp_down/kernel']
  assert std == pytest.approx(256**-0.5, rel=0.05)


def test_depth_rule_at_the_base_depth_changes_nothing(build_model):
  plain = build_model('llama', 'mup')
  ruled = build_model(
    'llama', 'mup', rules={'depth_rule': 'completep', 'base_depth': 2}
  )
  jax.tree.map(np.testing.assert_array_equal, plain.params, ruled.params)
  assert ruled.rules.residual_multiplier == 1
  for role in _roles(ruled).values():
    assert ruled.rules.factors(role).lr == 1


@pytest.mark.parametrize('name', _NAMES)
def test_decay_applies_to_matrices_embeddings_and_positions(build_model, name):
  built = build_model(name, tie_embeddings=False)
  for path, box in traverse_util.flatten_dict(built.boxed, sep='/').items():
    matrix = nn.meta.unbox(box).ndim >= 2
    assert len(box.names) == nn.meta.unbox(box).ndim
    decay = built.rules.factors(box.role).decay
    assert decay == dict.fromkeys(build.DECAY_MODES, float(matrix)), path
  kinds = {role.kind for role in _roles(built).values()}
  bias = {'bias'} if name == 'gpt2' else set()
  assert kinds == {'embedding', 'hidden', 'readout', 'gain'} | bias


@pytest.mark.parametrize('name', _NAMES)
@pytest.mark.parametrize('kind', ['sp', 'mup'])
def test_zero_initial_values(build_model, name, kind):
  built = build_model(
    name,
    kind,
    tie_embeddings=False,
    zero_init_readout=True,
    zero_init_query=True,
  )
  for path, std in _stds(built).items():
    if path == 'readout' or path.endswith('query/kernel'):
      assert std == 0, path
    elif path.endswith('kernel'):
      assert std > 0, path
  tokens = np.arange(8)[None]
  assert not jax.jit(built.logits)(built.params, tokens).any()


@pytest.mark.parametrize(
  'kind, rules, said',
  [
    ('mu', {}, r"parametrization\.kind='mu'"),
    ('mup', {'depth_rule': 'complete'}, r'depth_rule.*completep'),
    ('sp', {'depth_rule': 'completep'}, 'needs parametrization.kind=mup'),
  ],
)
def test_unknown_names_are_refused(build_model, kind, rules, said):
  with pytest.raises(ValueError, match=said):
    build_model('gpt2', kind, rules=rules)


@pytest.mark.parametrize('kind', ['sp', 'mup'])
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_multipliers_equal_scaled_weights(build_model, name, kind):
  """Factor 2 on the logits; 4 on query-key products as 2 on each side."""
  tokens = np.random.default_rng(0).integers(0, 64, (2, 16))
  plain = build_model(name, kind)
  params = plain.random()
  wanted = plain.logits(params, tokens)
  doubled = build_model(name, kind, rules={'logit_multiplier': 2.0})
  np.testing.assert_array_equal(doubled.logits(params, tokens), 2 * wanted)

  sharper = build_model(name, kind, rules={'attention_multiplier': 4.0})
  got = sharper.logits(params, tokens)
  assert not np.allclose(got, wanted, atol=1e-3)

  def scale(path, value):
    inside = jax.tree_util.keystr(path)
    return value * 2 if 'query' in inside or 'key' in inside else value

  scaled = jax.tree_util.tree_map_with_path(scale, params)
  assert scaled is not params
  np.testing.assert_allclose(
    got, plain.logits(scaled, tokens), rtol=1e-5, atol=1e-5
  )
