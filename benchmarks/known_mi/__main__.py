"""The bounds beside mutual information that is known in closed form: figures, tables and plots.

python -m benchmarks.known_mi optimal    every bound with the optimal critic, N = 64 to 65,536
python -m benchmarks.known_mi trained    every bound with critics that it trained
python -m benchmarks.known_mi peers      some of them beside torch-mist and benchmark-mi, where those are installed
python -m benchmarks.known_mi report     tables and plots of what the others recorded

The first three write ceiling.json, known_mi.json and known_mi_peers.json under benchmarks/results row by row; begun
anew, they go on where they were cut off. They need the dev extra, and the peers what peers.py says.
"""

import argparse

from . import optimal, peers, record, trained

OPTIMAL, TRAINED, PEERS = (record.RESULTS / f"{name}.json" for name in ("ceiling", "known_mi", "known_mi_peers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("optimal", "trained", "peers", "report"))
    what = parser.parse_args().what
    if what == "optimal":
        record.complete(OPTIMAL, optimal.plan(), optimal.measure)
    elif what == "trained":
        record.complete(TRAINED, trained.plan(), trained.measure)
    elif what == "peers":
        record.complete(PEERS, peers.plan(), peers.measure, *peers.PACKAGES)


if __name__ == "__main__":
    main()
