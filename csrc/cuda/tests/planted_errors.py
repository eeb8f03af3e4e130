"""Plants errors in the kernels' body, one at a time, and shows that body_test.cpp sees each.

    python csrc/cuda/tests/planted_errors.py [NUMBER ...]

All go into one copy of the sources, each behind its number, so that one program has every error and, without a number,
none. A run ends at its first failure; one that would not end is ended by a count of steps, not by a clock.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parents[1]
# See host_machine.hpp.
FLAGS = ("-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off")
VARIABLE = "SIMMIM_PLANTED"


class Error(NamedTuple):
    what: str
    file: str
    right: str
    """Once in the file"""
    wrong: str
    """In its place, where `planted` says whether it is this error's turn"""
    cases: str = ""
    """Those of body_test.cpp that are run: whose names hold this"""


def dropped(what: str, file: str, statement: str, cases: str = "") -> Error:
    return Error(what, file, statement, f"if (!planted) {statement}", cases)


def of_mma(what: str, right: str, wrong: str = "") -> Error:
    """Of the second body; a statement is dropped where no other stands in its place."""
    return Error(what, "mma_body.hpp", right, wrong or f"if (!planted) {right}", "by mma")


ERRORS = (
    dropped("the producer does not wait for an empty stage", "body.hpp", "shared.empty[at.stage].wait(at.phase);"),
    Error("the ring begins full", "body.hpp", "at.phase = 1;", "at.phase = planted ? 0 : 1;"),
    dropped("the consumer does not wait for a full stage", "body.hpp", "shared.full[at.stage].wait(at.phase);"),
    Error(
        "a stage is released one too far on",
        "body.hpp",
        "machine.release(shared.empty[read.stage]);\n          read.next();",
        "machine.release(shared.empty[planted ? at.stage : read.stage]);\n          read.next();",
    ),
    dropped("products are not awaited", "body.hpp", "machine.template await_products<1>(acc);"),
    dropped("no turn is given", "body.hpp", "if (walk.more()) machine.give_turn(1 - mine);"),
    Error(
        "products add to what was there",
        "body.hpp",
        "shared.y[at.stage], k > 0)",
        "shared.y[at.stage], planted || k > 0)",
    ),
    Error(
        "half the bytes are expected",
        "body.hpp",
        "(S::RESIDENT ? 0 : S::X_BYTES)",
        "(S::RESIDENT || planted ? 0 : S::X_BYTES)",
    ),
    Error(
        "a part of X reaches its own block alone",
        "body.hpp",
        "row_of_blocks |= 1 << (above + b * S::ABOVE)",
        "row_of_blocks |= planted ? 1 << machine.rank() : 1 << (above + b * S::ABOVE)",
    ),
    Error(
        "a part of Y lands in the first rows",
        "body.hpp",
        "above * S::Y_PART * S::DEPTH]",
        "(planted ? 0 : above) * S::Y_PART * S::DEPTH]",
    ),
    Error(
        "X that stays is released a tile too early",
        "body.hpp",
        "walk.left() < CONSUMERS)",
        "walk.left() < CONSUMERS + int(planted))",
    ),
    dropped("the phase of X that stays is forgotten", "body.hpp", "if (walk.left() == 0) x_phase ^= 1;"),
    dropped("a run goes on past its end", "body.hpp", "if (++j_ == end_) j_ = end_ - length_;"),
    Error("a padding block writes", "body.hpp", "if (i * TILE_ROWS < params", "if (planted || i * TILE_ROWS < params"),
    Error("no mask of ragged tiles", "tile.hpp", "bool const ragged = ", "bool const ragged = !planted && "),
    Error("a column too many", "tile.hpp", "c) >= p.columns)", "c) >= p.columns + int(planted))"),
    Error("joint pairs are counted", "tile.hpp", "bool meets_joint = ", "bool meets_joint = !planted && ", "left out"),
    Error(
        "the diagonal of a later block begins with it",
        "tile.hpp",
        "p.first_row + int64_t(i)) - p.first_column - j0",
        "(planted ? 0 : p.first_row) + int64_t(i)) - p.first_column - j0",
        "diagonal of a later",
    ),
    Error(
        "sums are not brought back to their reference",
        "log_sum_exps.hpp",
        "by_row[r] = log2_of(by_row[r]) + reference;",
        "by_row[r] = log2_of(by_row[r]) + (planted ? 0 : reference);",
    ),
    Error(
        "sums that have lost their terms are taken for sound",
        "log_sum_exps.hpp",
        "if (group_.all(sound)) {",
        "if (planted || group_.all(sound)) {",
        "unequal",
    ),
    Error(
        "a warp's columns are left out",
        "log_sum_exps.hpp",
        "for (int w = 0; w < WARPS; ++w) sum += ",
        "for (int w = 0; w < WARPS - int(planted); ++w) sum += ",
    ),
    Error(
        "a shared reference is left out of a factor",
        "weights.hpp",
        "b *= exp2_of(most - c);",
        "b *= planted ? 1 : exp2_of(most - c);",
        "weights",
    ),
    Error(
        "weights past the last column are written",
        "store.hpp",
        "if (i < p.scores.rows && j < p.scores.columns)",
        "if (i < p.scores.rows && (planted || j < p.scores.columns))",
        "weights",
    ),
    dropped("kept joint pairs are not", "options.hpp", "if (p.keeps) out.of[r] &= ~joint.of[r];", "kept"),
    Error("all ids are of groups", "options.hpp", "p.grouped && k == 0", "p.grouped && (planted || k == 0)", "group"),
    Error(
        "weights beyond the clamp are as on it",
        "options.hpp",
        "s = WEIGHS ? -INFINITY : p.lo",
        "s = WEIGHS && !planted ? -INFINITY : p.lo",
        "weights",
    ),
    dropped("slopes beyond the clamp are not 0", "sums.hpp", "if (beyond) weighed.of[r] &= ~(1u << c);", "softplus"),
    Error(
        "slopes of negated pairs keep their sign",
        "sums.hpp",
        "(negated.at(r, c + k) ? -slope : slope)",
        "(negated.at(r, c + k) && !planted ? -slope : slope)",
        "softplus",
    ),
    dropped("narrow: no wait for an empty stage", "narrow.hpp", "shared.empty[at.stage].wait(at.phase);", "narrow"),
    dropped("narrow: no wait for the rows that stay", "narrow.hpp", "shared.x_full.wait(0);", "narrow"),
    dropped("narrow: no wait for a full stage", "narrow.hpp", "shared.full[at.stage].wait(at.phase);", "narrow"),
    Error(
        "narrow: a stage is released that is still to be read by columns",
        "narrow.hpp",
        "shared.empty[(at.stage + S::STAGES - 1) % S::STAGES]",
        "shared.empty[(at.stage + S::STAGES - (planted ? 0 : 1)) % S::STAGES]",
        "narrow",
    ),
    Error(
        "narrow: sums begin anew with each tile",
        "narrow.hpp",
        "shared.y[at.stage][0], begun)",
        "shared.y[at.stage][0], begun && !planted)",
        "narrow",
    ),
    Error(
        "narrow: parts overlap",
        "narrow.hpp",
        "last(first + p.tiles)",
        "last(first + p.tiles + int(planted))",
        "parts",
    ),
    Error(
        "narrow: rows past the last are written",
        "narrow.hpp",
        "if (i >= p.scores.rows) continue;",
        "if (!planted && i >= p.scores.rows) continue;",
        "narrow",
    ),
    Error(
        "narrow: weights of two rows change places",
        "narrow.hpp",
        "weights[c + r] =",
        "weights[c + (planted ? 1 - r : r)] =",
        "narrow",
    ),
    Error(
        "a polynomial's coefficient",
        "pointwise.hpp",
        "fmaf(p[k], u[k], COEFFICIENTS[c])",
        "fmaf(p[k], u[k], COEFFICIENTS[c] - (planted && c == 5 ? 1e-4f : 0.f))",
        "softplus",
    ),
    Error(
        "a joint score of infinity hides itself",
        "lines.hpp",
        "joint - joint : 0.f",
        "(planted ? 0.f : joint - joint) : 0.f",
        "lines",
    ),
    Error(
        "beyond the clamp joint scores have gradients",
        "lines.hpp",
        "passes ? -of_others",
        "planted || passes ? -of_others",
        "lines",
    ),
    Error(
        "what has no weight counts",
        "lines.hpp",
        "!p.weights || upstream != 0.f",
        "planted || !p.weights || upstream != 0.f",
        "lines",
    ),
    dropped("columns without a joint pair keep what was there", "lines.hpp", "p.by_column.gradient[i] = 0.f;", "lines"),
    dropped("sums stay in the unit of weights", "lines.hpp", "line.of[e] *= shrink;", "lines"),
    Error(
        "positives are on the diagonal",
        "lines.hpp",
        "ends.partners ? ends.partners[i]",
        "ends.partners && !planted ? ends.partners[i]",
        "lines",
    ),
    Error(
        "a dot without its upstream gradient",
        "lines.hpp",
        "upstream_of(f) * dot",
        "(planted ? 1 : upstream_of(f)) * dot",
        "lines",
    ),
    Error(
        "a total without some terms", "lines.hpp", "k += TOTAL_THREADS", "k += TOTAL_THREADS + int(planted)", "lines"
    ),
    of_mma("copies are not awaited", "machine.template await_copies<AHEAD - 1>();"),
    of_mma(
        "copies are awaited a step late",
        "machine.template await_copies<AHEAD - 1>();  // this",
        "planted ? machine.template await_copies<AHEAD>() : machine.template await_copies<AHEAD - 1>();  // this",
    ),
    of_mma("threads do not meet before they read", "machine.sync();  // and so"),
    of_mma("the epilogue begins before all have read", "machine.sync();  // all have"),
    of_mma("columns are settled before all have written", "machine.sync();\n  epilogue.settle();"),
    of_mma("rows are not swizzled", "(piece ^ row / 2 % PIECES)", "(planted ? piece : piece ^ row / 2 % PIECES)"),
    of_mma("the swizzle goes past its row", "row / 2 % PIECES)", "row / 2 % (planted ? 8 : PIECES))"),
    of_mma("the wrong piece is read", "piece + lane / 16)", "piece + (planted ? 0 : lane / 16))"),
    of_mma("matrices of Y in wrong order", "lane / 16 * 8 + lane % 8", "lane / (planted ? 8 : 16) % 2 * 8 + lane % 8"),
    of_mma("stages are written one too far on", "writes = AHEAD;", "writes = planted ? 0 : AHEAD;"),
    of_mma("one stage is read alone", "reads = next(reads);"),
    of_mma("rows past the last are copied", "k * ROWS_AT_ONCE < rows_ &&", "(planted || k * ROWS_AT_ONCE < rows_) &&"),
    of_mma("columns past d are copied", "&& depth_ > 0", "&& (planted || depth_ > 0)"),
    of_mma("d is not counted down", "depth_ -= S::DEPTH;"),
    of_mma("a strip is copied that no one reads", "if (step < steps) {", "if (planted || step < steps) {"),
    of_mma("a later block begins at row 0", "x, grid.first_row + i", "x, (planted ? 0 : grid.first_row) + i"),
    of_mma("sums begin with something", "v = 0.f;", "v = planted ? 1.f : 0.f;"),
    of_mma("the second columns add to the first", "c / 2 + 4, a", "c / 2 + (planted ? 0 : 4), a"),
)


