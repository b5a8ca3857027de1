"""What the project can do with itself: `python -m nox -l` lists the sessions, `python -m nox -s tests` runs one.

Every session makes its own environment from nothing but Python and pip (or uv, where it is installed). Nox itself may
run on an older Python than the package: the sessions look for one that is new enough.

What a session installs is what was tested: `requirements/*.txt`, written from `uv.lock`, names every package with its
version and hashes, and the project's own wheel comes on top without dependencies. Only `newest` and `lowest` choose
versions themselves: that is what they are for.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
from pathlib import Path

import nox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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

# Many a test starts an interpreter, and each would compile the SDK's 3,000 modules again, or all tests: pip compiles
# what it installs, uv only if it is told to, and where Python is told to write no bytecode, nobody else ever does.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["UV_COMPILE_BYTECODE"] = "1"

PROJECT = nox.project.load_toml("pyproject.toml")
WHEELS = Path(".nox", "wheel")
LOCKED = Path("requirements")
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
OLDEST = PRESENT[0]
DEFAULT = RUNNING if RUNNING in PRESENT else NEWEST

# One worker a core; whoever has none left takes over tests of another, so that no core idles behind a few long ones.
EVERYTHING = ["-n", "auto", "--dist=worksteal"]
# All that can be tried between two edits. Hypothesis tries fewer examples: the profile is in `tests/conftest.py`.
QUICK = [*EVERYTHING, "-m", "not slow and not lengthy", "--hypothesis-profile=quick"]
# What a release that we have not met yet may bring and must not fail for: it is shown. Anything else stays an error.
# On the command line these come after `filterwarnings` of `pyproject.toml`, and the last one counts.
SHOW_DEPRECATIONS = [
    f"-Wdefault::{category}" for category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
]

# No header and no index: they would tell of the machine that wrote the files.
EXPORT = ["--frozen", "--quiet", "--no-header", "--no-annotate", "--no-emit-project", "--no-default-groups"]

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


def install_locked(session: nox.Session, *names: str) -> None:
    """Install what `requirements/<name>.txt` lists: these files and no others, whatever the index offers today."""
    files = [argument for name in names for argument in ("-r", str(LOCKED / f"{name}.txt"))]
    session.install("--require-hashes", *files)


def build_wheel(session: nox.Session) -> Path:
    """Build the wheel of this tree, once in each run of nox, in an environment with the locked build tools."""
    if not built:
        for old in WHEELS.glob("*.whl"):
            old.unlink()
        session.run("python", "-m", "build", "--no-isolation", "--wheel", "--outdir", str(WHEELS), silent=True)
        built.extend(WHEELS.resolve().glob("*.whl"))
    return built[0]


def install_wheel(session: nox.Session, name: str) -> None:
    """Install what a session needs, locked, and the built wheel, never the source tree."""
    install_locked(session, "build", name)
    # A reused environment may hold an older build of the same version.
    session.install("--force-reinstall", "--no-deps", str(build_wheel(session)))


def install_editable(session: nox.Session, name: str) -> None:
    """Install what a session needs, locked, and the source tree."""
    install_locked(session, "build", name)
    session.install("--no-build-isolation", "--no-deps", "--editable", ".")


def install_resolved(session: nox.Session, *options: str) -> None:
    """Install the built wheel and what its tests need, in releases that uv chooses, and say how these differ."""
    install_locked(session, "build", "resolve")
    wheel = build_wheel(session)
    python = f"--python={session.virtualenv.location}"
    # Asked of the wheel, the project's own dependencies would be somebody else's: `lowest-direct` leaves those alone.
    requirements = [*PROJECT["project"]["dependencies"], *group("test")]
    session.run("uv", "pip", "install", "--quiet", python, "--upgrade", *options, *requirements)
    session.install("--force-reinstall", "--no-deps", str(wheel))
    installed = session.run("uv", "pip", "freeze", python, silent=True, log=False)
    report_difference(pins(str(installed)), pins((LOCKED / "test.txt").read_text(encoding="utf-8")))


def pins(text: str) -> dict[str, str]:
    """Return the versions that a text in the format of `requirements.txt` names."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def report_difference(installed: dict[str, str], locked: dict[str, str]) -> None:
    """Say which packages are not those that the other sessions install."""
    others = [name for name in sorted(installed) if name in locked and installed[name] != locked[name]]
    print(f"{len(others)} packages differ from the locked ones" + ":" * bool(others))
    for name in others:
        print(f"  {name}: {locked[name]} -> {installed[name]}")


