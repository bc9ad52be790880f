"""Teachers behind a server, and the log that keeps their answers: what costs time and money is asked once.

A teacher is a function: request (a dict with number and prompt) -> answer, a dict with text, finish, prompt_tokens, completion_tokens.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .files import UserError, read_jsonl, write_text

TEMPLATE = "{{ bos_token }}{% for m in messages %}### Instruction:\n{{ m.content }}\n\n### Response:\n{% endfor %}"  # the prompt of `data.format_prompt`


def api_teacher(knobs, environ=os.environ, prefix="TEACHER"):
    """Return a teacher behind any OpenAI-compatible server: TEACHER_BASE_URL, TEACHER_MODEL and TEACHER_API_KEY name it.

    The client of `openai` repeats what fails for a moment (429, 5xx, time-outs), with back-off, as often as knobs.teacher_retries.
    With another `prefix` other variables name it: JUDGE for the LLM judge of chapter 15.
    """
    url, model, key, who = f"{prefix}_BASE_URL", f"{prefix}_MODEL", f"{prefix}_API_KEY", prefix.lower()
    missing = [name for name in (url, model) if not environ.get(name)]
    if missing:
        raise UserError(f"{missing[0]} is not set; a {who} needs {url} and {model}, and {key} if its server asks for one.")
    try:
        import openai
    except ImportError:
        raise UserError(f"a {who} behind a server needs the package openai: pip install 'dialectbook[teacher]'.") from None
    client = openai.OpenAI(base_url=environ[url], api_key=environ.get(key) or "none",
                           max_retries=knobs.teacher_retries, timeout=knobs.teacher_timeout)
    lock, due = threading.Lock(), [0.0]

    def ask(request):
        with lock:  # the rate limit: requests begin at least so far apart
            due[0] = max(due[0], time.monotonic()) + 60 / knobs.teacher_requests_per_minute
            wait = due[0] - 60 / knobs.teacher_requests_per_minute - time.monotonic()
        time.sleep(max(0.0, wait))
        try:
            reply = client.chat.completions.create(model=environ[model], messages=[{"role": "user", "content": request["prompt"]}],
                                                   temperature=knobs.teacher_temperature, max_tokens=knobs.teacher_max_tokens)
        except openai.APIStatusError as error:  # never its text: a server may repeat the key in it
            raise UserError(f"the {who} answered with status {error.status_code}; everything answered so far is kept, run again to go on.") from None
        except openai.APIConnectionError:
            raise UserError(f"the {who} at {url} did not answer after {1 + knobs.teacher_retries} tries; everything answered so far "
                            "is kept, run again to go on.") from None
        except ValueError:  # a body that is no JSON
            reply = None
        choice = (getattr(reply, "choices", None) or [None])[0]
        message, used = getattr(choice, "message", None), getattr(reply, "usage", None)
        text = getattr(message, "content", None) or ""
        tokens = {key: getattr(used, key, None) for key in ("prompt_tokens", "completion_tokens")}
        guess = {"prompt_tokens": len(request["prompt"]) // 2, "completion_tokens": len(text) // 2}  # no usage: rather too many than too few
        return {"text": text, "finish": getattr(choice, "finish_reason", None) or "none", **{key: tokens[key] or guess[key] for key in tokens}}

    return ask


class AnswerLog:
    """The answers so far, by the number of their request; with a folder also on disk, one line each, the only state that a run has."""

    def __init__(self, folder=None):
        self.path, self.answers, self.lock = folder and folder / "answers.jsonl", {}, threading.Lock()
        if self.path and self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            if not text.endswith("\n"):  # a run that was killed while writing
                write_text(self.path, text[:text.rfind("\n") + 1])
            self.answers = {row["number"]: row for row in read_jsonl(self.path, required=("number", "prompt", "text", "finish"))}

    def holds(self, request):
        """Return whether the request was answered; raises UserError when its number was, but to another prompt."""
        row = self.answers.get(request["number"])
        if row and row["prompt"] != _hash(request["prompt"]):
            raise UserError(f"{self.path}: request {request['number']} was made with other seeds, knobs or judge; remove that file to begin anew.")
        return row is not None

    def add(self, request, answer):
        """Keep an answer, on disk first."""
        row = {"number": request["number"], "prompt": _hash(request["prompt"]), **answer}
        with self.lock:
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            self.answers[request["number"]] = row


def ask_missing(teacher, log, requests, at_once):
    """Ask those of the requests that the log does not hold, `at_once` under way at a time; return how many were asked."""
    missing = [request for request in requests if not log.holds(request)]
    with ThreadPoolExecutor(at_once) as workers:
        list(workers.map(lambda request: log.add(request, teacher(request)), missing))
    return len(missing)


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- a local one ----------------------------------------------------------------------------------------------------

def can_serve():
    """Return whether the packages of the extra `teacher` are here: the openai client, and what `transformers serve` needs."""
    return all(importlib.util.find_spec(name) for name in ("openai", "fastapi", "uvicorn"))


@contextlib.contextmanager
def served(model, wait=90):
    """Serve a model's folder on this machine with `transformers serve` while the block runs; gives the environment for `api_teacher`.

    A tokenizer without a chat template gets the book's prompt as one, in a copy of the folder.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        copy = Path(shutil.copytree(model, Path(folder) / "model"))
        if not (copy / "chat_template.jinja").is_file():
            write_text(copy / "chat_template.jinja", TEMPLATE)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(copy), "--host", "127.0.0.1",
                   "--port", str(port), "--device", "cpu", "--default-seed", "0", "--log-level", "error"]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            try:
                until = time.monotonic() + wait
                while not _answers(address):
                    if process.poll() is not None or time.monotonic() > until:
                        log.seek(0)
                        raise UserError(f"transformers serve did not start: {(log.read().strip().splitlines() or ['no output'])[-1][:200]}")
                    time.sleep(0.2)
                yield {"TEACHER_BASE_URL": f"{address}/v1", "TEACHER_MODEL": str(copy)}
            finally:
                process.terminate()
                process.wait()


def _answers(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False
