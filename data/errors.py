"""The exceptions that end a command with one sentence."""


class InputError(ValueError):
    """A mistake in what the user gave: one sentence saying what was given, what was expected, and what to do.

    The command line prints the sentence and ends with exit code 2; anything else that is raised is our own defect.
    """


class DivergenceError(RuntimeError):
    """A loss or weights are no longer finite. No checkpoint is written after that, so the last one is from before.

    The command line prints its sentence, too, and ends with exit code 2.
    """
