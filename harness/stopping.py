"""How a run is stopped from outside: by an exception, so that it can be continued."""


class StopRun(Exception):
    """Raised by a session's ``on_validation``: the run saves its checkpoint, ends unfinished, and can be resumed."""
