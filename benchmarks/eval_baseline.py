"""The plain way to score: transformers, one request on every row.

Started by benchmarks/eval.py, with a Python that has torch and transformers:

    python benchmarks/eval_baseline.py MODEL_DIR BATCH_SIZE

Each line of its input names a file of (context, continuation) pairs and one
to write the log-likelihoods to; it answers with the seconds taken, by the clock
and of all cores together. Requests are sorted by length, so that next to
nothing is padding.
"""

import json
import os
import sys
import time

import torch
import transformers


def main() -> None:
  """Answers until the input ends."""
  directory, batch_size = sys.argv[1], int(sys.argv[2])
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = False
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  )
  model = model.to(device).eval()
  name = torch.cuda.get_device_name() if device == 'cuda' else device
  versions = f'torch {torch.__version__}, transformers'
  print(f'{versions} {transformers.__version__}, {name}', flush=True)
  for line in sys.stdin:
    source, target = json.loads(line)
    with open(source, encoding='utf-8') as file:
      pairs = json.load(file)
    start = time.perf_counter(), time.process_time()
    scores = _score(model, tokenizer, pairs, batch_size)
    end = time.perf_counter(), time.process_time()
    with open(target, 'w', encoding='utf-8') as file:
      json.dump(scores, file)
    print(end[0] - start[0], end[1] - start[1], flush=True)


@torch.inference_mode()
def _score(model, tokenizer, pairs, batch_size: int) -> list[float]:
  longest = model.config.max_position_embeddings
  rows = []
  for context, continuation in pairs:
    whole = tokenizer(context + continuation)['input_ids']
    count = len(whole) - len(tokenizer(context)['input_ids'])
    rows.append((whole[-(longest + 1) :], count))
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
  scores = [0.0] * len(rows)
  for first in range(0, len(order), batch_size):
    batch = order[first : first + batch_size]
    inputs = torch.zeros(len(batch), len(rows[batch[0]][0]) - 1, dtype=int)
    for row, i in enumerate(batch):
      ids = rows[i][0][:-1]
      inputs[row, : len(ids)] = torch.tensor(ids)
    logits = model(inputs.to(model.device)).logits
    logp = torch.log_softmax(logits.float(), -1)
    for row, i in enumerate(batch):
      ids, count = rows[i]
      stop = len(ids) - 1
      targets = torch.tensor(ids[-count:], device=logp.device)
      part = logp[row, stop - count : stop]
      scores[i] = part.gather(-1, targets[:, None]).sum().item()
  return scores


if __name__ == '__main__':
  main()
