"""How every chapter begins and ends: load the knobs, say what made the page, and write the results file."""

import importlib.metadata
import os

from .files import write_json
from .hardware import GPU_PROFILES, detect, pick_profile
from .knobs import load_knobs
from .paths import Run

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # active waiting collapses when both cores are in use
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
PACKAGES = ("dialectbook", "torch", "transformers", "peft", "trl", "datasets", "sacrebleu", "scikit-learn")


def start(profile="auto", experiment="", seed=0, overrides=None, sections=None):
    """Return (knobs, run) after checking them; shows the machine, the profile and why, and the knobs of this chapter.

    `sections` limits the table to knobs whose names start with one of these words. Raises UserError (one sentence) for
    anything wrong in the parameters.
    """
    from IPython.display import display

    from .show import folded, paragraphs, table

    hardware = detect()
    profile, why = pick_profile(profile, hardware)
    knobs, rows = load_knobs(profile, experiment, overrides)
    run = Run(profile)
    twin = "" if profile in GPU_PROFILES else " Its numbers come from the CPU twin: they speak about the mechanism, not about ALLaM-7B."
    of = f" Experiment {experiment}, seed {seed}." if experiment else ""
    display(paragraphs(f"Profile {profile} ({why}).{twin}{of}",
                       f"Machine: {hardware}. Precision {knobs.dtype}, base model {knobs.base_model}.",
                       "Versions: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES) + "."))
    if sections:
        rows = [row for row in rows if row["knob"].startswith(tuple(sections))]
    display(folded("The knobs of this chapter: value here, value in the paper, source, reason", table(rows)))
    _quiet_logs()
    return knobs, run


def finish(path, results):
    """Write the chapter's results file, the mark that it ran to its end, and say where it is."""
    write_json(path, results)
    print(f"Results: {os.path.relpath(path, os.environ.get('DIALECTBOOK_RUNS') or path.parents[2])}")


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _quiet_logs():
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="IProgress not found")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|trl|peft")
    for name in ("sacrebleu", "bitsandbytes"):  # the latter tells each layer and call that activations are cast before they are rounded
        logging.getLogger(name).setLevel(logging.ERROR)
