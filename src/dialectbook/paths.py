"""Where things are: the project's own folders, and the folder of one run (DESIGN.md, Contracts)."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("DIALECTBOOK_ROOT") or Path(__file__).parents[2])
DATA = ROOT / "data"
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"


class Run:
    """The folder of everything that one profile makes: `runs/<profile>/`."""

    def __init__(self, profile):
        self.root = Path(os.environ.get("DIALECTBOOK_RUNS") or ROOT / "runs") / profile
        self.data = self.root / "data"
        self.base = self.root / "base"
        self.english = self.root / "english"
        self.judge = self.root / "judge"
        self.results = self.root / "results"
        self.figures = self.root / "figures"

    def split(self, name):
        """Return the path of the split `name`: train, dev or test."""
        return self.data / f"{name}.jsonl"

    def experiment(self, experiment, seed):
        """Return the folder of one experiment and seed."""
        return self.root / "experiments" / experiment / f"seed-{seed}"
