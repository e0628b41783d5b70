"""Where models and optimizers start from; none of it is a tuned value."""

MODELS = ('gpt2', 'llama')

# GPT-3's AdamW recipe, and for the others their authors' advice, relative to
# it where it is given so: Lion arXiv 2302.06675 section 5, Sophia 2305.14342
# section 3.1, Muon 2502.16982, SOAP 2409.11321, AdEMAMix 2409.03137, ADOPT
# 2411.02853, Schedule-Free 2405.15682, Adafactor 2106.04560. Prodigy finds a
# rate that lr multiplies. Decay is for `independent` decay, the same for all.
OPTIMIZERS = {
  'adamw': {'lr': 6e-4, 'betas': (0.9, 0.95), 'eps': 1e-8},
  'lion': {'lr': 1e-4, 'betas': (0.9, 0.99), 'eps': 0.0},
  'sophia': {'lr': 3e-4, 'betas': (0.965, 0.99), 'eps': 1e-15},
  'adafactor': {'lr': 6e-4, 'betas': (0.9, 0.999), 'eps': 1e-30},
  'ademamix': {'lr': 6e-4, 'betas': (0.9, 0.999), 'eps': 1e-8},
  'adopt': {'lr': 6e-4, 'betas': (0.9, 0.9999), 'eps': 1e-6},
  'cautious_adamw': {'lr': 6e-4, 'betas': (0.9, 0.95), 'eps': 1e-8},
  'cautious_lion': {'lr': 1e-4, 'betas': (0.9, 0.99), 'eps': 0.0},
  'muon': {'lr': 6e-4, 'betas': (0.95, 0.95), 'eps': 1e-8},
  'nadamw': {'lr': 6e-4, 'betas': (0.9, 0.95), 'eps': 1e-8},
  'prodigy': {'lr': 1.0, 'betas': (0.9, 0.95), 'eps': 1e-8},
  'schedule_free': {'lr': 1.2e-3, 'betas': (0.9, 0.95), 'eps': 1e-8},
  'signum': {'lr': 1e-4, 'betas': (0.95, 0.0), 'eps': 0.0},
  'soap': {'lr': 6e-4, 'betas': (0.95, 0.95), 'eps': 1e-8},
}

# Learning rates that a search on small models starts with, around what we
# know of such models; a search goes on beyond an edge that is best.
RATES = {
  'adamw': (1e-3, 2e-3, 4e-3, 8e-3),
  'lion': (2e-4, 4e-4, 8e-4, 1.6e-3),
  'sophia': (2e-4, 4e-4, 8e-4, 1.6e-3),
  'adafactor': (1e-3, 2e-3, 4e-3, 8e-3),
  'ademamix': (5e-4, 1e-3, 2e-3, 4e-3),
  'adopt': (1e-3, 2e-3, 4e-3, 8e-3),
  'cautious_adamw': (1e-3, 2e-3, 4e-3, 8e-3),
  'cautious_lion': (2e-4, 4e-4, 8e-4, 1.6e-3),
  'muon': (1e-3, 2e-3, 4e-3, 8e-3),
  'nadamw': (1e-3, 2e-3, 4e-3, 8e-3),
  'prodigy': (0.25, 0.5, 1.0, 2.0),
  'schedule_free': (2e-3, 4e-3, 8e-3, 1.6e-2),
  'signum': (2e-4, 4e-4, 8e-4, 1.6e-3),
  'soap': (1e-3, 2e-3, 4e-3, 8e-3),
}
