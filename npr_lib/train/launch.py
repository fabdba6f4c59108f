"""Several processes: a call that `accelerate launch` makes in each of them.

A training that is decorated with `launched` runs where it is called, or, where the profile's
section `launch` says so, in so many processes at once; what that of rank 0 gives is given. The call
travels by cloudpickle, with the functions of a notebook's cell. Nothing here distributes: that is
accelerate's work, inside of TRL's trainers.

    python -m npr_lib.train.launch FOLDER      what runs in the processes, and starts them

One process more than the ranks: it calls accelerate's launcher, which ends all ranks when one has
died. Ranks end with whoever called, since their standard input ends then.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, ParamSpec, TypeVar

import cloudpickle
import torch
from accelerate import PartialState

from npr_lib import WorkbenchError
from npr_lib.files import digest
from npr_lib.profiles.sections import Launch
from npr_lib.side_by_side import name_of

P = ParamSpec("P")
T = TypeVar("T")


def launched(train: Callable[P, T]) -> Callable[P, T]:
    """A training, `train(stage, ...)`, in as many processes as its stage's profile says."""

    @functools.wraps(train)
    def launch_or_train(*args: P.args, **keywords: P.kwargs) -> T:
        settings: Launch = args[0].profile.launch  # type: ignore[attr-defined]
        if settings.num_processes == 1 or "LOCAL_RANK" in os.environ:  # a rank calls it too
            return train(*args, **keywords)
        return launch(settings, launch_or_train, *args, **keywords)

    return launch_or_train


def identity(settings: Launch) -> dict[str, Any]:
    """What of a launch decides what is trained: the batch grows with the processes."""
    config = Path(settings.config_file) if settings.config_file else None
    return {
        "processes": PartialState().num_processes,
        "config_file": digest(config) if config else None,
    }


def launch(settings: Launch, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
    """`function(*args, **keywords)` in every one of the processes; returns what rank 0's gives.

    Raises:
        WorkbenchError: a rank died or raised; the message says which, and all others have ended.
            A WorkbenchError of its own is raised as it is.
    """
    if settings.config_file and not Path(settings.config_file).is_file():
        raise WorkbenchError(f"launch.config_file = {settings.config_file}: there is no such file")
    with TemporaryDirectory(prefix="npr-launch-") as name:
        folder = Path(name)
        call = (settings, function, args, keywords)
        (folder / "call").write_bytes(cloudpickle.dumps(call))
        own = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])}
        own |= {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // settings.num_processes))}
        if not torch.cuda.is_available():
            own |= {"ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-m", __name__, name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **own})
        try:
            process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
        if process.returncode:
            _raise(folder, settings, name_of(function))
        return cloudpickle.loads((folder / "result").read_bytes())


def _raise(folder: Path, settings: Launch, function: str) -> NoReturn:
    """What went wrong first: a rank that was killed has told nothing, and what other ranks say of
    it comes from that; else the earliest error."""
    told = sorted(cloudpickle.loads(path.read_bytes()) for path in folder.glob("error-*"))
    killed = [path.name.split("-")[1:] for path in sorted(folder.glob("killed-*"))]
    goes_on = "All have been ended. Run it again: it goes on from its last checkpoint"
    if killed:
        rank, number = killed[0]
        name = signal.Signals(int(number)).name
        raise WorkbenchError(
            f"rank {rank} of {settings.num_processes} of {function} was killed ({name}; out of "
            f"memory, perhaps). {goes_on}"
        )
    if not told:
        raise WorkbenchError(
            f"{function} could not be launched in {settings.num_processes} processes: accelerate "
            "says why above"
        )
    _, rank, text, packed = told[0]
    error = cloudpickle.loads(packed) if packed else None
    where = f"rank {rank} of {settings.num_processes} of {function}"
    if isinstance(error, WorkbenchError):
        error.add_note(f"in {where}")
        raise error
    last = text.strip().splitlines()[-1]
    failed = WorkbenchError(f"{where} failed: {last}. {goes_on}")
    failed.add_note(text)
    raise failed from error


def _start(folder: Path) -> None:
    """Call accelerate's launcher; leave a note of each rank that was killed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    settings: Launch = cloudpickle.loads((folder / "call").read_bytes())[0]
    options = [f"--num_processes={settings.num_processes}", "--main_process_port=0"]
    if settings.config_file:
        options.append(f"--config_file={settings.config_file}")
    else:
        options += [
            "--multi_gpu",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
        ]
    arguments = [*options, "--module", __spec__.name, str(folder)]
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                (folder / f"killed-{rank}-{-failure.exitcode}").touch()
        sys.exit(1)


def _run(folder: Path) -> None:
    """In a rank: make the call."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    rank = int(os.environ["RANK"])
    if rank:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # all ranks say the same
    try:
        settings, function, args, keywords = cloudpickle.loads((folder / "call").read_bytes())
        on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "true"
        PartialState(cpu=on_cpu, timeout=timedelta(seconds=settings.timeout))
        _check_whole()
        result = function(*args, **keywords)
        if rank == 0:
            (folder / "result").write_bytes(cloudpickle.dumps(result))
        PartialState().wait_for_everyone()
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        told = cloudpickle.dumps((time.time(), rank, text, _packed(error)))
        part = folder / f"part-{rank}"
        part.write_bytes(told)
        part.rename(folder / f"error-{rank}")
        os._exit(1)  # no farewell to the others, who may never come to it
    sys.stdout.flush()
    os._exit(0)


def _check_whole() -> None:
    """WorkbenchError where accelerate's configuration would take the weights apart. (On a CPU it
    ignores that, and says nothing.)"""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if fsdp or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise WorkbenchError(
            f"launch.config_file asks for {'FSDP' if fsdp else 'ZeRO stage 3'}, which shards the "
            "weights: the engine decodes with the weights that train and needs them whole, and so "
            "do checkpoints. Leave it out (each process holds the model), or use ZeRO stage 1 or 2"
        )


def _packed(error: BaseException) -> bytes | None:
    """An exception for another process, if it can be taken there."""
    try:
        packed = cloudpickle.dumps(error)
        cloudpickle.loads(packed)
    except Exception:  # whatever its class does then; its text is told
        return None
    return packed


def _end_with_caller() -> None:
    """A notebook that was killed leaves nobody who writes into its run."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    (_run if "LOCAL_RANK" in os.environ else _start)(Path(sys.argv[1]))
