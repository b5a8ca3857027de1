"""What the project can do with itself: `python -m nox -l` lists the sessions, `python -m nox -s tests` runs one.

Every session makes its own environment from nothing but Python and pip (or uv, where it is installed). Nox itself may
run on an older Python than the package: the sessions look for one that is new enough.
"""

from __future__ import annotations

import atexit
import logging
import sys
from pathlib import Path

import nox

TOO_OLD = (
    f"penstock needs Python 3.11 or newer, but only {sys.version.split()[0]} was found: install one, then try again."
)
try:
    from python_discovery import get_interpreter
except ImportError:  # nox of Python 3.7 and older came without it
    sys.exit(TOO_OLD)

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "types", "imports", "coverage", "docs"]
logging.getLogger("python_discovery").setLevel(logging.WARNING)  # older releases of nox show its search

PROJECT = nox.project.load_toml("pyproject.toml")
WHEELS = Path(".nox", "wheel")
CODE = [name for name in ("src", "tests", "benchmarks", "noxfile.py") if Path(name).exists()]
PEERS = "*peers.py"
FULLY_COVERED = ("_core", "guards")

RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
SUPPORTED = ["3.11", "3.12", "3.13"]
PRESENT = [version for version in SUPPORTED if version == RUNNING or get_interpreter(version)]
if not PRESENT and sys.version_info >= (3, 14):
    SUPPORTED = PRESENT = [RUNNING]
if not PRESENT:
    sys.exit(TOO_OLD)
NEWEST = PRESENT[-1]
DEFAULT = RUNNING if RUNNING in PRESENT else NEWEST

built: list[Path] = []
passed: list[str] = []


@atexit.register
def report_pythons() -> None:
    """Say on which Pythons the tests passed, after all else."""
    if passed:
        print(f"tests ran on Python {', '.join(passed)}")


def group(*names: str) -> list[str]:
    """Return what the dependency groups of `pyproject.toml` ask for."""
    return list(nox.project.dependency_groups(PROJECT, *names))


def build_wheel(session: nox.Session) -> Path:
    """Build the wheel of this tree, once in each run of nox."""
    if not built:
        session.install("build")
        for old in WHEELS.glob("*.whl"):
            old.unlink()
        session.run("python", "-m", "build", "--wheel", "--outdir", str(WHEELS), silent=True)
        built.extend(WHEELS.resolve().glob("*.whl"))
    return built[0]


def install_wheel(session: nox.Session, *requirements: str, extras: str = "") -> None:
    """Install the built wheel, never the source tree, and whatever else a session needs."""
    wheel = build_wheel(session)
    session.install(f"penstock{extras} @ {wheel.as_uri()}", *requirements)
    # A reused environment may hold an older build of the same version.
    session.install("--force-reinstall", "--no-deps", str(wheel))


@nox.session(python=DEFAULT)
def demo(session: nox.Session) -> None:
    """Run the main job against the local simulator: 2,000 prompts, all answered."""
    install_wheel(session, extras="[cli,simulator]")
    session.run("penstock", "demo", *session.posargs)


@nox.session(python=DEFAULT)
def chat(session: nox.Session) -> None:
    """Serve the example chat on the simulator, to this machine only: open the address it shows; Ctrl-C ends it."""
    install_wheel(session, *group("chat"))
    session.run("python", "docs/examples/chat/app.py", *session.posargs)


@nox.session(python=SUPPORTED)
def tests(session: nox.Session) -> None:
    """Test the built wheel: all of it with coverage on the newest Python, a fast subset on the others."""
    install_wheel(session, *group("test"))
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
    elif session.python == NEWEST:
        session.run("coverage", "erase")
        session.run("coverage", "run", "-m", "pytest", "-n", "auto")
    else:
        session.run("python", "-m", "pytest", "-n", "auto", "-m", "not slow")
    passed.append(str(session.python))


@nox.session(python=DEFAULT)
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*group("lint"))
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)


@nox.session(python=DEFAULT)
def types(session: nox.Session) -> None:
    """Check types: mypy strict everywhere, pyright strict on what users import."""
    session.install("--editable", ".", *group("types"))
    session.run("mypy", *CODE)
    session.run("pyright")


@nox.session(python=DEFAULT)
def imports(session: nox.Session) -> None:
    """Check that imports go one way, as the contracts in `pyproject.toml` say."""
    session.install("--editable", ".", *group("imports"))
    session.run("lint-imports")


@nox.session(python=DEFAULT)
def coverage(session: nox.Session) -> None:
    """Check the branch coverage that the last full `tests` measured."""
    session.install(*group("coverage"))
    measured = [str(path) for path in Path().glob(".coverage.*")]
    if measured:
        session.run("coverage", "combine", "--quiet", *measured)
    elif not Path(".coverage").exists():
        session.error("nothing measured yet: run `python -m nox -s tests` first")
    session.run("coverage", "report")
    parts = [part for part in FULLY_COVERED if Path("src", "penstock", part).exists()]
    included = ",".join(f"*/penstock/{part}/*" for part in parts)
    session.run("coverage", "report", f"--include={included}", "--fail-under=100")


@nox.session(python=DEFAULT)
def docs(session: nox.Session) -> None:
    """Run every example of the README, the docs and the public docstrings."""
    install_wheel(session, *group("test"))
    session.run("python", "-m", "pytest", "tests/test_examples.py", *session.posargs)


@nox.session(python=DEFAULT)
def bench(session: nox.Session) -> None:
    """Measure the figures of `docs/benchmarks.md` again; other libraries only if a script of them is asked for."""
    ours = sorted(str(path) for path in Path("benchmarks").glob("[!_]*.py") if not path.match(PEERS))
    scripts = session.posargs or ours
    compares = any(Path(script).match(PEERS) for script in scripts)
    install_wheel(session, *(group("bench", "peers") if compares else group("bench")))
    for script in scripts:
        session.run("python", script)
