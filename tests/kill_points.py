"""Runs `octray` again and again, each time in a copy of this process that is killed at one of its file operations.

Started as `python -m tests.kill_points PART`, it reads lines of JSON from standard input, `[n, arguments]`, and answers each
with the exit code and the number of operations that were seen. A copy with n > 0 is killed (SIGKILL) just before its n-th
operation on a path with PART in it: a file that is opened, renamed or deleted. Modules are imported only once: whatever a copy
that ended had imported, later copies find in this process.
"""

import importlib
import json
import os
import signal
import sys
from contextlib import suppress

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate"}


def main(part: str) -> None:
    """Answer until standard input ends."""
    from pipeline.cli.main import main as octray
    from pipeline.train import run  # noqa: F401 - what every copy needs

    for line in sys.stdin:
        number, words = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            seen = 0

            def look(event: str, arguments: tuple[object, ...], number: int = number, writing: int = writing) -> None:
                nonlocal seen
                if event in OPERATIONS and arguments and isinstance(arguments[0], str | bytes) and part in str(arguments[0]):
                    seen += 1
                    if seen == number:
                        os.kill(os.getpid(), signal.SIGKILL)

            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.addaudithook(look)
            code = octray(words)
            with os.fdopen(writing, "w") as pipe:
                json.dump([seen, sorted(sys.modules)], pipe)
            os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            operations, modules = json.loads(pipe.read() or "[0, []]")
        _, status = os.waitpid(child, 0)
        for name in modules:
            if name not in sys.modules:
                with suppress(Exception):  # made by code, and not a file that can be imported
                    importlib.import_module(name)
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), operations]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
