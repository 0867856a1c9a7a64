"""Check an installed wheel: every module imports, --help answers within a second, and the quick demo runs."""

import subprocess
import sys
import time
from pathlib import Path

IMPORT_ALL = """
import importlib, pkgutil, flowchunk
names = [m.name for m in pkgutil.walk_packages(flowchunk.__path__, "flowchunk.")]
assert len(names) > 30, names
for name in names:
    importlib.import_module(name)
print(f"imported {len(names)} modules from {list(flowchunk.__path__)}")
"""


def main(bin_dir: Path, output_dir: Path) -> None:
    """Run the checks with the environment's own programs."""
    subprocess.run([bin_dir / "python", "-c", IMPORT_ALL], check=True)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([bin_dir / "flowchunk", "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    print(f"flowchunk --help: {min(times):.2f} s")
    assert min(times) < 1.0, times
    started = time.perf_counter()
    subprocess.run([bin_dir / "flowchunk", "demo", "--quick", f"output_dir={output_dir}"], check=True)
    print(f"flowchunk demo --quick: {time.perf_counter() - started:.0f} s")
    assert (output_dir / "eval.json").is_file()
    assert (output_dir / "train" / "loss.png").is_file()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
