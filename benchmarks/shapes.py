"""Model shapes of the benchmarks, as in published reference figures."""

import dataclasses
from typing import Any

# From this value of layers × width², a model takes fewer steps.
_LARGE = 10**8


@dataclasses.dataclass(frozen=True)
class Row:
  """A model and its batch."""

  model: str
  layers: int
  width: int
  heads: int
  mlp: int
  vocab: int
  batch: int
  context: int
  dtype: str = 'bfloat16'

  @property
  def large(self) -> bool:
    return self.layers * self.width**2 > _LARGE

  def shape(self, **more: Any) -> dict[str, Any]:
    """Returns the SHAPE of jax_step.py and pytorch_baseline.py."""
    return {
      **dataclasses.asdict(self),
      'optimizer': 'adamw',
      'remat': 'none',
      'hessian_subset': 1,
      'one_core': False,
      'profile': False,
      **more,
    }


GPU = {
  '124m': Row('gpt2', 12, 768, 12, 3072, 50_304, 64, 1024),
  '124m-12': Row('gpt2', 12, 768, 12, 3072, 50_304, 12, 1024),
  '51m': Row('gpt2', 8, 512, 8, 2048, 50_304, 64, 1024),
  '2.65b': Row('gpt2', 32, 2560, 32, 10_240, 50_304, 4, 2048),
  '2.65b-20': Row('gpt2', 32, 2560, 20, 10_240, 50_304, 4, 2048),
  'llama': Row('llama', 12, 768, 12, 2048, 32_000, 64, 1024),
  'llama-2.7b': Row('llama', 32, 2560, 20, 6912, 32_000, 4, 2048),
}
CPU = {
  '0.34m': Row('gpt2', 4, 64, 4, 256, 2048, 16, 128, 'float32'),
  '1.07m': Row('gpt2', 4, 128, 8, 512, 2048, 16, 128, 'float32'),
  '12.3m': Row('gpt2', 6, 384, 6, 1536, 4096, 4, 256, 'float32'),
  'llama-0.5m': Row('llama', 4, 64, 4, 192, 2048, 16, 128, 'float32'),
}
GROUPS = {'gpu': list(GPU), 'proxy': list(CPU)}
