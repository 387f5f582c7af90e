"""`minipage serve` in a process of its own."""

import os
import re
import signal
import subprocess
import sys


class Started:
    """Runs until `end`; `url` is where it answers."""

    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minipage", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"NUMBA_NUM_THREADS": "1"} | environment,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"https?://[^ ;]+", line):
                self.url = found[0]
                return
        raise AssertionError(f"it ended: {self.process.stderr.read()}")

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors
