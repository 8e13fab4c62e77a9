"""The one exception tree. Every message says what was asked, what was found and what to do; the exit code is the command line's.

LorimerError               1  something failed
 |- UsageError             2  the command, a name or a flag is wrong
 |   |- ConfigError        2  a recipe or gate file is wrong
 |   |   |- RefusedError   2  one question that an endpoint refuses; it may take the next
 |   |- NotFoundError      2  no dataset, base, adapter or alias of that name
 |       |- ErasedError    2  one that is fenced off or gone, because somebody's data was in it
 |- DataError              1  rows that cannot be read or used
 |- StorageError           1  the disk is full or not writable
 |- TrainingError          1  a run that cannot go on (non-finite loss, nothing to learn from)
 |- AdapterError           1  adapter files that do not fit the base
 |- EngineError            1  a request the engine cannot serve
 |   |- CompositionError    1  adapters that do not add up
 |   |- UnsupportedError    1  something this backend does not do, whoever asks
 |   |- UnavailableError    1  a backend that does not answer, for now
 |- AccessError            1  an API key that is unknown, revoked or expired; a person whose role is not enough
 |- ApiError               1  a request the HTTP API refuses, with its status (serving/refusals.py)
 |- GateFailedError        3  a gate said FAIL, or could not be evaluated (ERROR)
 |- AwaitingApprovalError  4  a second person has to approve
 |- InconclusiveError      5  a gate said INCONCLUSIVE
 |- IntegrityError         6  a checksum or digest differs
 |   |- QuarantineError    6  an adapter that does not answer as it did when it was registered

To add one: derive from the nearest class above, give it an `exit_code` only if the design's list has one for it, and draw it here.
"""


class LorimerError(Exception):
    """Something failed for a reason the reader can act on."""

    exit_code = 1


class UsageError(LorimerError):
    """The command, a name or a flag is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe or gate file is wrong; the message names the file and the key."""


class RefusedError(ConfigError):
    """One question that an endpoint refuses, for its length or its settings; it may take the next."""


class NotFoundError(UsageError):
    """Nothing of that name is here; the message lists what is."""


class ErasedError(NotFoundError):
    """An adapter or dataset that somebody's data was in: it is fenced off, or gone already."""


class DataError(LorimerError):
    """Rows that cannot be read or used; the message names file and line."""


class StorageError(LorimerError):
    """The disk is full or not writable."""


class TrainingError(LorimerError):
    """A run that cannot go on."""


class AdapterError(LorimerError):
    """Adapter files that do not fit the base; every mismatch is listed."""


class EngineError(LorimerError):
    """A request the engine cannot serve."""


class CompositionError(EngineError):
    """Adapters that do not add up: one of them can only answer alone and whole."""


class UnsupportedError(EngineError):
    """What this backend does not do, whoever asks; `field` names what asked for it, where one field did."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnavailableError(EngineError):
    """A backend that does not answer, or not in time: asking again later may help."""


class AccessError(LorimerError):
    """An API key that is unknown, revoked or expired; a person whose role is not enough."""


class GateFailedError(LorimerError):
    """A gate said FAIL or ERROR."""

    exit_code = 3


class AwaitingApprovalError(LorimerError):
    """A second person has to approve."""

    exit_code = 4


class InconclusiveError(LorimerError):
    """A gate said INCONCLUSIVE: more items are needed."""

    exit_code = 5


class IntegrityError(LorimerError):
    """A checksum or digest differs from the recorded one."""

    exit_code = 6


class QuarantineError(IntegrityError):
    """An adapter that does not answer as it did when it was registered; it is not served."""
