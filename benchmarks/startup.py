"""Seconds that `import visiontune` and `--help` take, against bare Python, in turn; median and range of several processes.

python benchmarks/startup.py [--runs 15] [--quick]
"""

import argparse
import statistics
import subprocess
import sys
import time

from common import machine, parse, write_rows

COMMANDS = {
    "bare Python": ["-c", "pass"],
    "import visiontune": ["-c", "import visiontune"],
    "python -m visiontune.fit --help": ["-m", "visiontune.fit", "--help"],
    "python -m visiontune list": ["-m", "visiontune", "list"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three runs")
    args = parse(parser, __file__)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range((3 if args.quick else args.runs) + 1):
        for name, words in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if turn:  # the first turn warms the disk cache
                times[name].append(time.perf_counter() - began)
    base = statistics.median(times["bare Python"])
    rows = []
    for name, taken in times.items():
        row = {
            "command": name,
            "median_s": round(statistics.median(taken), 3),
            "min_s": round(min(taken), 3),
            "max_s": round(max(taken), 3),
        }
        rows.append(row | {"above_bare_python_s": round(row["median_s"] - base, 3), "runs": len(taken)} | machine())
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
