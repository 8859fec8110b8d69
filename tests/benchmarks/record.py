"""Where a measurement was made, and how it gets into the README beside this file."""

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

README = Path(__file__).parent / "README.md"


def processor() -> str:
    """The name of the processor, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages, by name."""
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


def circumstances(packages: Iterable[str]) -> str:
    """The date, the machine, Python and the packages, in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    listed = ", ".join(f"{package} {version}" for package, version in versions(packages).items())
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return f"{today}, {processor()}, {cores} cores, Python {platform.python_version()}, {listed}"


def replace_section(name: str, lines: Iterable[str], readme: Path = README) -> None:
    """Put lines between the comments `<!-- begin: NAME -->` and `<!-- end: NAME -->` of the README."""
    text = readme.read_text()
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{readme}: expected {begin} and {end} once each; add them where the result belongs")
    body = "\n".join(lines)
    readme.write_text(
        re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{body}\n\n{end}", text, flags=re.S)
    )
