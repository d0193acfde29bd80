"""The one exception that means: a person can mend this."""


class UserError(ValueError):
    """Bad input. The message is one line that names the setting, its value and the fix.

    The command line prints it without a traceback and exits with status 2.
    """


class StepMemoryError(MemoryError):
    """The device's memory did not do in the middle of a training step.

    Attributes:
        task: what ran then, such as "Forward(3)".
        module: which local module that was for.
    """

    def __init__(self, task: str, module: int) -> None:
        super().__init__(f"the memory does not do in {task}, a task of local module {module}")
        self.task, self.module = task, module
