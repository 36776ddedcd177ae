"""Golden cases and random packets through `holdfast replay`, judged by the oracle and by tshark.

  conformance.py cases  --binary B FILE...                      golden cases
  conformance.py random --binary B --mode M [--seed S]          random packets
  conformance.py table                                          the rows and their cases, for docs/CONFORMANCE.md

Needs Debian's python3-scapy and tshark; no root, no network. See docs/CONFORMANCE.md.
"""

import argparse
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import casefile
import tshark
from mistake import Mistake
from runner import Run

HERE = Path(__file__).parent
LINES_PER_CASE = 25


def main():
    """Runs the command; returns 0 if all cases or packets hold."""
    arguments = parse()
    if arguments.command == "table":
        try:
            print(table(), end="")
        except Mistake as mistake:
            sys.exit(f"{mistake}")
        return 0
    with tempfile.TemporaryDirectory(prefix="holdfast-conformance-") as folder:
        folder = arguments.keep or Path(folder)
        if arguments.command == "cases":
            return cases(arguments, folder)
        import random_packets  # pylint: disable=import-outside-toplevel
        return random_packets.main(arguments, folder)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    golden = commands.add_parser("cases")
    golden.add_argument("files", nargs="+", type=Path, metavar="FILE")
    golden.add_argument("--mode", choices=casefile.MODES, help="run this mode only")
    rand = commands.add_parser("random")
    rand.add_argument("--mode", required=True, choices=casefile.MODES)
    rand.add_argument("--seed", type=int, default=None, help="seed of a failure, to repeat it")
    rand.add_argument("--count", type=int, default=2000, help="packets")
    for command in (golden, rand):
        command.add_argument("--binary", required=True, type=Path, help="holdfast")
        command.add_argument("--keep", type=Path, help="folder that keeps captures and configurations")
    return parser.parse_args()


def cases(arguments, folder):
    """Runs every case of the files; prints failures and refused cases; returns the exit code."""
    found, mistakes = [], []
    for file in arguments.files:
        good, bad = casefile.read(file)
        found += [case for case in good if arguments.mode in (None, case.mode)]
        mistakes += bad
    numbered = list(enumerate(found))
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda item: run(item[1], arguments.binary, folder / f"{item[0]:03}"), numbered))
    frames = [(case, title, frame) for case, (_, sent) in zip(found, results) for title, frame in sent]
    objections = tshark.objections(folder / "sent.pcap", [frame for _, _, frame in frames]) if frames else {}
    problems = [list(lines) for lines, _ in results]
    place = {id(case): index for index, case in numbered}
    for index, text in objections.items():
        case, title, _ = frames[index]
        problems[place[id(case)]].append(f"{title}: tshark objects to what was sent: {text}")
    failed = report(found, problems, len(frames), folder)
    for mistake in mistakes:
        print(f"REFUSED {mistake}")
    return 2 if mistakes else failed


def run(case, binary, folder):
    """Runs one case; returns its problems, and the frames that were sent."""
    try:
        return Run(case, binary, folder).judge()
    except (Mistake, RuntimeError) as error:
        return [str(error)], []
    except Exception as error:  # pylint: disable=broad-exception-caught
        # A fault of this program, or a value without a rule: the other cases keep their results.
        traceback.print_exception(error)
        at = traceback.extract_tb(error.__traceback__)[-1]
        return [f"{type(error).__name__} in {Path(at.filename).name}, {at.name}: {error}"], []


def report(found, problems, frames, folder):
    """Prints the failures; returns the exit code."""
    failed = 0
    for index, (case, lines) in enumerate(zip(found, problems)):
        if not lines:
            continue
        failed += 1
        print(f"FAILED {case.title}   (files: {folder / f'{index:03}'})")
        for line in lines[:LINES_PER_CASE]:
            print(f"    {line}")
        if len(lines) > LINES_PER_CASE:
            print(f"    ... and {len(lines) - LINES_PER_CASE} more")
    print(f"{len(found) - failed} of {len(found)} cases hold; tshark saw {frames} frames")
    return 1 if failed or not found else 0


def table():
    """Returns the rows of facts and the cases that show them, as a table in Markdown."""
    text = "| row | what | cases | modes |\n|---|---|---|---|\n"
    for path in sorted((HERE / "cases").glob("*.toml")):
        row, what = casefile.heading(path)
        by_name = {}
        cases_of, mistakes = casefile.read(path)
        if mistakes:
            raise Mistake("\n".join(mistakes))
        for case in cases_of:
            by_name.setdefault(case.name, []).append(case.mode)
        modes = [mode for mode in casefile.MODES if any(mode in used for used in by_name.values())]
        text += f"| {row} | {what} | `{path.name}`: {'; '.join(by_name)} | {', '.join(modes)} |\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
