"""What can go wrong, by who can put it right. Each error prints as one line: the thing, the fault, the remedy."""


class CovidSegError(Exception):
    """An error whose message is for the user: no traceback is needed to act on it."""

    exit_code = 1

    def __init__(self, what: object, wrong: str, remedy: str = ""):
        self.what, self.wrong, self.remedy = str(what), wrong, remedy
        super().__init__(f"{what}: {wrong}" + (f" -> {remedy}" if remedy else ""))

    def __reduce__(self):  # exceptions cross process borders (prepare's workers) with their parts, not their text
        return type(self), (self.what, self.wrong, self.remedy)


class BadInput(CovidSegError):
    """A scan, a mask, a folder, a configuration value that cannot be used as it is."""

    exit_code = 2


class EnvironmentFault(CovidSegError):
    """The machine: disk full, permission, memory, a missing library."""

    exit_code = 3


class Interrupted(CovidSegError):
    """A signal ended the run after its state was saved; 128 + signal number, as a shell expects."""

    def __init__(self, what: object, wrong: str, remedy: str = "", signum: int = 15):
        super().__init__(what, wrong, remedy)
        self.signum, self.exit_code = signum, 128 + signum

    def __reduce__(self):
        return type(self), (self.what, self.wrong, self.remedy, self.signum)
