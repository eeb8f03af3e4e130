"""simmim-kernels estimate: what it reads, what it reports, and what it says of what it cannot read."""

import json
import math
import re
import sys
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

import simmim_kernels as sk
from simmim_kernels import estimation
from simmim_kernels.backends import BACKENDS
from simmim_kernels.commands import estimate as estimate_command
from simmim_kernels.commands import tables
from simmim_kernels.commands.command_line import main

QUICK = ["--folds", "2", "--max-steps", "20", "--batch-size", "32", "--device", "cpu"]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """The working folder has 60 pairs as x.npy and y.npy, and in every other format."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 2))
    y = x + rng.standard_normal((60, 2))
    np.save("x.npy", x)
    np.save("y.npy", y)
    np.savez("one.npz", y=y)
    np.savez("two.npz", y=y, other=x)
    np.savetxt("plain.csv", y, delimiter=",", fmt="%.17g")
    np.savetxt("named.csv", y, delimiter=",", fmt="%.17g", header="first,2nd", comments="")
    table = pa.table({"first": y[:, 0], "second": y[:, 1]})
    pyarrow.parquet.write_table(table, "y.parquet")
    return x, y


def run_json(capsys, *arguments):
    assert main(["estimate", *arguments, *QUICK, "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def test_every_format_holds_the_same_samples(pairs, capsys):
    x, y = pairs
    want = sk.estimate(x, y, folds=2, max_steps=20, batch_size=32)
    for file in ("y.npy", "one.npz", "one.npz:y", "two.npz:y", "plain.csv", "named.csv", "y.parquet"):
        np.testing.assert_array_equal(tables.read(file).table.values, y)
    found = run_json(capsys, "x.npy", "y.parquet")
    assert {name: bound["value"] for name, bound in found["bounds"].items()} == {
        name: bound.value for name, bound in want.bounds.items()
    }


def test_json_holds_all_of_the_estimate(pairs, capsys):
    found = run_json(capsys, "x.npy", "y.npy", "--seed", "3", "--backend", "reference")
    assert found["unit"] == "nats"
    assert found["bounds"].keys() == {"infonce", "dv", "nwj", "smile"}
    for bound in found["bounds"].values():
        low, high = bound["interval"]
        assert low < bound["value"] < high
        assert bound["value"] == pytest.approx(np.mean(bound["per_fold"]))
        assert high - low == pytest.approx(2 * 1.96 * bound["standard_error"], rel=1e-3)
        assert "bound" in bound["kind"]
    assert found["ceiling"] == pytest.approx(math.log(30))
    assert found["saturated"] is False
    assert found["rows"] == 60
    assert found["columns"] == [2, 2]
    assert [fold["seed"] for fold in found["folds"]] == [3, 4]
    assert found["settings"] == {
        "x": "x.npy",
        "y": "y.npy",
        "x_columns": None,
        "y_columns": None,
        "given": None,
        "backend": "reference",
        "folds": 2,
        "critic": "separable",
        "transform": "rank",
        "batch_size": 32,
        "max_steps": 20,
        "seed": 3,
        "device": "cpu",
        "groups": None,
        "blocks": None,
        "permutations": 0,
    }
    assert found["quote"] == "infonce"
    assert found["baselines"].keys() == {"gaussian_copula", "ksg", "ksg_pairs"}
    assert (
        found["shortfall"]
        >= max(found["baselines"][name]["value"] for name in ("gaussian_copula", "ksg"))
        - (found["bounds"]["infonce"]["value"])
    )
    assert found["baselines"]["ksg"]["rows"] == 60
    assert found["p_value"] is None
    assert found["versions"].keys() == {"simmim_kernels", "torch", "numpy", "python"}
    assert any("still training at max_steps" in warning for warning in found["warnings"])
    assert found["seconds"] > 0


def test_bits_are_nats_over_log_2(pairs, capsys):
    nats, bits = run_json(capsys, "x.npy", "y.npy"), run_json(capsys, "x.npy", "y.npy", "--bits")
    assert bits["unit"] == "bits"
    assert bits["ceiling"] == pytest.approx(nats["ceiling"] / math.log(2))
    for name, bound in bits["bounds"].items():
        for key in ("value", "interval", "standard_error", "per_fold"):
            assert bound[key] == pytest.approx(np.divide(nats["bounds"][name][key], math.log(2)).tolist())
    for name, baseline in bits["baselines"].items():
        assert baseline["value"] == pytest.approx(nats["baselines"][name]["value"] / math.log(2))
    for one, other in zip(bits["folds"], nats["folds"], strict=True):
        assert one["validation_infonce"] == pytest.approx(other["validation_infonce"] / math.log(2))


def test_the_report_has_every_bound_its_warnings_and_writes_json(pairs, capsys, tmp_path):
    assert main(["estimate", "x.npy", "y.npy", *QUICK, "--json", "out.json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert "I(X; Y) in nats: 60 pairs, 2 and 2 columns" in printed
    for label, name in estimation.LABELS.items():
        assert name in printed
        assert f"{(found['bounds'] | found['baselines'])[label]['value']:.3f}" in printed
    assert f"ceiling of InfoNCE {math.log(30):.2f} nats" in printed
    assert f"Shortfall: {found['shortfall']:.2f} nats or more may be missing" in printed.replace("\n", " ")
    assert found["warnings"]
    for warning in found["warnings"]:
        assert f"Warning: {warning}" in printed.replace("\n", " ")
    first, second, *_ = printed.splitlines()
    for number, line in ((1, first), (2, second)):
        assert re.fullmatch(rf"fold {number} of 2: InfoNCE -?[\d.]+ nats on validation rows, \d+ s", line)


@pytest.mark.parametrize(
    ("file", "delimiter"), [("wide.csv", ";"), ("wide.tsv", "\t"), ("wide.csv", "|"), ("wide.csv", "~")]
)
def test_what_separates_cells_is_recognised_or_said(pairs, file, delimiter):
    _, y = pairs
    lines = [delimiter.join(("a", '"b, c"')), *(delimiter.join(f"{v:.17g}" for v in row) for row in y)]
    with open(file, "w", encoding="utf-8-sig") as out:
        out.write("\n".join(lines))
    found = tables.read(file, "~" if delimiter == "~" else None).table
    np.testing.assert_array_equal(found.values, y)
    assert found.labels == ("a", "b, c")


@pytest.fixture
def survey(tmp_path, monkeypatch):
    """A file as pandas writes it: index, numbers, texts, a group, and two missing cells."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    size = rng.standard_normal(90)
    frame = pd.DataFrame(
        {
            "size": size,
            "colour": np.where(size > 0, "red", rng.choice(["green", "blue"], 90)),
            "weight": size + rng.standard_normal(90),
            "subject": [f"s{k // 3}" for k in range(90)],
        }
    )
    frame.loc[4, "colour"] = None
    frame.loc[7, "weight"] = np.nan
    frame.to_csv("survey.csv")
    frame.to_parquet("survey.parquet")
    return frame


