"""Run the book:  python -m dialectbook.run --profile tiny   (what `make book` calls).

Starts Snakemake, shows which chapter runs and how many are left, and ends with where the page is and the headline table.
"""

import argparse
import os
import re
import subprocess
import sys
import time

import yaml

from .files import UserError, read_json, write_text
from .hardware import pick_profile
from .knobs import load_knobs
from .paths import ROOT, Run

PROGRESS = re.compile(r"(\d+) of (\d+) steps")


def parse_overrides(pairs):
    """Return {knob: value} from texts like "learning_rate=2.0e-4"; values are read as YAML."""
    overrides = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise UserError(f"--set {pair!r} has no value; write --set knob=value.")
        overrides[key.strip()] = yaml.safe_load(value)
    return overrides


def flow(value):
    """Return a value as YAML on one line, which keeps small numbers numbers (1.0e-05; JSON's 1e-05 would become text)."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf")).strip()


def lock(folder):
    """Return an open file that holds the only right to run in `folder`; the system lets go of it when a run is killed."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another folder with DIALECTBOOK_RUNS.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"another run is at work in {folder}; wait until it ends.") from None
    return file


def run_book(profile="auto", target="book", overrides=None, cores=0):
    """Run the workflow for a profile up to `target`; return whether anything was to do. Raises UserError if it failed."""
    profile, why = pick_profile(profile)
    load_knobs(profile, "", overrides)
    run = Run(profile)
    held = lock(run.root)
    cores = cores or os.cpu_count() or 1
    print(f"Profile {profile} ({why}), {cores} cores, everything under {os.path.relpath(run.root)}", flush=True)
    settings = write_text(run.root / "settings.yaml", flow({"profile": profile, "overrides": overrides or {}}) + "\n")
    # --nolock: the lock above does the same and does not outlive a killed run
    command = [sys.executable, "-m", "snakemake", target, "--snakefile", str(ROOT / "workflow/Snakefile"), "--cores", str(cores),
               "--workflow-profile", str(ROOT / "workflow/profiles/default"), "--nolock", "--rerun-incomplete",
               "--nocolor", "--configfile", str(settings)]
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}",
                                "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT / "src")}
    begun, log = time.perf_counter(), run.root / "snakemake.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        lines = []
        for line in process.stderr:
            file.write(line)
            lines.append(line)
            if match := PROGRESS.search(line):
                done, total = map(int, match.groups())
                print(f"[{done}/{total}] {total - done} left, {time.perf_counter() - begun:.0f} s", flush=True)
    held.close()
    if process.wait():
        raise UserError(f"the run stopped; the reason is above, or in {os.path.relpath(log)}. What is finished is kept: run again to go on.")
    return not any("Nothing to be done" in line for line in lines)


def headline(run):
    """Return the headline table of chapter 09 as text."""
    rows = read_json(run.results / "09_results.json", "09_results")["headline"]
    widths = {key: max(len(str(key)), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    lines = ["  ".join(str(key).ljust(widths[key]) for key in widths)]
    return "\n".join(lines + ["  ".join(str(row[key]).ljust(widths[key]) for key in widths) for row in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--target", default="book", choices=["book", "results"])
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="override a knob; may be repeated")
    parser.add_argument("--cores", type=int, default=0, help="default: all")
    arguments = parser.parse_args()
    try:
        begun = time.perf_counter()
        worked = run_book(arguments.profile, arguments.target, parse_overrides(arguments.set), arguments.cores)
        run = Run(pick_profile(arguments.profile)[0])
        print(f"\n{headline(run)}\n")
        print("Nothing was to do: everything is up to date." if not worked else f"Done in {time.perf_counter() - begun:.0f} s.")
        if arguments.target == "book":
            print(f"The book: {run.root / 'book/html/index.html'}")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
