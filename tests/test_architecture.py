"""What the README says of the modules, held to the source."""

import ast
import re
from pathlib import Path

import dsgen

HERE = Path(dsgen.__file__).parent
STAGES = {"composite", "depth", "depth_folder", "evaluate", "export", "pack", "predict", "train", "train_depth"}


def imported(module: Path) -> set[str]:
    """Names of the dsgen modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "dsgen":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsgen."):
            found.add(str(node.module).removeprefix("dsgen."))
    return found


def test_no_stage_imports_another():
    """Stages meet only in files; so any of them can be understood, run and replaced by itself."""
    for stage in sorted(STAGES):
        others = (imported(HERE / f"{stage}.py") & STAGES) - {stage}
        assert not others, f"{stage} imports {', '.join(sorted(others))}"


def test_every_module_is_in_the_readme_s_table():
    """And nothing is there that does not exist."""
    readme = (HERE.parent / "README.md").read_text()
    table = readme[readme.index("| module | owns |") :]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {module.stem for module in HERE.glob("*.py")} - {"__init__", "__main__"}