def test_columns_of_one_file_by_their_names(survey, capsys):
    wanted = ["survey.csv", "--x-columns", "size,colour", "--y-columns", "weight"]
    found = run_json(capsys, *wanted, "--drop-missing", "--groups", "subject", "--permutations", "9")
    assert found["rows"] == 88
    assert found["columns"] == [2, 1]
    assert found["settings"]["groups"] == 30
    assert 0.1 <= found["p_value"] <= 1
    assert found["warnings"][:2] == [
        "survey.csv: the first column has no name and counts the rows, an index, and was left out",
        "2 rows with missing values were left out, 88 are left",
    ]
    assert main(["estimate", *wanted, *QUICK]) == 2
    assert "survey.csv has 1 missing (NaN) values in column" in (said := capsys.readouterr().err)
    assert "--drop-missing leaves their rows out" in said


def test_an_index_over_columns_without_names_is_noticed(survey):
    survey[["size", "weight"]].set_axis([0, 1], axis=1).to_csv("bare.csv")
    found = tables.read("bare.csv")
    assert found.table.labels == ("0", "1")
    assert found.table.values.shape == (90, 2)
    assert "an index" in found.notes[0]


def test_x_is_what_nothing_else_takes(survey):
    found = tables.read_samples("survey.parquet", None, y_columns="weight", groups="subject", drop_missing=True)
    assert found.x.labels == ("size", "colour")
    assert found.x.symbols == (1,)
    assert found.y.labels == ("weight",)
    assert len(set(found.groups)) == 30
    alone = tables.read_samples("survey.parquet", "survey.parquet", x_columns="0", y_columns="2,1", drop_missing=True)
    assert (alone.x.labels, alone.y.labels, alone.y.symbols) == (("size",), ("weight", "colour"), (1,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--y-columns", "height"], "survey.csv has no column 'height'; it has size, colour, weight, subject"),
        (["--y-columns", "weight", "--groups", "nowhere.csv"], "nowhere.csv cannot be read: No such file"),
        (["--y-columns", "weight", "--groups", "size,colour"], "survey.csv must have one column of groups, got 2"),
        (["--y-columns", "size,colour,weight,subject"], "survey.csv has no column left for x"),
    ],
)
def test_unfit_columns_are_named(survey, capsys, options, message):
    assert main(["estimate", "survey.csv", *options, *QUICK]) == 2
    assert message in capsys.readouterr().err


