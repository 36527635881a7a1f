"""Where a run ends: after so many steps or, where minutes are given, when the clock says so."""

WARM = 3  # steps that say nothing of the speed: they compile, allocate and fill caches


class TotalSteps:
    """The number of the step that a run ends before, updated before each step.

    With minutes it is what the mean speed since this process began would reach, and schedules that are computed from
    it stretch or shrink with it: a learning rate that should reach its floor in the last step does.
    """

    def __init__(self, steps: int, minutes: float) -> None:
        """steps: the run ends there in any case."""
        self.most, self.seconds = steps, minutes * 60
        self.steps, self.known = steps, not minutes  # known: no longer the most that it can be, for who shows it
        self._mark: tuple[int, float] | None = None  # the step, and the seconds trained, that the mean counts from
        self._first: int | None = None

    def update(self, step: int, seconds: float) -> int:
        """What is expected before step `step`, after so many seconds of training in all.

        A run whose time is over still gets one step, which then knows that it is the last.
        """
        if not self.seconds or step >= self.steps:
            return self.steps
        if self._first is None:
            self._first = step
        if seconds >= self.seconds:
            self.steps, self.known = step + 1, True
        elif self._mark is None and step - self._first >= WARM:
            self._mark = (step, seconds)
        elif self._mark is not None:
            seconds_each = (seconds - self._mark[1]) / (step - self._mark[0])
            left = (self.seconds - seconds) / max(seconds_each, 1e-9)  # one that would end late is not begun
            self.steps, self.known = min(self.most, step + max(1, int(left))), True
        return self.steps
