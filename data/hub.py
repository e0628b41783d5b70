"""Files of datasets on the Hugging Face hub, or of a local copy of one."""

import pathlib


def fetch(dataset: str, name: str, cache: pathlib.Path) -> pathlib.Path:
  """Returns the path of one file of a dataset, downloading it when needed.

  Args:
    dataset: repository on the hub, such as 'allenai/ai2_arc', or a local
      directory of that layout.
    name: path of the file in it.
    cache: directory of downloads.

  Raises:
    OSError: huggingface_hub is not installed or the file could not be had.
  """
  if pathlib.Path(dataset).is_dir():
    path = pathlib.Path(dataset) / name
    if not path.is_file():
      raise FileNotFoundError(f'{dataset} has no file {name}')
    return path
  try:
    import huggingface_hub
  except ImportError as error:
    raise OSError(
      f'{dataset} needs the package huggingface_hub: pip install it'
    ) from error
  try:
    return pathlib.Path(
      huggingface_hub.hf_hub_download(
        dataset, name, repo_type='dataset', cache_dir=cache / 'hub'
      )
    )
  except Exception as error:  # Its errors share no base class.
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise OSError(f'could not get {name} of {dataset}: {line}') from error