def test_given_is_conditional_information(pairs, capsys, tmp_path):
    found = run_json(capsys, "x.npy", "y.npy", "--given", "two.npz:other", "--pointwise", "each.npy")
    assert found["conditional"]["value"] == pytest.approx(
        found["joint"]["bounds"]["infonce"]["value"] - found["given"]["bounds"]["infonce"]["value"]
    )
    assert np.load("each.npy").mean() == pytest.approx(
        found["conditional"]["value"], abs=5e-3
    )  # scores of x with x are vast
    assert main(["estimate", "x.npy", "y.npy", "--given", "two.npz:other", *QUICK]) == 0
    assert "neither a lower nor an upper bound" in " ".join(capsys.readouterr().out.split())


def test_what_is_no_number_is_null_in_json():
    assert estimate_command._finite({"a": [1.0, math.nan], "b": (-math.inf, "x", None, 2)}) == {
        "a": [1.0, None],
        "b": [None, "x", None, 2],
    }


@pytest.fixture
def unfit(pairs):
    """Files that no estimate can be made from."""
    x, _ = pairs
    np.save("short.npy", x[:50])
    np.save("few.npy", x[:20])
    np.save("constant.npy", np.column_stack([x, np.ones(60)]))
    np.save("complex.npy", x + 1j)
    np.save("deep.npy", x[None])
    np.save("object.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez("none.npz")
    for name, text in {
        "junk.npy": "junk",
        "junk.npz": "junk",
        "junk.parquet": "junk",
        "empty.csv": "",
        "names.csv": "a,b\n",
        "ragged.csv": "1,2\n3\n",
        "words.csv": "a,b\n1,red\n2,blue\n",
        "gaps.csv": "a,b\n" + "1,2\n,3\n" * 30,
        "x.txt": "1\n",
    }.items():
        with open(name, "w") as file:
            file.write(text)
    with zipfile.ZipFile("text.npz", "w") as archive:
        archive.writestr("y", "1\n2\n")
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 99)}"
    with open("vast.npy", "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    pyarrow.parquet.write_table(pa.table({"a": [[1.0], [2.0]]}), "lists.parquet")
    with open("x.npy", "rb") as file, open("cut.npy", "wb") as cut:
        cut.write(file.read()[:-8])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.npy", "missing.npy cannot be read: No such file or directory"),
        (".", ". must end in .npy, .npz, .csv, .tsv, .parquet, got no ending"),
        ("x.txt", "x.txt must end in .npy, .npz, .csv, .tsv, .parquet, got .txt"),
        ("junk.npy", "junk.npy cannot be read as .npy"),
        ("cut.npy", "cut.npy cannot be read as .npy"),
        ("object.npy", "object.npy cannot be read as .npy: Object arrays cannot be loaded"),
        ("vast.npy", "vast.npy cannot be read: it does not fit in memory"),
        ("text.npz", "text.npz must hold real numbers"),
        ("lists.parquet", "lists.parquet must hold numbers, texts and times, got a (list<"),
        ("junk.npz", "junk.npz cannot be read as .npz"),
        ("none.npz", "none.npz holds nothing"),
        ("two.npz", "two.npz holds y, other: name one as two.npz:NAME"),
        ("two.npz:z", "two.npz holds y, other, not z"),
        ("empty.csv", "empty.csv cannot be read as .csv: Empty CSV file"),
        ("names.csv", "names.csv must have at least one row"),
        ("ragged.csv", "ragged.csv cannot be read as .csv"),
        ("words.csv", "x.npy and words.csv must have as many rows as each other, got 60 and 2"),
        ("gaps.csv", "gaps.csv has 30 missing (NaN) values in column a: --drop-missing leaves their rows out"),
        ("junk.parquet", "junk.parquet cannot be read as .parquet"),
        ("short.npy", "x.npy and short.npy must have as many rows as each other, got 60 and 50"),
        ("constant.npy", "constant.npy must not have constant columns, which carry no information; got column 2"),
        ("complex.npy", "complex.npy must hold real numbers, got complex128 of shape (60, 2)"),
        ("deep.npy", "deep.npy must have shape (N,) or (N, d), got float64 of shape (1, 60, 2)"),
    ],
)
def test_unfit_files_are_one_line_and_status_2(unfit, capsys, file, message):
    assert main(["estimate", "x.npy", file, *QUICK]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("simmim-kernels estimate: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "--folds: must be an integer of at least 2, got 1"),
        (["--batch-size", "1"], "--batch-size: must be an integer of at least 2, got 1"),
        (["--critic", "oracle"], "--critic: invalid choice: 'oracle'"),
        (["--backend", "abacus"], "--backend: must be one of"),
        (["--delimiter", "ab"], "--delimiter: must be one character, got 'ab'"),
    ],
)
def test_unfit_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", "x.npy", "y.npy", *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_too_few_rows(unfit, capsys):
    assert main(["estimate", "few.npy", "few.npy", *QUICK]) == 2
    assert "at least 20 rows a fold, 40 for 2 folds; got 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("nowhere/out.json", "No such file or directory"),
        ("x.npy/out.json", "Not a directory"),
        (".", "it is a folder"),
    ],
)
def test_a_json_that_cannot_be_written_is_refused_before_the_work(pairs, monkeypatch, capsys, file, reason):
    monkeypatch.setattr(estimate_command, "read_samples", None)
    assert main(["estimate", "x.npy", "y.npy", *QUICK, "--json", file]) == 2
    assert capsys.readouterr().err == f"simmim-kernels estimate: {file} cannot be written: {reason}\n"


def test_a_backend_that_cannot_run_the_critic_is_refused(pairs, monkeypatch, capsys):
    monkeypatch.setattr(BACKENDS["native"], "supports", lambda problem: "it has had enough")
    assert main(["estimate", "x.npy", "y.npy", *QUICK, "--backend", "native", "--critic", "mlp"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "simmim-kernels estimate: backend 'native' was asked for (use_backend) but cannot run this: "
    )
    assert error.count("\n") == 1


def test_missing_packages_and_ctrl_c(pairs, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(estimate_command, "estimate", interrupt)
        assert main(["estimate", "x.npy", "y.npy"]) == 130
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        assert main(["estimate", "x.npy", "plain.csv"]) == 2
        assert 'needs pyarrow: pip install "simmim_kernels[estimate]"' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.table", None)
    monkeypatch.delitem(sys.modules, "simmim_kernels.commands.estimate")
    monkeypatch.delattr("simmim_kernels.commands.estimate")
    assert main(["estimate", "x.npy", "y.npy"]) == 2
    assert 'needs rich: pip install "simmim_kernels[estimate]"' in capsys.readouterr().err
