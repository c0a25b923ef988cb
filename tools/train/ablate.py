#!/usr/bin/env python3
"""What each part of the recipe gives: small models trained alike but for one thing, and what they can do by length.

Usage: ablate.py --prepared PREPARED --runs RUNS [--steps 1500 | --seconds 225] [--only full,mean] ...    trains, evaluates
       ablate.py --runs RUNS --plot                                                                       draws

A run is a process of train.py and one of evaluate.py in RUNS/NAME; called again, what is there already is kept, and a
training that was cut off begins anew. RUNS/ablations.csv has a line for each run, task and length; --plot makes of it
RUNS/ablations.svg and RUNS/ablations.md, the table of docs/ablations.md. All of it must have been trained alike: another
--steps, --seed or --config needs another RUNS. Where there are several GPUs, processes that name other runs with --only may
share RUNS. Compiled code is kept in RUNS/cache.
"""
import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import data
import figures

HERE = Path(__file__).resolve().parent
COLUMNS = ("name", "kind", "length", *figures.OF_TASKS, "steps", "tokens", "row_exact")
MEASURES = {"exact": "whole answers exact", "first_alone": "right chunk first"}


@dataclass(frozen=True)
class Ablation:
    title: str
    config: dict = field(default_factory=dict)       # keys of config.json that are other
    arguments: dict = field(default_factory=dict)    # of train.py
    length: int = data.L                             # tokens of a sequence


ABLATIONS = {
    "full": Ablation("the recipe"),
    "mean": Ablation("landmarks from the mean of a chunk, no CLS token", config={"enable_enc_cls": False}),
    "residual": Ablation("what was read stays in the stream: (x + o) + MLP(x + o)", config={"reset_hsa_residual": True}),
    "short": Ablation("contexts of 8 chunks: nothing to select from", length=512),
    "no_words": Ablation("landmarks not drawn towards words", arguments={"lexical": 0.0}),
    "no_reading": Ablation("heads not told which token to look at", arguments={"read": 0.0}),
}


def tokens_of(length: int) -> int:
    """That a step reads for each sequence: the stream and its rows."""
    return length + data.MakerOptions(length=length).scaled(data.G) * data.T


def sequences_of(length: int, batch: int) -> int:
    """So many of this length cost what `batch` of 4,096 tokens do."""
    return round(batch * tokens_of(data.L) / tokens_of(length))


# ---- Runs

def call(script: str, *arguments, environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, str(HERE / script), *map(str, arguments)], env=os.environ | environment)
    if done.returncode:
        raise SystemExit(f"ablate: {script} ended with {done.returncode}; call again to go on")


def training_arguments(args, ablation: Ablation) -> dict[str, object]:
    out = {"prepared": args.prepared, "seed": args.seed, "workers": args.workers, "device": args.device,
           "length": ablation.length, "batch": sequences_of(ablation.length, args.batch), "log-every": args.log_every,
           "save-every": 1e9}
    out |= {"steps": args.steps} if args.steps else {"seconds": args.seconds}
    return out | ablation.arguments


def train(args, name: str, environment: dict[str, str]) -> None:
    """Leaves RUNS/NAME/trained.json behind, which says how."""
    ablation, out = ABLATIONS[name], args.runs / name
    config = json.loads(args.config.read_text()) | ablation.config
    arguments = training_arguments(args, ablation)
    told = {"config": config, "no_compile": args.no_compile, "eager": args.eager,
            "arguments": {key: str(value) for key, value in arguments.items()
                          if key not in ("prepared", "workers", "log-every")}}
    mark = out / "trained.json"
    if mark.exists():
        if json.loads(mark.read_text()) != told:
            raise SystemExit(f"ablate: {out} was trained in another way; remove it, or name other --runs")
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "trained_from.json").write_text(json.dumps(config, indent=1))
    flags = [flag for flag, given in (("--no-compile", args.no_compile), ("--eager", args.eager)) if given]
    call("train.py", "--out", out, "--config", out / "trained_from.json", *flags,
         *(part for key, value in arguments.items() for part in (f"--{key}", value)), environment=environment)
    mark.write_text(json.dumps(told, indent=1))


def evaluate(args, name: str, environment: dict[str, str]) -> None:
    """What is not in RUNS/NAME/figures.json yet."""
    out = args.runs / name
    known = {(record["kind"], record["length"]) for record in figures.of_tasks(figures.read(out / "figures.json"))}
    for kind in args.kinds:
        missing = [length for length in args.lengths if (kind, length) not in known]
        if missing:
            call("evaluate.py", "--prepared", args.prepared, "--run", out, "--kinds", kind, "--lengths",
                 ",".join(map(str, missing)), "--asks", args.asks, "--device", args.device, "--save", out / "figures.json",
                 "--no-questions", "--no-prose", environment=environment)


