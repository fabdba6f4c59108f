"""The command line: `python -m npr_lib --help`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npr_lib import WorkbenchError, __version__
from npr_lib.files import relative

DESCRIPTION = """\
NPR Workbench: train small models that reason in parallel branches, and look at what they do.

  python -m npr_lib run --profile tiny        the whole pipeline into reports/tiny/index.html
  python -m npr_lib run --profile tiny        the same again: goes on where it stopped
  python -m npr_lib run --profile tiny --run wide -p npr.grpo.max_steps=60
  python -m npr_lib explore tiny              JupyterLab on the rollouts of that run
  python -m npr_lib explore results.json      a page on responses made elsewhere
  python -m npr_lib bench                     the engine against transformers, on this machine
  python -m npr_lib serve MODEL               stock SGLang's server with the NPR plugin
  python -m npr_lib evaluate MODEL --sets aime25,math500     accuracy, parallelism, speed
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m npr_lib",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    top.set_defaults(resume="the same command goes on from here")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run the pipeline of a profile, or go on with it",
        description="Run every stage that is not done with these parameters. A run that was "
        "killed goes on at the stage where it stopped; a stage whose parameters, inputs or code "
        "changed is run again.",
    )
    run.add_argument("--profile", default="tiny", help="name or path of a profile [%(default)s]")
    run.add_argument("--run", metavar="NAME", help="folder in reports/ [the profile's name]")
    run.add_argument(
        "--from",
        dest="from_stage",
        metavar="STAGE",
        help="run this stage (03_npr, or 03) and those after it even if they are done",
    )
    stages: dict[str, Any] = {"metavar": "STAGE[,STAGE]", "default": []}
    stages["type"] = lambda text: text.split(",")
    run.add_argument("--only", **stages, help="these stages and no others, where not done")
    run.add_argument(
        "--skip",
        **stages,
        help="not these stages; sr: not the sequential baselines SR-Beta and SR, anywhere",
    )
    run.add_argument(
        "-p",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value of the profile, such as -p npr.grpo.learning_rate=3e-4; repeatable",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="only say which stages would run, and why",
    )
    run.add_argument(
        "--smoke",
        action="store_true",
        help="the profile's smallest sizes, to see that all of it works",
    )
    run.set_defaults(command=_run)

    report = commands.add_parser("report", help="write the HTML pages and index of a run anew")
    report.add_argument("run", metavar="RUN", help="name or folder of a run")
    report.set_defaults(command=_report)

    _add_explore(commands)
    _add_bench(commands)
    _add_evaluate(commands)

    merge = commands.add_parser("merge", help="a LoRA adapter and its base as one model folder")
    merge.add_argument("adapter", metavar="ADAPTER", type=Path, help="folder of an adapter")
    merge.add_argument("folder", metavar="FOLDER", type=Path, help="a new one, of the merged model")
    merge.set_defaults(command=_merge)

    server = commands.add_parser(
        "serve",
        help="SGLang's own server, taught to fork and join",
        description="Serve a model by stock SGLang with the NPR plugin (docs/sglang.md). What "
        "follows the model is handed on to SGLang: --port 30000 --tp-size 2 ...",
    )
    server.add_argument("model", metavar="MODEL", help="folder or hub name of a model")
    server.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="SGLang's options")
    server.set_defaults(command=_serve)
    return top


def _add_explore(commands: argparse._SubParsersAction) -> None:
    explore = commands.add_parser(
        "explore",
        help="look at the responses of a run, or of a file made elsewhere",
        description="Open JupyterLab on the responses of a run, or write one page of them. Of a "
        "FILE with responses made elsewhere (JSON however it is arranged, or parquet) the page "
        "shows what parallel decoding would make of them; it lies beside the file.",
    )
    explore.add_argument("run", metavar="RUN|FILE", help="name or folder of a run, or a file")
    explore.add_argument("--html", metavar="PAGE", type=Path, help="write one page instead")
    explore.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        type=Path,
        help="of the model that wrote the FILE: a folder, or a tokenizer.json [words are tokens]",
    )
    explore.add_argument("--column", metavar="NAME", help="where the FILE has them [found]")
    explore.add_argument(
        "--where",
        metavar="ROWS",
        default="",
        help="only some responses, such as \"stage == 'npr' and accuracy == 0\"",
    )
    explore.set_defaults(command=_explore)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the engine against its peers",
        description="Time the engine and transformers on the same random weights, in turns, and "
        "write OUT/bench.json and OUT/bench.html. In full it takes more than an hour on two cores, "
        "which should do nothing else.",
    )
    bench.add_argument(
        "--models",
        metavar="A,B",
        help="of tiny, llama25m, llama135m, qwen3-1.7b [the first two on a CPU, else the others]",
    )
    bench.add_argument(
        "--only",
        dest="only",
        metavar="SECTION",
        nargs="+",
        choices=("decoding", "throughput", "slots", "layout", "marginal", "training"),
        help="sections to measure, of %(choices)s [all]",
    )
    bench.add_argument("--quick", action="store_true", help="the smallest sizes, for a look")
    bench.add_argument("--pairs", metavar="N", type=int, help="paired runs [5; 2 if quick]")
    bench.add_argument("--device", choices=("cpu", "cuda"), help="[cuda where there is one]")
    bench.add_argument("--dtype", choices=("float32", "bfloat16"), help="[bfloat16 on cuda]")
    bench.add_argument("--out", metavar="FOLDER", type=Path, help="[reports/bench]")
    bench.set_defaults(command=_bench, resume="what was measured so far is in OUT/bench.json")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "evaluate",
        help="models on benchmarks: accuracy, parallelism, speed",
        description="Answer problem sets with one model or several and write OUT/benchmarks.html, "
        "OUT/results.json and OUT/responses/MODEL/SET.parquet (docs/evaluation.md). The same "
        "command goes on where it was stopped.",
    )
    command.add_argument("models", metavar="MODEL", nargs="+", help="folder of a model")
    command.add_argument(
        "--sets",
        required=True,
        metavar="A,B",
        help="of benchmarks (aime25, aime24, hmmt25, olympiadbench, minerva, zebralogic, amc23, "
        "math500, gpqa), files of problems, and rg:GENERATOR of reasoning-gym",
    )
    command.add_argument("--k", type=int, metavar="N", help="samples a problem [a set's own]")
    command.add_argument(
        "--mode",
        choices=("auto", "parallel", "sequential"),
        default="auto",
        help="how to decode [as each model says]",
    )
    command.add_argument("--engine", default="torch", help="torch, sglang or a URL [%(default)s]")
    command.add_argument("--out", metavar="DIR", type=Path, help="[reports/benchmarks]")
    command.add_argument("--data", metavar="DIR", help="folder of benchmark files [benchmarks]")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N problems of each")
    command.add_argument(
        "--prompt",
        metavar="TEXT",
        help="with {problem} in it; or, in YAML, {template: TEXT, system: TEXT, chat: OPTIONS}",
    )
    command.add_argument(
        "--style", choices=("compact", "lines"), help="what stands around the tags [the model's]"
    )
    command.add_argument(
        "--speed",
        type=int,
        metavar="N",
        help="time the decoding of N responses a set, 0: don't [4]",
    )
    command.add_argument(
        "--protocol",
        metavar="NAME",
        help="grade by it too, in rows of their own: a name, or MODULE:FUNCTION",
    )
    for name, kind, text in _SAMPLING:
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(flag, type=kind, metavar="X", help=text)
    command.set_defaults(command=_evaluate)


