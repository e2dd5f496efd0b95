"""What a training writes to disk along the way: the log, checkpoints, previews. A full or missing disk does not stop a
training: a failed write is reported once and tried again at the next interval; the last good checkpoint stays.
"""

from pydiff.formats.safetensors import CheckpointError
from pydiff.printed import printable
from pydiff.training.health import Health

LOG, CHECKPOINT, PREVIEW = "the log", "a checkpoint", "samples.png"


class Keeper:
    """Writes the files of one training. log: store.Log. folder: store.RunDirectory, locked, or None. preview: a
    function that returns the bytes of a PNG, or None. say: shows a line.

    saved: the step of the newest checkpoint since this start, or None.
    """

    def __init__(self, trainer, log, folder=None, preview=None, say=print):
        self.trainer, self.log, self.folder, self.preview, self.say = trainer, log, folder, preview, say
        self.health, self.saved = Health(), None
        for entry in log:
            self.health.saw(entry)

    def took(self, entry: dict):
        """Logs a step that was taken."""
        if self.folder is not None and (place := self.folder.follow()) is not None:
            self.say(
                f"step {self.trainer.step:,}: the folder of the run was moved; it goes on in {printable(str(place))}"
            )
        self.health.saw(entry)
        if reason := self.log.append(entry):
            self._failed(LOG, reason, "it is kept, and tried again")
        else:
            self.health.worked(LOG)

    def save(self, last=False, stopping=False):
        """Writes what is due at this step. last: the run is complete. stopping: it is about to stop."""
        if (folder := self.folder) is None:
            return
        step, options = self.trainer.step, self.trainer.options
        if self.preview and options.sample_every and (last or step % options.sample_every == 0):
            png = self.preview()
            self._tried(PREVIEW, lambda: folder.save_preview(step, png))
        if last or stopping or step % options.checkpoint_every == 0:
            arrays = self.trainer.arrays()
            if self._tried(CHECKPOINT, lambda: folder.save_checkpoint(step, arrays, options.keep)):
                self.saved = step

    def _tried(self, what, write) -> bool:
        try:
            write()
        except (OSError, CheckpointError) as error:
            self._failed(what, str(error).rstrip("."), "the training goes on, and it is tried again")
            return False
        self.health.worked(what)
        return True

    def _failed(self, what, reason, policy):
        if self.health.failed(what, self.trainer.step, reason):
            self.say(f"step {self.trainer.step:,}: {what} could not be written ({reason}); {policy}")

    def unsaved(self) -> str:
        """Why the last step is not on disk; "" if it is."""
        if self.folder is None or self.saved == self.trainer.step:
            return ""
        return f"its checkpoint could not be written ({self.health.failures[CHECKPOINT][2]}), an older one is there"
