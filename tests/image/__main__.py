"""`python -m tests.image FOLDER`: run every step of the Dockerfile in a clean folder; root, Linux.

Each step is read from the Dockerfile and run in its order as user 1000; FOLDER stands for the root
of the image. The app then runs in a network of its own that reaches nothing, is asked for its
health, readiness and a prediction, and is stopped.

Left unproven: what is in the base image (this machine's Python takes its place), `useradd`, the
sizes and the caching of layers, a GPU, and that the Hub builds it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.image.dockerfile import Step, context, parse
from tests.sources import ROOT

HOME = "/home/user"
USER = "1000"
AS_USER = ("--reuid", USER, "--regid", USER, "--clear-groups")
START_S = 180
ASK = """
import json, sys, urllib.request as r
root, photo = sys.argv[1:]
boundary = "x" * 20
body = (f'--{boundary}\\r\\nContent-Disposition: form-data; name="files"; filename="a.jpg"\\r\\n'
        'Content-Type: image/jpeg\\r\\n\\r\\n').encode() + open(photo, "rb").read()
body += f"\\r\\n--{boundary}--\\r\\n".encode()
head = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
(path,) = json.load(r.urlopen(r.Request(f"{root}/gradio_api/upload", body, head)))
asked = {"image": {"path": path, "meta": {"_type": "gradio.FileData"}}, "top_k": 1}
head = {"Content-Type": "application/json"}
call = r.Request(f"{root}/gradio_api/call/v2/predict", json.dumps(asked).encode(), head)
event = json.load(r.urlopen(call))["event_id"]
answer = r.urlopen(f"{root}/gradio_api/call/predict/{event}").read().decode()
assert "event: complete" in answer, answer
print(answer.splitlines()[-2][:160])
"""


class Build:
    """A folder in which steps are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.home = self.folder / HOME.strip("/")
        self.workdir = self.folder
        self.bin = self.folder / "usr" / "local" / "bin"
        self.variables: dict[str, str] = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        self.user: str | None = None
        self.health: list[str] = []
        self.app: list[str] = []

    def run(self, step: Step) -> str:
        """Do one step; what was done, in a word."""
        match step.name:
            case "FROM":
                self.bin.mkdir(parents=True)
                (self.bin / "python").symlink_to(self.python())
                return f"{(self.bin / 'python').resolve()} stands in for {step.value}"
            case "RUN" if self.user is None:
                if not step.value.startswith("useradd --create-home --uid 1000 "):
                    raise ValueError(f"line {step.line}: only useradd may run as root")
                self.home.mkdir(parents=True)
                os.chown(self.home, 1000, 1000)
                return "not run; its home was made"
            case "RUN":
                self.shell(self.here(step.value))
            case "USER":
                if step.value != USER:
                    raise ValueError(f"line {step.line}: the user must be {USER}")
                self.user = step.value
            case "WORKDIR":
                self.workdir = Path(self.here(step.value))
                self.workdir.mkdir(parents=True, exist_ok=True)
                os.chown(self.workdir, 1000, 1000)
            case "ENV":
                for name, value in step.variables.items():
                    self.variables[name] = self.here(value).replace("$PATH", self.variables["PATH"])
            case "COPY":
                return f"{self.copy(step)} files"
            case "EXPOSE":
                if self.variables.get("NB_PORT") != step.value:
                    raise ValueError(f"line {step.line}: the app listens elsewhere")
            case "HEALTHCHECK":
                self.health = step.command
            case "CMD":
                self.app = step.command
        return "done"

    def python(self) -> str:
        """A Python of this machine that user 1000 may run."""
        own = str(Path(sys.base_prefix, "bin", "python3"))
        for candidate in (own, "/usr/local/bin/python3", "/usr/bin/python3"):
            check = f"{candidate} -c 'import ensurepip, venv'"
            command = ["setpriv", *AS_USER, "sh", "-c", f"cd / && {check}"]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return candidate
        raise RuntimeError("user 1000 may run no Python here that has venv and ensurepip")

    def here(self, text: str) -> str:
        """Text with the paths of the image as paths in the folder."""
        return text.replace(HOME, str(self.home))

    def copy(self, step: Step) -> int:
        source, target = step.arguments
        ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        files = [p for p in context(ROOT, ignore) if p == Path(source) or Path(source) in p.parents]
        if not files:
            raise ValueError(f"line {step.line}: the context holds no {source}")
        for path in files:
            end = self.workdir / target
            end = end / path.name if path == Path(source) else end / path.relative_to(source)
            end.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, end)
        owner = int(step.flags["chown"])
        for path in self.workdir.rglob("*"):
            os.chown(path, owner, owner, follow_symlinks=False)
        return len(files)

    def prefix(self) -> list[str]:
        """What makes a command the image's user, with its variables alone."""
        names = [f"{name}={value}" for name, value in self.variables.items()]
        # Where this machine keeps its package index; a build on the Hub uses PyPI.
        names += [f"{name}={value}" for name, value in os.environ.items() if name[:4] == "PIP_"]
        names += [f"{n}={os.environ[n]}" for n in ("SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy")
                  if n in os.environ]  # fmt: skip
        return ["setpriv", *AS_USER, "env", "-i", *names]

    def shell(self, command: str) -> None:
        subprocess.run([*self.prefix(), "sh", "-c", command], cwd=self.workdir, check=True)

    def serve(self) -> None:
        """Run the app where no network is, ask it, and stop it."""
        alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        process = subprocess.Popen([*alone, *self.prefix(), *self.app], cwd=self.workdir)
        inside = ["nsenter", "--net", "--target", str(process.pid), *self.prefix()]
        url = f"http://127.0.0.1:{self.variables['NB_PORT']}"
        try:
            ready = [*self.health[:2], self.health[2].replace("/healthz", "/readyz")]
            deadline = time.monotonic() + START_S
            while subprocess.run([*inside, *ready], capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the app is not ready")
                time.sleep(1)
            subprocess.run([*inside, *self.health], check=True)
            photo = next((self.workdir / "app" / "examples").glob("*.JPEG"))
            ask = [*inside, "python", "-c", ASK, url, str(photo)]
            subprocess.run(ask, cwd=self.workdir, check=True)
            reached = [
                *inside,
                "python",
                "-c",
                "import socket; socket.create_connection(('1.1.1.1', 443), 3)",
            ]
            if subprocess.run(reached, capture_output=True).returncode == 0:
                raise RuntimeError("the app could have reached a network, so nothing is shown")
        finally:
            process.terminate()
            status = process.wait(60)
        print(f"stopped with status {status}")


def main() -> int:
    """Run everything; the exit status says whether all of it went."""
    build = Build(Path(sys.argv[1]))
    if os.geteuid() != 0 or build.folder.exists():
        print("run as root, and name a folder that is not there yet", file=sys.stderr)
        return 2
    build.folder.mkdir(parents=True)
    for step in parse((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        started = time.monotonic()
        print(f"{step.line:3d} {step.name} {step.value[:80]}", flush=True)
        done = build.run(step)
        print(f"    {done}, {time.monotonic() - started:.0f} s", flush=True)
    build.serve()
    size = subprocess.run(["du", "-sm", str(build.folder)], capture_output=True, text=True).stdout
    print(f"{size.split()[0]} MB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
