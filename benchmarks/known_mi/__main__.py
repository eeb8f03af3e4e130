"""The bounds beside mutual information that is known in closed form: figures, tables and plots.

python -m benchmarks.known_mi optimal    every bound with the optimal critic, N = 64 to 65,536
python -m benchmarks.known_mi trained    every bound with critics that it trained
python -m benchmarks.known_mi suite      what `estimate` makes of samples of 56 tasks, with baselines beside it
python -m benchmarks.known_mi peers      some bounds beside torch-mist and benchmark-mi, where those are installed
python -m benchmarks.known_mi report     tables and plots of what the others recorded

The others write ceiling.json, known_mi.json, suite.json and known_mi_peers.json under benchmarks/results row by
row; begun anew, they go on where they were cut off. They need the dev extra, and the peers what peers.py says.
"""

import argparse

from . import optimal, peers, record, report, suite, trained

NAMES = ("ceiling", "known_mi", "suite", "known_mi_peers")
OPTIMAL, TRAINED, SUITE, PEERS = (record.RESULTS / f"{name}.json" for name in NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("optimal", "trained", "suite", "peers", "report"))
    what = parser.parse_args().what
    if what == "optimal":
        print(report.optimal_table(record.complete(OPTIMAL, optimal.plan(), optimal.measure)))
        print(f"peak memory of this process: {optimal.peak_gigabytes():.2f} GB")
    elif what == "trained":
        print(report.trained_table(record.complete(TRAINED, trained.plan(), trained.measure)))
    elif what == "suite":
        print_suite(record.complete(SUITE, suite.plan(), suite.measure))
    elif what == "peers":
        print(report.peers_table(record.complete(PEERS, peers.plan(), peers.measure, *peers.PACKAGES)))
    else:
        write_report()


def write_report() -> None:
    recorded = (record.load(path)["rows"] for path in (OPTIMAL, TRAINED, SUITE, PEERS))
    optimal_rows, trained_rows, suite_rows, peers_rows = recorded
    print(report.optimal_table(optimal_rows), report.trained_table(trained_rows), sep="\n\n", end="\n\n")
    print(report.alone_table(trained_rows), end="\n\n")
    print_suite(suite_rows)
    print(report.peers_table(peers_rows))
    report.plot_ceiling(optimal_rows, record.RESULTS / "ceiling.png")
    report.plot_trained(trained_rows, record.RESULTS / "known_mi.png")


def print_suite(rows: list[dict]) -> None:
    for cases in (suite.DESIGN, suite.HELD_OUT):
        print(report.suite_summary(rows, cases), report.suite_table(rows, cases), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