_SAMPLING = (
    ("seed", int, "of the sampling [0]"),
    ("temperature", float, "0: greedy [1, the paper's]"),
    ("top_p", float, "[0.7, the paper's]"),
    ("top_k", int, "[off]"),
    ("max_tokens", int, "of a response, over all branches [40000, the paper's]"),
    ("max_span", int, "tokens on the critical path [no limit]"),
    ("branch_penalty", float, "on tokens a branch has written already [off]"),
    ("num_slots", int, "of the KV pool, in tokens [65536]"),
    ("max_running", int, "responses in flight [256]"),
    ("max_branches", int, "[5]"),
    ("max_depth", int, "[1]"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (1: an error, told in a line; 130: interrupted)."""
    options = parser().parse_args(arguments)
    try:
        options.command(options)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        print(f"error: {error.strerror}: {error.filename or Path.cwd()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {options.resume}", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    from npr_lib.workbench import pipeline  # heavy imports stay out of --help

    run_dir = pipeline.run(
        options.profile,
        options.run,
        options.from_stage,
        options.overrides,
        smoke=options.smoke,
        only=options.only,
        skip=options.skip,
        dry=options.dry_run,
    )
    if not options.dry_run:
        print(relative(run_dir / "index.html"))


def _report(options: argparse.Namespace) -> None:
    from npr_lib.workbench import pipeline

    print(relative(pipeline.report(pipeline.find_run(options.run))))


def _merge(options: argparse.Namespace) -> None:
    from npr_lib.engine.checkpoint import merge_folder

    if options.folder.exists():
        raise WorkbenchError(f"{options.folder} exists already")
    merge_folder(options.adapter, options.folder)


def _explore(options: argparse.Namespace) -> None:
    from npr_lib.workbench import pipeline

    file = Path(options.run)
    if file.is_file() or file.suffix in (".json", ".jsonl", ".parquet"):
        target = options.html or file.with_name(f"{file.name}.html")
        pipeline.explore_texts(file, target, options.tokenizer, options.column, options.where)
        print(relative(target))
        return
    if options.tokenizer or options.column:
        raise WorkbenchError(f"{options.run} is no file: --tokenizer and --column are for one")
    run_dir = pipeline.find_run(options.run)
    if options.html is None:
        notebook = pipeline.explorer(run_dir, options.where)
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(notebook)])
    pipeline.explore(run_dir, options.html, options.where)
    print(relative(options.html))


def _bench(options: argparse.Namespace) -> None:
    from npr_lib.bench import benchmark

    models = options.models.split(",") if options.models else None
    page = benchmark.run(
        models,
        options.only,
        options.device,
        options.dtype,
        options.quick,
        options.pairs,
        options.out or benchmark.OUT,
    )
    print(relative(page))


def _evaluate(options: argparse.Namespace) -> None:
    from dataclasses import fields, replace

    import yaml

    from npr_lib.analysis.benchmark import Settings
    from npr_lib.analysis.sets import read_sets
    from npr_lib.tasks.benchmarks import FOLDER
    from npr_lib.workbench import benchmarks

    given = {name: value for name, value in vars(options).items() if value is not None}
    if given.get("prompt", "").lstrip().startswith("{template:"):
        given["prompt"] = yaml.safe_load(given["prompt"])

    def changed(default: Any) -> Any:
        own = {f.name for f in fields(default)} & set(given)
        return replace(default, **{name: given[name] for name in own})

    try:
        settings = changed(Settings())
        settings = replace(
            settings, sampling=changed(settings.sampling), config=changed(settings.config)
        )
    except ValueError as error:
        raise WorkbenchError(str(error)) from error
    sets = read_sets(options.sets, options.limit, options.data or FOLDER)
    print(relative(benchmarks.run(options.models, sets, options.out or benchmarks.OUT, settings)))


def _serve(options: argparse.Namespace) -> None:
    from npr_lib.engine.sglang.backend import serve

    serve(options.model, options.options)


if __name__ == "__main__":
    sys.exit(main())
