"""How long a command takes to answer when it has nothing to train: --help and a misspelt flag.

Prints the median wall time of each, interleaved, over 11 runs of a whole process.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = 11
COMMANDS = {
    "run_clm.py --help": ["run_clm.py", "--help"],
    "run_clm.py --lerning_rate 1": ["run_clm.py", "--lerning_rate", "1"],
    "generate.py --help": ["generate.py", "--help"],
    **{
        f"-m stylegen.{name} --help": ["-m", f"stylegen.{name}", "--help"]
        for name in ("blocks", "tokenizer", "export", "style", "plan")
    },
}


def main() -> None:
    """Time the commands in turn and print a table."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - started)
    print(f"{'command':32}{'median s':>10}{'max s':>10}")
    for name, values in seconds.items():
        print(f"{name:32}{statistics.median(values):>10.3f}{max(values):>10.3f}")


if __name__ == "__main__":
    main()
