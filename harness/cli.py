"""The ``adagrpo`` command. Bad input is reported in one line with exit code 2; a failed run has exit code 1.

Errors of the operating system (no such file, no permission, a full disk) are one line, too. Any other exception is a
bug and is shown with its traceback.
"""

import os
import sys
import traceback
from collections.abc import Sequence

from harness.commands import checkpoints, grids, inputs, measure, parse, reports, runs, sweep  # noqa: F401
from harness.foundation.errors import HarnessError
from harness.foundation.files import LACKING, reason_of
from harness.foundation.output import never_failing
from harness.foundation.plugins import explaining

# Otherwise libraries announce each optional package that is missing, none of which is needed.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``adagrpo``."""
    with never_failing():
        sys.exit(_execute(arguments))


def _execute(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with explaining():
            return parse([word for word in words if word != "--traceback"])()
    except HarnessError as error:
        if "--traceback" in words:
            traceback.print_exc()
        return _say(str(error), error.exit_code)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _say(f"{where}{reason_of(error)}", 1 if not where or error.errno in LACKING else 2)
    except UnicodeDecodeError as error:
        return _say(f"a file is not text in {error.encoding}: {error.reason} (byte {error.start}); save it as UTF-8", 2)
    except UnicodeEncodeError as error:
        return _say(f"{error.object!r:.200}: is not text in {error.encoding}: {error.reason}", 2)
    except RecursionError:
        return _say("a file or value is nested too deeply to be read", 2)
    except MemoryError:
        return _say("out of memory; take fewer or smaller pictures at a time, or fewer runs", 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)


def _say(message: str, code: int) -> int:
    print(f"adagrpo: error: {message.replace(chr(10), ' ')}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
