"""Maps the top-level folders to sub-packages of the namespace `steepest`."""

from setuptools import find_packages, setup

_FOLDERS = (
  'experiments',
  'models',
  'optimizers',
  'data',
  'training',
  'tuning',
  'eval',
  'report',
  'launch',
)
_PACKAGES = [
  f'steepest.{name}'
  for folder in _FOLDERS
  for name in (folder, *(f'{folder}.{s}' for s in find_packages(folder)))
]
_TEST = [
  'hypothesis',
  'ipykernel',
  'mypy',
  'nbclient',
  'pytest',
  'pytest-xdist',
  'ray==2.60.0',
  'ruff',
  # Builds the wheel that docs/adding.md is run from.
  'setuptools>=70.1',
]

setup(
  name='steepest',
  version='0.1.0',
  description='Which optimizer gets my language model furthest on a budget?',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=_PACKAGES,
  package_dir={f'steepest.{folder}': folder for folder in _FOLDERS},
  package_data={'steepest.report': ['templates/*']},
  install_requires=[
    'absl-py',
    'array_record',
    'clu',
    'etils[epath]',
    'flax',
    'grain',
    # tensorflow-datasets uses it without declaring it.
    'importlib_resources',
    'jax',
    'jinja2',
    'ml_collections',
    'numpy',
    'optax',
    'optuna',
    'orbax-checkpoint',
    'pandas',
    'plotly',
    'pyarrow',
    'PyYAML',
    'rich',
    'safetensors',
    'scipy',
    'sentencepiece',
    'tensorboardX',
    'tensorflow-datasets',
    'tokenizers',
    'zstandard',
  ],
  extras_require={
    'cuda': ['jax[cuda13]'],
    'tpu': ['jax[tpu]'],
    # Reads shards at gs:// addresses.
    'gcs': ['gcsfs'],
    'wandb': ['wandb'],
    # lm-evaluation-harness, which steepest-harness runs.
    'harness': ['lm-eval'],
    # Reads --input=hf:DATASET.
    'hub': ['datasets'],
    # Studies and preparations on several machines. Another version on one of
    # them would not be understood.
    'ray': ['ray==2.60.0'],
    'test': _TEST,
  },
  entry_points={
    'console_scripts': [
      f'steepest-{name} = steepest.launch.{name}:main'
      for name in (
        'train',
        'study',
        'evaluate',
        'report',
        'prepare',
        'export',
        'generate',
        'coordcheck',
        'submit',
        'bench',
        'watch',
        'harness',
      )
    ]
  },
)
