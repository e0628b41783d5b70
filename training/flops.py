"""Floating-point operations of a training run, by formula."""

from typing import Any

from flax import traverse_util
import numpy as np

from steepest.models.config import ModelConfig

CONVENTION = (
  'per token 6·N + 12·layers·heads·head_dim·context, N without position '
  'embeddings and, where the readout has its own matrix, without the input '
  'embedding; full, not causal, attention; recomputation and curvature '
  'passes not counted; over the dense bfloat16 peak of the devices'
)

# Cost of a curvature estimate relative to a gradient: sampled labels take one
# gradient, a Hessian-vector product about two.
CURVATURE_COST = {'gnb': 1.0, 'hutchinson': 2.0}


def of_estimate(estimator: str, subset: int) -> float:
  """Returns a curvature estimate's cost relative to a step's gradient.

  Args:
    estimator: a key of CURVATURE_COST.
    subset: the estimate uses one in `subset` sequences.
  """
  return CURVATURE_COST[estimator] / subset


def count(params: Any) -> dict[str, int]:
  """Returns the number of parameters: all, and without embeddings.

  Args:
    params: arrays or their shapes.
  """
  sizes = {
    path: int(np.prod(leaf.shape))
    for path, leaf in traverse_util.flatten_dict(params).items()
  }
  outside = ('embedding', 'positions', 'readout')
  return {
    'parameters': sum(sizes.values()),
    'parameters_without_embeddings': sum(
      size for path, size in sizes.items() if path[0] not in outside
    ),
  }


def per_token(params: Any, model: ModelConfig) -> float:
  """Returns the FLOPs per token, forward and backward; see CONVENTION."""
  n = count(params)['parameters_without_embeddings']
  n += model.vocab_size * model.width
  heads = model.num_heads * model.head_dim
  return 6.0 * n + 12.0 * model.num_layers * heads * model.context
