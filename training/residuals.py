"""What the backward pass needs of the forward pass, read from a trace.

B sequences, L tokens of one, H heads, V vocabulary.

JAX names the values that it saves. XLA stores fewer: it computes an
element-wise function of one stored value again where it is used. So a saved
value counts if it is an operand or the result of a matrix product, a sum of
several such, or comes from elsewhere; otherwise what it is a function of does.
"""

from collections.abc import Callable, Iterator
import dataclasses
import math
from typing import Any

import jax
from jax.extend import core
import numpy as np

# A prime, so that the dimension of the sequences is known by its size.
ROWS = 7919

# Primitives that move or rename numbers: the result is the same value.
_SAME = (
  'copy',
  'expand_dims',
  'name',
  'optimization_barrier',
  'reshape',
  'sharding_constraint',
  'squeeze',
  'stop_gradient',
  'transpose',
)
# Results that are materialised, whatever the operands.
_ROOTS = ('dot_general', 'gather', 'scatter', 'scatter-add', 'conv_general')


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
  """An array of the trace.

  Attributes:
    shape: of any of its forms.
    itemsize: bytes of an element.
    sources: values that it is an element-wise function of, itself if none.
  """

  shape: tuple[int, ...]
  itemsize: int
  sources: frozenset['Value'] = frozenset()

  @property
  def elements(self) -> int:
    return math.prod(self.shape)


def stored(fn: Callable[..., Any], *args: Any) -> list[Value]:
  """Returns the values of ROWS sequences that fn's backward pass needs.

  Args:
    fn: (first argument, …) → a number, differentiated by the first.
    *args: ShapeDtypeStructs; batches have ROWS rows.
  """
  saved = lambda first, *rest: jax.vjp(lambda a: fn(a, *rest), first)[1]
  closed = jax.make_jaxpr(saved)(*args)
  trace = _Trace()
  known = {v: trace.new(v.aval) for v in closed.jaxpr.invars}
  inputs = set(known.values())
  trace.run(closed.jaxpr, known)
  found: dict[Value, None] = {}
  for out in closed.jaxpr.outvars:
    value = None if isinstance(out, core.Literal) else known[out]
    if value is None or not _of_batch(value):
      continue
    # Operands are there from the forward pass, in the form that is used.
    kept = [value] if value in trace.operands else value.sources or [value]
    found |= dict.fromkeys(kept)
  return [value for value in found if value not in inputs and _of_batch(value)]


def _of_batch(value: Value) -> bool:
  return any(size and size % ROWS == 0 for size in value.shape)


class _Trace:
  """Follows values through nested jaxprs."""

  def __init__(self) -> None:
    self.operands: set[Value] = set()

  def new(self, aval: Any, sources: frozenset[Value] = frozenset()) -> Value:
    # Random keys have a dtype of their own; they are few.
    size = aval.dtype.itemsize if isinstance(aval.dtype, np.dtype) else 4
    return Value(tuple(aval.shape), size, sources)

  def run(self, jaxpr: core.Jaxpr, known: dict[Any, Value]) -> None:
    """Adds the variables of `jaxpr` to `known`."""
    for var in jaxpr.constvars:
      known.setdefault(var, self.new(var.aval))
    for eqn in jaxpr.eqns:
      inner = next(_jaxprs(eqn.params), None)
      if inner is not None and len(inner.invars) == len(eqn.invars):
        self._call(eqn, inner, known)
      else:
        self._apply(eqn, known)

  def _read(self, var: Any, known: dict[Any, Value]) -> Value:
    if isinstance(var, core.Literal):
      return self.new(var.aval)
    return known[var]

  def _call(
    self, eqn: core.JaxprEqn, inner: core.Jaxpr, known: dict[Any, Value]
  ) -> None:
    inside = {
      var: self._read(outer, known)
      for var, outer in zip(inner.invars, eqn.invars)
    }
    self.run(inner, inside)
    for var, outer in zip(inner.outvars, eqn.outvars):
      known[outer] = self._read(var, inside)

  def _apply(self, eqn: core.JaxprEqn, known: dict[Any, Value]) -> None:
    name = eqn.primitive.name
    reads = [self._read(var, known) for var in eqn.invars]
    if name == 'dot_general':
      self.operands.update(reads)
    if name in _SAME:
      for var, value in zip(eqn.outvars, reads):
        known[var] = value
      return
    for var in eqn.outvars:
      known[var] = self.new(var.aval, self._sources(name, reads, var.aval))

  def _sources(
    self, name: str, reads: list[Value], aval: Any
  ) -> frozenset[Value]:
    """Returns what a result can be computed from again, or nothing."""
    if name.startswith(_ROOTS):
      return frozenset()
    origins = frozenset(s for v in reads for s in v.sources or (v,))
    # Statistics of a token, gains and biases cost next to nothing to keep.
    half = math.prod(aval.shape) / 2
    large = [v for v in origins if _of_batch(v) and v.elements >= half]
    if len(large) > 1:
      return frozenset()
    return frozenset(large) or origins


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """Yields the functions that a call, not a loop or a branch, applies."""
  for name in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if name in params and 'length' not in params:
      value = params[name]
      yield value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