def chosen_tests(session: nox.Session) -> list[str]:
    """Return the arguments for pytest of a session that takes `quick`, any other, or none for all tests."""
    if session.posargs == ["quick"]:
        return QUICK
    return session.posargs or EVERYTHING


def exported(*, groups: Sequence[str] = (), extras: Sequence[str] = (), project: bool = True) -> list[str]:
    """Return the arguments of `uv export` for one entry of `tool.penstock.requirements`."""
    option = "group" if project else "only-group"
    return [*(f"--{option}={name}" for name in groups), *(f"--extra={name}" for name in extras)]


@nox.session(python=DEFAULT)
def demo(session: nox.Session) -> None:
    """Run the main job against the local simulator: 2,000 prompts, all answered."""
    install_wheel(session, "demo")
    session.run("penstock", "demo", *session.posargs)


@nox.session(python=DEFAULT)
def chat(session: nox.Session) -> None:
    """Serve the example chat on the simulator, to this machine only: open the address it shows; Ctrl-C ends it."""
    install_wheel(session, "chat")
    session.run("python", "docs/examples/chat/app.py", *session.posargs)


@nox.session(python=SUPPORTED)
def tests(session: nox.Session) -> None:
    """Test the built wheel: all of it, slow tests untraced, on the newest Python, what `quick` runs on the others."""
    install_wheel(session, "test")
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
    elif session.python == NEWEST:
        session.run("coverage", "erase")
        session.run("coverage", "run", "-m", "pytest", *EVERYTHING)
    else:
        session.run("python", "-m", "pytest", *QUICK)
    passed.append(str(session.python))


@nox.session(python=DEFAULT)
def quick(session: nox.Session) -> None:
    """Run what one runs between two edits: all tests but the slow ones, on one Python, in under a minute."""
    install_wheel(session, "test")
    session.run("python", "-m", "pytest", *QUICK, *session.posargs)


@nox.session(python=NEWEST)
def newest(session: nox.Session) -> None:
    """Test with the newest releases of everything; `-- quick` runs the tests that `quick` runs."""
    install_resolved(session)
    session.run("python", "-m", "pytest", *SHOW_DEPRECATIONS, *chosen_tests(session))


@nox.session(python=OLDEST)
def lowest(session: nox.Session) -> None:
    """Test with the lowest releases that `pyproject.toml` allows; `-- quick` runs the tests that `quick` runs."""
    install_resolved(session, "--resolution=lowest-direct")
    session.run("python", "-m", "pytest", *chosen_tests(session))


@nox.session(python=DEFAULT)
def lock(session: nox.Session) -> None:
    """Move `uv.lock` to the releases of today, and write `requirements/*.txt` from it."""
    install_locked(session, "resolve")
    session.run("uv", "lock", *(session.posargs or ["--upgrade"]))
    for name, needed in PROJECT["tool"]["penstock"]["requirements"].items():
        session.run("uv", "export", *EXPORT, *exported(**needed), f"--output-file={LOCKED / name}.txt")


@nox.session(python=DEFAULT)
def lint(session: nox.Session) -> None:
    """Check style and format."""
    install_locked(session, "lint")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)


@nox.session(python=DEFAULT)
def types(session: nox.Session) -> None:
    """Check types: mypy strict everywhere, pyright strict on what users import."""
    install_editable(session, "types")
    session.run("mypy", *CODE)
    session.run("pyright")


@nox.session(python=DEFAULT)
def imports(session: nox.Session) -> None:
    """Check that imports go one way, as the contracts in `pyproject.toml` say."""
    install_editable(session, "imports")
    session.run("lint-imports")


@nox.session(python=DEFAULT)
def coverage(session: nox.Session) -> None:
    """Check the branch coverage that the last full `tests` measured."""
    install_locked(session, "lint")
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
    install_wheel(session, "test")
    session.run("python", "-m", "pytest", "tests/test_examples.py", *session.posargs)


@nox.session(python=DEFAULT)
def bench(session: nox.Session) -> None:
    """Measure the figures of `docs/benchmarks.md` again; other libraries only if a script of them is asked for."""
    ours = sorted(str(path) for path in Path("benchmarks").glob("[!_]*.py") if not path.match(PEERS))
    scripts = session.posargs or ours
    compares = any(Path(script).match(PEERS) for script in scripts)
    install_wheel(session, "peers" if compares else "bench")
    for script in scripts:
        session.run("python", script)
