"""The bounds beside mutual information that is known in closed form: figures, tables and plots.

python -m benchmarks.known_mi optimal    every bound with the optimal critic, N = 64 to 65,536
python -m benchmarks.known_mi trained    every bound with critics that it trained
python -m benchmarks.known_mi report     tables and plots of what the others recorded

The first two write benchmarks/results/ceiling.json and known_mi.json row by row; begun anew, they go on where they
were cut off. They need the dev extra.
"""

import argparse

from . import optimal, record, trained

OPTIMAL, TRAINED = record.RESULTS / "ceiling.json", record.RESULTS / "known_mi.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("optimal", "trained", "report"))
    what = parser.parse_args().what
    if what == "optimal":
        record.complete(OPTIMAL, optimal.plan(), optimal.measure)
    elif what == "trained":
        record.complete(TRAINED, trained.plan(), trained.measure)


if __name__ == "__main__":
    main()
