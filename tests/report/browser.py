"""Drives a headless Chromium through its debugging pipe: no other package.

Protocol: https://chromedevtools.github.io/devtools-protocol, messages end in
a zero byte; the browser reads descriptor 3 and writes descriptor 4.
"""

import base64
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import Any

_FLAGS = (
  '--headless',
  '--remote-debugging-pipe',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--hide-scrollbars',
)
_SECONDS = 120


def find() -> str | None:
  """Returns the path of a Chromium, if there is one."""
  for name in ('chromium', 'chromium-browser', 'google-chrome', 'chrome'):
    path = shutil.which(name)
    if path is not None:
      return path
  return None


class Tab:
  """One page; `problems` are errors and warnings that it reported."""

  def __init__(self, write: int, read: int):
    self._write, self._read = write, read
    self._buffer = b''
    self._last = 0
    self._session: str | None = None
    self.problems: list[str] = []
    self.requests: list[str] = []
    target = self.call('Target.createTarget', url='about:blank')
    self._session = self.call(
      'Target.attachToTarget', targetId=target['targetId'], flatten=True
    )['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Sends a command and returns its result."""
    self._last += 1
    message = {'id': self._last, 'method': method, 'params': params}
    if self._session is not None:
      message['sessionId'] = self._session
    os.write(self._write, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._receive()
      if 'id' in answer and answer['id'] == self._last:
        assert 'error' not in answer, f'{method}: {answer["error"]}'
        return answer['result']

  def _receive(self) -> dict[str, Any]:
    end = time.monotonic() + _SECONDS
    while b'\0' not in self._buffer:
      ready, _, _ = select.select([self._read], [], [], end - time.monotonic())
      assert ready, 'the browser does not answer'
      data = os.read(self._read, 1 << 20)
      assert data, 'the browser has ended'
      self._buffer += data
    line, _, self._buffer = self._buffer.partition(b'\0')
    message = json.loads(line)
    self._note(message)
    return message

  def _note(self, message: dict[str, Any]) -> None:
    if 'method' not in message:
      return
    method, params = message['method'], message['params']
    if method == 'Runtime.exceptionThrown':
      self.problems.append(json.dumps(params['exceptionDetails'])[:2000])
    elif method == 'Runtime.consoleAPICalled':
      if params['type'] in ('error', 'warning', 'assert'):
        self.problems.append(json.dumps(params['args'])[:2000])
    elif method == 'Log.entryAdded':
      self.problems.append(json.dumps(params['entry'])[:2000])
    elif method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'][:200])

  def show(self, width: int, height: int, dark: bool = False) -> None:
    """Sets the size of the screen and its colours."""
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = 'dark' if dark else 'light'
    features = [{'name': 'prefers-color-scheme', 'value': scheme}]
    self.call('Emulation.setEmulatedMedia', media='', features=features)

  def open(self, page: pathlib.Path) -> None:
    """Opens a file and waits until its figures are drawn."""
    self.call('Page.navigate', url=page.resolve().as_uri())
    end = time.monotonic() + _SECONDS
    ready = "document.documentElement?.dataset.ready === 'yes'"
    while not self.evaluate(ready):
      assert time.monotonic() < end, f'not drawn: {self.problems}'
      time.sleep(0.05)

  def evaluate(self, expression: str) -> Any:
    """Returns the value of a JavaScript expression, promises awaited."""
    done = self.call(
      'Runtime.evaluate',
      expression=expression,
      awaitPromise=True,
      returnByValue=True,
      userGesture=True,
    )
    assert 'exceptionDetails' not in done, done['exceptionDetails']
    return done['result'].get('value')

  def screenshot(self, path: pathlib.Path, whole: bool = True) -> None:
    """Writes a PNG of the screen, or of the whole page."""
    shot = self.call(
      'Page.captureScreenshot', format='png', captureBeyondViewport=whole
    )
    path.write_bytes(base64.b64decode(shot['data']))

  def pdf(self, path: pathlib.Path) -> None:
    """Prints the page."""
    done = self.call('Page.printToPDF', printBackground=True)
    path.write_bytes(base64.b64decode(done['data']))


@contextlib.contextmanager
def tab(profile: pathlib.Path) -> Iterator[Tab]:
  """Starts a browser with one page; ends it afterwards.

  Args:
    profile: directory for what the browser keeps.
  """
  browser = find()
  assert browser is not None
  child_read, write = os.pipe()
  read, child_write = os.pipe()

  def join() -> None:
    # Copies lie beyond 4, so that neither copy overwrites the other pipe.
    first, second = os.dup(child_read), os.dup(child_write)
    os.dup2(first, 3)
    os.dup2(second, 4)

  process = subprocess.Popen(
    [browser, *_FLAGS, f'--user-data-dir={profile}', 'about:blank'],
    preexec_fn=join,
    close_fds=False,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(child_read)
  os.close(child_write)
  try:
    yield Tab(write, read)
  finally:
    process.terminate()
    process.wait(30)
    os.close(write)
    os.close(read)
