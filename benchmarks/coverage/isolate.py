"""Run a case in a process of its own, with a time limit and a memory limit (clause 2 of the package)."""

from __future__ import annotations

import importlib.util
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from benchmarks.coverage.cases import Case
from benchmarks.coverage.measure import Record, measure

PATIENCE = 5

Find = Callable[[str], Case]


def isolated(find: Find, name: str, seconds: float, gigabytes: float) -> Record:
    """What ``measure`` records, or how far it got.

    Args:
        find: a function of a module that a new process can import: the case of a name.
        name: the case.
        seconds: CPU time after which the process is ended; ``PATIENCE`` times as much wall time, for it may wait for other processes.
        gigabytes: memory that it may take.
    """
    missing = [package for package in find(name).packages if importlib.util.find_spec(package) is None]
    if missing:
        return {"outcome": "skipped", "error": f"{', '.join(missing)} is not installed", "seconds": 0.0}
    # A server that has imported the heavy packages once forks one process per case.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "timm", "benchmarks.coverage.measure"])
    ours, theirs = context.Pipe(duplex=False)
    began = time.perf_counter()
    process = context.Process(target=_child, args=(find, name, int(seconds), gigabytes, theirs), daemon=True)
    process.start()
    theirs.close()
    record: Record = {"outcome": "failed", "stage": "start"}
    done = False
    while not done:
        left = PATIENCE * seconds - (time.perf_counter() - began)
        if left <= 0 or not ours.poll(left):
            record |= {
                "outcome": "failed",
                "error": f"Timeout: more than {PATIENCE * seconds:.0f} s of wall time, in stage {record['stage']!r}",
            }
            break
        try:
            record, done = ours.recv()
        except EOFError:
            process.join()
            slow = process.exitcode == -signal.SIGXCPU
            what = f"Timeout: more than {seconds:.0f} CPU seconds" if slow else f"Crash: exit code {process.exitcode}"
            record |= {"outcome": "failed", "error": f"{what}, in stage {record['stage']!r}"}
            break
    process.kill()
    process.join()
    return record | {"seconds": round(time.perf_counter() - began, 1)}


def _child(find: Find, name: str, seconds: int, gigabytes: float, pipe: Connection) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    pipe.send((measure(find(name), lambda record: pipe.send((record, False))), True))
    pipe.close()
