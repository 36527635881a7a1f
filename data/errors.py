"""The one exception for mistakes a user can make and mend."""


class InputError(ValueError):
    """A mistake in what the user gave: one sentence saying what was given, what was expected, and what to do.

    The command line prints the sentence and ends with exit code 2; anything else that is raised is our own defect.
    """
