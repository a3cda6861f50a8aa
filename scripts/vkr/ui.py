# SPDX-License-Identifier: GPL-2.0
"""Telling the user what happens: steps, progress, and failures that name a log.

On a terminal the running step owns the last line and redraws it. Elsewhere
(CI, a pipe) there is one line when a step starts, one when it ends, and a
sign of life in between at most every HEARTBEAT seconds.

All of it goes to standard error: standard output is for a command's result.
"""

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HEARTBEAT = 30.0
REDRAW = 0.1
TAIL = 15

_stream = sys.stderr
_tty = _stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
_colour = _tty and "NO_COLOR" not in os.environ
_depth = 0


class StepFailed(Exception):
    """A step did not succeed; the message is all the user gets to see."""

    def __init__(self, message, *, log=None, hint=None):
        super().__init__(message)
        self.message = message
        self.log = Path(log) if log else None
        self.hint = hint

    def render(self):
        lines = [self.message]
        if self.log and self.log.exists():
            tail = self.log.read_text(errors="replace").splitlines()[-TAIL:]
            lines += [f"    | {line}" for line in tail]
            lines.append(f"the full log is {self.log}")
        if self.hint:
            lines.append(f"what to do: {self.hint}")
        return "\n".join(lines)


def guard(function):
    """Runs ``function`` for the command line: its exit status, no traceback."""
    try:
        return function() or 0
    except StepFailed as failure:
        _clear()
        print(f"{_paint('31;1', 'error:')} {failure.render()}", file=_stream)
        return 1
    except KeyboardInterrupt:
        _clear()
        print("interrupted; run the same command again to resume", file=_stream)
        return 130
    except BrokenPipeError:
        # Keeps the interpreter from flushing into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def info(message):
    _line(message)


def note(message):
    _line(f"{_paint('36', 'note:')} {message}")


def warn(message):
    _line(f"{_paint('33;1', 'warning:')} {message}")


@contextlib.contextmanager
def step(title):
    """A titled piece of work; nested steps are indented below it."""
    global _depth
    indent = "  " * _depth
    print(f"{indent}{_paint('1', '==>')} {title}", file=_stream, flush=True)
    start = time.monotonic()
    _depth += 1
    try:
        yield
    except BaseException:
        _depth -= 1
        _end(indent, "31;1", "failed", title, start)
        raise
    _depth -= 1
    _end(indent, "32", "ok", title, start)


def run(argv, *, title, log, cwd=None, env=None, progress=None, hint=None, stdin=None):
    """Runs a command as a step, its output appended to ``log``.

    ``progress(line)`` looks at each line of output and returns ``(done, total)``
    or ``None``; ``env`` adds to the environment. Raises StepFailed, with the
    end of the log, if the command cannot be started or exits non-zero.
    """
    argv = [str(word) for word in argv]
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with step(title), log.open("ab") as out:
        out.write(f"$ {shlex.join(argv)}\n".encode())
        out.flush()
        try:
            child = subprocess.Popen(
                argv, cwd=cwd, env={**os.environ, **(env or {})},
                stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, process_group=0)
        except OSError as error:
            raise StepFailed(f"{title}: cannot run {argv[0]}: {error.strerror}", hint=hint)
        try:
            with child.stdout:
                _follow(child.stdout, out, _Meter(progress))
            status = child.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise
        finally:
            _clear()
        if status:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise StepFailed(f"{title}: {Path(argv[0]).name} failed ({how})", log=log, hint=hint)


def output(argv, *, cwd=None, env=None, hint=None):
    """The standard output of a short command; raises StepFailed if it fails."""
    argv = [str(word) for word in argv]
    try:
        done = subprocess.run(argv, cwd=cwd, env={**os.environ, **(env or {})},
                              stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, errors="replace")
    except OSError as error:
        raise StepFailed(f"cannot run {argv[0]}: {error.strerror}", hint=hint)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise StepFailed(f"`{shlex.join(argv)}` failed: {said[-1] if said else 'no output'}",
                         hint=hint)
    return done.stdout


def table(rows, header=None):
    """Rows of strings as aligned columns."""
    rows = [[str(cell) for cell in row] for row in rows]
    every = ([list(header)] if header else []) + rows
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))]
    text = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip()
            for row in every]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def duration(seconds):
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


class _Meter:
    """Shows how far a command has come, as often as the output medium bears."""

    def __init__(self, progress):
        self.progress = progress
        self.done = self.total = None
        self.last = ""
        self.shown = self.start = time.monotonic()

    def line(self, line):
        if not line:
            return
        self.last = line
        state = self.progress(line) if self.progress else None
        if state:
            self.done, self.total = state

    def show(self):
        now = time.monotonic()
        if now - self.shown < (REDRAW if _tty else HEARTBEAT):
            return
        self.shown = now
        indent = "  " * _depth
        head = indent
        if self.total:
            share = min(self.done / self.total, 0.99)
            head += f"{share:4.0%} "
            if _tty:
                head += f"[{'#' * int(share * 24):<24}] "
        text = f"{head}{duration(now - self.start)} {' '.join(self.last.split())}"
        if _tty:
            _stream.write(f"\r\x1b[K{text[:shutil.get_terminal_size().columns - 1]}")
            _stream.flush()
        else:
            print(text[:120], file=_stream, flush=True)


def _follow(pipe, out, meter):
    os.set_blocking(pipe.fileno(), False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if selector.select(REDRAW if _tty else 1.0):
                chunk = os.read(pipe.fileno(), 1 << 16)
                if not chunk:
                    break
                out.write(chunk)
                out.flush()
                # Downloaders redraw one line with carriage returns.
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    meter.line(line.decode(errors="replace").rstrip())
            meter.show()


def _paint(code, text):
    return f"\x1b[{code}m{text}\x1b[0m" if _colour else text


def _clear():
    if _tty:
        _stream.write("\r\x1b[K")
        _stream.flush()


def _line(message):
    _clear()
    indent = "  " * _depth
    print(indent + message.replace("\n", f"\n{indent}"), file=_stream, flush=True)


def _end(indent, code, word, title, start):
    _clear()
    print(f"{indent}{_paint(code, word)}: {title} ({duration(time.monotonic() - start)})",
          file=_stream, flush=True)
