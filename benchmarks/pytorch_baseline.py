"""Times training steps of the same shapes in PyTorch; needs only torch.

    python benchmarks/pytorch_baseline.py SHAPE

benchmarks/throughput.py starts it with SHAPE, a JSON object. nanoGPT's recipe:
torch.compile, scaled_dot_product_attention, fused AdamW, clipping by global
norm; on a GPU, autocast to bfloat16 over float32 parameters. Prints the
measurements as a line of JSON.

B batch, L length, D width, H heads, h head dim, V vocabulary.
"""

import json
import os
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
  """Causal attention, with rotary positions in a LLaMA."""

  def __init__(self, shape: dict):
    super().__init__()
    width = shape['width']
    self.heads, self.rotary = shape['heads'], shape['model'] == 'llama'
    self.inputs = nn.Linear(width, 3 * width, bias=False)
    self.output = nn.Linear(width, width, bias=False)
    if self.rotary:
      half = width // self.heads // 2
      frequency_h = 10_000.0 ** -(torch.arange(half) / half)
      angle_Lxh = torch.arange(shape['context'])[:, None] * frequency_h[None]
      self.register_buffer('cos_Lxh', angle_Lxh.cos(), persistent=False)
      self.register_buffer('sin_Lxh', angle_Lxh.sin(), persistent=False)

  def forward(self, x_BxLxD):
    """Returns B×L×D."""
    B, L, D = x_BxLxD.shape
    parts = self.inputs(x_BxLxD).split(D, dim=2)
    q, k, v = (
      p.view(B, L, self.heads, D // self.heads).transpose(1, 2) for p in parts
    )
    if self.rotary:
      q, k = self._turn(q), self._turn(k)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return self.output(y.transpose(1, 2).reshape(B, L, D))

  def _turn(self, x_BxHxLxh):
    a, b = x_BxHxLxh.float().chunk(2, dim=-1)
    turned = torch.cat(
      [
        a * self.cos_Lxh - b * self.sin_Lxh,
        b * self.cos_Lxh + a * self.sin_Lxh,
      ],
      dim=-1,
    )
    return turned.to(x_BxHxLxh.dtype)


class MLP(nn.Module):
  """GELU, or SwiGLU in a LLaMA."""

  def __init__(self, shape: dict):
    super().__init__()
    width, inside = shape['width'], shape['mlp']
    self.up = nn.Linear(width, inside, bias=False)
    self.down = nn.Linear(inside, width, bias=False)
    self.gate = None
    if shape['model'] == 'llama':
      self.gate = nn.Linear(width, inside, bias=False)

  def forward(self, x_BxLxD):
    """Returns B×L×D."""
    if self.gate is None:
      return self.down(F.gelu(self.up(x_BxLxD), approximate='tanh'))
    return self.down(F.silu(self.gate(x_BxLxD)) * self.up(x_BxLxD))


def _norm(shape: dict) -> nn.Module:
  if shape['model'] == 'llama':
    return nn.RMSNorm(shape['width'], eps=1e-6)
  return nn.LayerNorm(shape['width'], bias=False)


class Block(nn.Module):
  """Attention and MLP, each added to the residual stream."""

  def __init__(self, shape: dict):
    super().__init__()
    self.attention_norm, self.mlp_norm = _norm(shape), _norm(shape)
    self.attention, self.mlp = Attention(shape), MLP(shape)

  def forward(self, x_BxLxD):
    """Returns B×L×D."""
    x_BxLxD = x_BxLxD + self.attention(self.attention_norm(x_BxLxD))
    return x_BxLxD + self.mlp(self.mlp_norm(x_BxLxD))


class Model(nn.Module):
  """Token ids and targets to the mean loss."""

  def __init__(self, shape: dict):
    super().__init__()
    width, vocab = shape['width'], shape['vocab']
    self.embedding = nn.Embedding(vocab, width)
    self.positions = None
    if shape['model'] == 'gpt2':
      self.positions = nn.Embedding(shape['context'], width)
    self.blocks = nn.ModuleList(Block(shape) for _ in range(shape['layers']))
    self.norm = _norm(shape)
    self.readout = nn.Linear(width, vocab, bias=False)
    for module in self.modules():
      if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if shape['model'] == 'gpt2':
      self.readout.weight = self.embedding.weight

  def forward(self, tokens_BxL, targets_BxL):
    """Returns the mean loss in nats."""
    x_BxLxD = self.embedding(tokens_BxL)
    if self.positions is not None:
      index_L = torch.arange(tokens_BxL.shape[1], device=tokens_BxL.device)
      x_BxLxD = x_BxLxD + self.positions(index_L)
    for block in self.blocks:
      x_BxLxD = block(x_BxLxD)
    logits_BxLxV = self.readout(self.norm(x_BxLxD))
    return F.cross_entropy(logits_BxLxV.flatten(0, 1), targets_BxL.flatten())


class Trainer:
  """Model, optimizer and one batch of random tokens."""

  def __init__(self, shape: dict):
    self.clock = time.perf_counter
    if shape['one_core']:
      os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
      torch.set_num_threads(1)
      self.clock = time.process_time
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')
    self.half = shape['dtype'] == 'bfloat16'
    self.model = Model(shape).to(self.device)
    self.compiled = torch.compile(self.model)
    self.optimizer = torch.optim.AdamW(
      self.model.parameters(),
      lr=1e-4,
      betas=(0.9, 0.95),
      weight_decay=0.1,
      fused=True,
    )
    size = shape['batch'], shape['context'] + 1
    tokens = torch.randint(shape['vocab'], size, device=self.device)
    self.batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

  def step(self) -> None:
    """One training step."""
    with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
      loss = self.compiled(*self.batch)
    loss.backward()
    nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)

  def seconds(self, count: int) -> float:
    """Returns the seconds of `count` steps until all work is done."""
    self._wait()
    start = self.clock()
    for _ in range(count):
      self.step()
    self._wait()
    return self.clock() - start

  def memory(self) -> int:
    """Returns the peak bytes in use so far."""
    if self.device == 'cuda':
      return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

  def _wait(self) -> None:
    if self.device == 'cuda':
      torch.cuda.synchronize()


def main() -> None:
  """Prints what was measured as a line of JSON."""
  shape = json.loads(sys.argv[1])
  trainer = Trainer(shape)
  first = trainer.seconds(1)
  trainer.seconds(2)
  seconds = trainer.seconds(shape['steps'])
  values = {
    'name': f'PyTorch {torch.__version__}',
    'compile_seconds': first,
    'step_seconds': seconds / shape['steps'],
    'bytes': trainer.memory(),
    'parameters': sum(p.numel() for p in trainer.model.parameters()),
  }
  print(json.dumps(values), flush=True)


if __name__ == '__main__':
  main()
