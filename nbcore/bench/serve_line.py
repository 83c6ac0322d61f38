"""The bench's end of a process: it asks in lines of JSON and waits for each answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from typing import IO

from nbcore.bench.serve_task import Message, ServeTask

ANSWER_LIMIT_S = 600
"""For one answer; compilation of one batch size is the longest."""


class Line:
    """A process that holds one variant in one contender; not started before `start`."""

    def __init__(self, task: ServeTask) -> None:
        self.task = task
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None

    def start(self, *, compile_threads: int) -> Message:
        """Start the process and open its contender.

        Args:
            compile_threads: Threads that torch may compile with.
        """
        said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._said = said
        threads = str(self.task.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "TORCHINDUCTOR_COMPILE_THREADS": str(compile_threads),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nbcore.bench.serve_process", json.dumps(asdict(self.task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        )
        return self.ask({"do": "open"})

    def ask(self, message: Message) -> Message:
        """The process's answer; an error where it ended or took too long."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        guard = threading.Timer(ANSWER_LIMIT_S, process.kill)
        guard.start()
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            guard.cancel()
        return json.loads(answer) if answer else {"error": self._last_words()}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        if self._said is not None:
            self._said.close()

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._said is not None
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return lines[-1][:300] if lines else f"the process ended with status {status}"
