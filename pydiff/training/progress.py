"""The progress bar of a training, which may fail without stopping it: a closed terminal, a broken pipe, no stderr."""

import contextlib
import sys


class Progress:
    """A tqdm bar on stderr, and a context manager. Errors of the stream end only the bar.

    total, done: steps. show: False for no bar at all.
    """

    def __init__(self, total, done=0, description="", show=True):
        self.bar = None
        if show and sys.stderr is not None:
            with self._quietly():
                from tqdm import tqdm

                self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, desc=description)

    def step(self, text=""):
        """One more step is done. text: shown after the bar."""
        if self.bar is not None:
            with self._quietly():
                if text:
                    self.bar.set_postfix_str(text, refresh=False)
                self.bar.update()

    def write(self, line):
        """Writes a line above the bar."""
        if self.bar is not None:
            with self._quietly():
                self.bar.write(line, file=sys.stderr)

    @contextlib.contextmanager
    def _quietly(self):
        try:
            yield
        except (OSError, ValueError):  # what writing to a broken or closed stream raises
            if self.bar is not None:
                self.bar.disable = True  # or it would try again when it is garbage-collected
            self.bar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            with self._quietly():
                self.bar.close()