def build(folder: Path) -> Path:
    """The program that has them all."""
    copy = folder / "cuda"
    shutil.copytree(SOURCES, copy, dirs_exist_ok=True)
    for number, error in enumerate(ERRORS, 1):
        path = copy / error.file
        source = path.read_text()
        assert source.count(error.right) == 1, (
            f"{number}, {error.what}: {source.count(error.right)} times in {path.name}"
        )
        path.write_text(source.replace(error.right, error.wrong.replace("planted", f"planted({number})")))
    tile = copy / "tile.hpp"
    read = f'getenv("{VARIABLE}")'
    switch = (
        "#include <cstdint>\n#include <cstdlib>\n"
        f"inline int const planted_number = {read} ? atoi({read}) : 0;\n"
        "inline bool planted(int number) { return number == planted_number; }\n"
    )
    tile.write_text(tile.read_text().replace("#include <cstdint>\n", switch, 1))
    program = folder / "planted"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run([*compiler, *FLAGS, str(copy / "tests" / "body_test.cpp"), "-o", str(program)], check=True)
    return program


def failure(program: Path, number: int) -> str | None:
    """How the program failed with an error, or without any for 0; None if it did not."""
    cases = ERRORS[number - 1].cases if number else ""
    environment = {**os.environ, VARIABLE: str(number)}
    command = [str(program), "1", cases]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode == 0:
        return None
    return (result.stdout.splitlines() or [f"ended with {result.returncode}"])[-1]


def main() -> int:
    numbers = [int(given) for given in sys.argv[1:]] or range(len(ERRORS) + 1)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for number in numbers:
            what, found = ERRORS[number - 1].what if number else "nothing", failure(program, number)
            missed += (found is None) == (number > 0)
            print(f"{number:2} {what}: {found or 'no failure'}", flush=True)
    print(f"{missed} not as they should be")
    return missed != 0


if __name__ == "__main__":
    sys.exit(main())