def collect(runs: Path) -> None:
    rows = []
    for name in ABLATIONS:
        trained = runs / name / "run.json"
        if not trained.exists():
            continue
        run = json.loads(trained.read_text())
        last = (run["figures"] or [{}])[-1]
        for record in figures.of_tasks(figures.read(runs / name / "figures.json")):
            rows.append([name, *(record[column] for column in COLUMNS[1:-3]), run["step"], run["tokens"],
                         last.get("row_exact", "")])
    with open(runs / "ablations.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


# ---- Pictures

def read_csv(path: Path) -> list[dict]:
    number = {"length": int, "asks": int} | dict.fromkeys(MEASURES, float)
    with open(path, newline="") as file:
        return [{key: number.get(key, str)(value) for key, value in row.items()} for row in csv.DictReader(file)]


def ordered(rows: list[dict], column: str) -> list:
    return list(dict.fromkeys(row[column] for row in rows))


def power(length: int) -> str:
    return f"{length >> 20} Mi" if length >= 1 << 20 else f"{length >> 10} Ki"


def table(rows: list[dict]) -> str:
    """Markdown: a line a run, a column a task and length; answers exact, and the right chunk first behind the stroke."""
    columns = sorted({(row["kind"], row["length"]) for row in rows})
    cells = {(row["name"], row["kind"], row["length"]): f"{row['exact']:.2f} / {row['first_alone']:.2f}" for row in rows}
    lines = [["run", "what is other", *(f"{kind} {power(length)}" for kind, length in columns)], ["---"] * (len(columns) + 2)]
    for name in ordered(rows, "name"):
        lines.append([name, ABLATIONS[name].title, *(cells.get((name, *column), "") for column in columns)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def plot(rows: list[dict], out: Path) -> None:
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ablations"  # the same figures give the same file
    from matplotlib import pyplot
    kinds = ordered(rows, "kind")
    picture, axes = pyplot.subplots(len(MEASURES), len(kinds), figsize=(4.5 * len(kinds), 6.5), squeeze=False, sharex=True)
    for line, (measure, title) in zip(axes, MEASURES.items()):
        for place, kind in zip(line, kinds):
            for name in ordered(rows, "name"):
                points = sorted((row["length"], row[measure]) for row in rows if (row["name"], row["kind"]) == (name, kind))
                place.plot(*zip(*points), marker="o", markersize=3, label=name)
            lengths = sorted({row["length"] for row in rows})
            place.set_xscale("log", base=2)
            place.set_xticks(lengths, [power(length) for length in lengths])
            place.set(ylim=(-0.03, 1.03), title=f"{kind}: {title}")
            place.grid(alpha=0.3)
    for place in axes[-1]:
        place.set_xlabel("tokens of the memory")
    axes[0][0].legend(fontsize="small")
    picture.tight_layout()
    picture.savefig(out, metadata={"Date": None})
    pyplot.close(picture)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, help="what prepare.py wrote")
    parser.add_argument("--config", type=Path, default=HERE / "configs/ablation.json")
    parser.add_argument("--only", type=names, default=list(ABLATIONS), help=",".join(ABLATIONS))
    parser.add_argument("--seconds", type=float, default=225, help="of training, a run")
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    parser.add_argument("--batch", type=int, default=16, help="sequences of 4,096 tokens a step; of short ones as many cost")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true", help="as train.py has it: each run begins minutes earlier")
    parser.add_argument("--eager", action="store_true", help="as train.py has it")
    parser.add_argument("--kinds", type=names, default=["passkey", "numbered"])
    parser.add_argument("--lengths", type=lambda text: [int(length) for length in names(text)],
                        default=[4096, 16384, 65536, 262144])
    parser.add_argument("--asks", type=int, default=100)
    parser.add_argument("--plot", action="store_true", help="draw what ablations.csv holds, and do nothing else")
    args = parser.parse_args(given)
    if args.plot:
        rows = read_csv(args.runs / "ablations.csv")
        if not rows:
            raise SystemExit(f"ablate: {args.runs}/ablations.csv holds no figures yet; run without --plot first")
        plot(rows, args.runs / "ablations.svg")
        (args.runs / "ablations.md").write_text(table(rows))
        return
    if args.prepared is None:
        parser.error("--prepared is needed to train")
    if unknown := set(args.only) - set(ABLATIONS):
        parser.error(f"no such ablation: {', '.join(sorted(unknown))}")
    cache = args.runs.resolve() / "cache"
    environment = {name: os.environ.get(name, str(cache / part)) for name, part in
                   (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton"))}
    for name in args.only:
        print(f"---- {name}: {ABLATIONS[name].title}", flush=True)
        train(args, name, environment)
        evaluate(args, name, environment)
        collect(args.runs)


if __name__ == "__main__":
    main()
