"""The bounds beside mutual information that is known in closed form: figures, tables and plots.

python -m benchmarks.known_mi optimal    every bound with the optimal critic, N = 64 to 65,536
python -m benchmarks.known_mi trained    every bound with critics that it trained
python -m benchmarks.known_mi peers      some of them beside torch-mist and benchmark-mi, where those are installed
python -m benchmarks.known_mi report     tables and plots of what the others recorded

The first three write ceiling.json, known_mi.json and known_mi_peers.json under benchmarks/results row by row; begun
anew, they go on where they were cut off. They need the dev extra, and the peers what peers.py says.
"""

import argparse

from . import optimal, peers, record, report, trained

OPTIMAL, TRAINED, PEERS = (record.RESULTS / f"{name}.json" for name in ("ceiling", "known_mi", "known_mi_peers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("optimal", "trained", "peers", "report"))
    what = parser.parse_args().what
    if what == "optimal":
        print(report.optimal_table(record.complete(OPTIMAL, optimal.plan(), optimal.measure)))
        print(f"peak memory of this process: {optimal.peak_gigabytes():.2f} GB")
    elif what == "trained":
        print(report.trained_table(record.complete(TRAINED, trained.plan(), trained.measure)))
    elif what == "peers":
        print(report.peers_table(record.complete(PEERS, peers.plan(), peers.measure, *peers.PACKAGES)))
    else:
        write_report()


def write_report() -> None:
    optimal_rows, trained_rows, peers_rows = (record.load(path)["rows"] for path in (OPTIMAL, TRAINED, PEERS))
    print(report.optimal_table(optimal_rows), report.trained_table(trained_rows), sep="\n\n", end="\n\n")
    print(report.alone_table(trained_rows), report.peers_table(peers_rows), sep="\n\n")
    report.plot_ceiling(optimal_rows, record.RESULTS / "ceiling.png")
    report.plot_trained(trained_rows, record.RESULTS / "known_mi.png")


if __name__ == "__main__":
    main()
