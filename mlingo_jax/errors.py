"""What ends a command and is no defect of the program, and what is worth saying of a file that is read."""

import signal


class UserError(Exception):
    """Something the user can mend. The message names thing, file, expected and found, and what to do."""


class Stopped(Exception):
    """A signal ended the work, and what was done is saved: the same command resumes from there."""

    def __init__(self, message: str, number: signal.Signals):
        super().__init__(message)
        self.number = number


class AudioWarning(UserWarning):
    """Of an audio file that is read: something behind its audio, no length in its header, channels that cancel out."""
