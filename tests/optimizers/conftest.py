"""Chains without a model, and parameters of three roles."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models.parametrization import Factors
from steepest.optimizers import build

SHAPES = {'embedding': (20, 6), 'hidden': (6, 10), 'gain': (6,)}


class Setup(NamedTuple):
  """A chain, and the hyperparameters of a run."""

  chain: build.Chain
  hypers: dict[str, np.float32]

  def update(self, grads: Any, state: Any, params: Any, step: int = 0):
    """One update of the chain."""
    return self.chain.update(grads, state, params, step, self.hypers)


def factors(kind: str = 'hidden', decay: float = 1.0, **changed) -> Factors:
  """Returns the factors of a parameter, 1 where nothing else is said."""
  ones = dict.fromkeys(('lr', 'spectral', 'norm', 'rho', 'eps'), 1.0)
  decays = dict.fromkeys(build.DECAY_MODES, decay)
  return Factors(**{**ones, 'decay': decays, 'kind': kind, **changed})


def _setup(
  name: str, tree: Any = None, *, steps: int = 100, schedule=None, **keys
) -> Setup:
  """Returns an optimizer's chain; no warm-up and a constant schedule."""
  config = base.get_config()
  config.optimizer.update({'name': name, **keys})
  config.schedule.update({'kind': 'constant', 'warmup_steps': 0})
  config.schedule.update(schedule or {})
  tree = tree or {kind: factors(kind) for kind in SHAPES}
  return Setup(
    build.build(config.optimizer, config.schedule, tree),
    build.hyperparameters(config.optimizer, config.schedule, steps),
  )


@pytest.fixture(scope='session')
def setup():
  """(name, tree of factors, steps=, schedule={…}, KEY=…) → Setup."""
  return _setup


@pytest.fixture(scope='session')
def plain():
  """(kind, decay, FIELD=…) → factors of a parameter."""
  return factors


@pytest.fixture(scope='session')
def draw():
  """(seed, shapes) → normal float32 arrays of three roles."""

  def make(seed: int, shapes: dict | None = None, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return {
      k: jnp.asarray(rng.normal(size=s) * scale, 'f')
      for k, s in (shapes or SHAPES).items()
    }

  return make


@pytest.fixture
def float64():
  """Double precision, as the traces of references have it."""
  with jax.enable_x64(True):
    yield
