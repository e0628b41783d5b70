"""The end of a trial that lags behind."""


class Pruned(ValueError):
  """A trial was ended after `steps` steps."""

  def __init__(self, message: str, steps: int):
    super().__init__(message)
    self.steps = steps
