"""What may be learned of a table, from which rows, and what its numbers may say."""

import itertools
import json

import click
import numpy as np
import pytest
import torch
from conftest import ROOT, first_lines, invoke, mistake, rows_of, table_of

import finetune
from moleclip.choice import NAMES
from moleclip.metrics import (
    MODEL,
    against_mean,
    area,
    bootstrap,
    difference,
    print_table,
    table_title,
)
from moleclip.plots import draw_table
from moleclip.runs import best_seed
from moleclip.seen import molecule_hashes
from moleclip.splits import make_split, make_splits
from moleclip.table import Data

SMILES = [line.split(",")[1] for line in first_lines("esol.csv", 400, 1)]
VALUES = [float(line.split(",")[2]) for line in first_lines("esol.csv", 400, 1)]


def text_of(columns, count=40, mark=","):
    """The text of a table of real molecules. columns: {name: function of a row's number}."""
    lines = [mark.join(["smiles", *columns])]
    for row in range(count):
        lines.append(mark.join([SMILES[row], *(str(cell(row)) for cell in columns.values())]))
    return "\n".join(lines) + "\n"


def refusal(folder, columns, mark=",", **options):
    """The one line that a table is refused with."""
    with pytest.raises(click.ClickException) as error:
        table_of(folder, text_of(columns, mark=mark), **options)
    assert "\n" not in error.value.message
    return error.value.message


def weight(row):
    return f"{100 + row * 1.37:.2f}"


def word(row):
    return "active" if row % 3 else "inactive"


def test_decimal_commas_are_read_where_semicolons_separate(tmp_path):
    columns = {"MW": lambda i: weight(i).replace(".", ","), "logS": lambda i: f"-{i},5"}
    data = table_of(tmp_path, text_of(columns, mark=";"))
    assert data.targets == ["MW", "logS"] and data.labels[2].tolist() == [102.74, -2.5]
    columns["MW"] = weight  # of one column alone
    assert table_of(tmp_path, text_of(columns, mark=";")).labels[2].tolist() == [102.74, -2.5]
    quoted = {"MW": weight, "logS": lambda i: f'"-{i},5"'}
    says = refusal(tmp_path, quoted)
    assert "logS looks like labels, but its decimal commas" in says and "--target MW" in says
    assert table_of(tmp_path, text_of(quoted), targets=["MW"]).targets == ["MW"]


def test_points_may_separate_thousands_where_commas_are_decimal(tmp_path):
    columns = {
        "logS": lambda i: f"-{i},5",
        "IC50": lambda i: f"{i + 1}.250 nM" if i % 2 else "850 nM",
    }
    line = refusal(tmp_path, columns, mark=";")
    assert "IC50 looks like labels, but '2.250 nM' may be thousands" in line
    columns["IC50"] = lambda i: f"{i + 1}.250,5"
    assert "no plain numbers ('1.250,5')" in refusal(tmp_path, columns, mark=";")
    for cells in (lambda i: f"0.{i + 100}", lambda i: f"{i}.125" if i % 2 else f"{i}.5"):
        data = table_of(tmp_path, text_of(columns | {"IC50": cells}, mark=";"))
        assert data.labels[1, 1] == float(cells(1))


def test_a_dash_that_programs_write_is_a_minus(tmp_path):
    data = table_of(tmp_path, text_of({"y": lambda i: f"–{i}.5" if i else "—"}))
    assert np.isnan(data.labels[0, 0]) and data.labels[3, 0] == -3.5
    assert table_of(tmp_path, text_of({"y": lambda i: "+–"[i % 2]})).classes == [("-", "+")]


def test_units_and_relations_in_columns_of_their_own_are_said(tmp_path):
    columns = {
        "n_units": lambda i: i % 3,
        "Standard Relation": lambda i: "'='",
        "Standard Value": weight,
        "standard_units": lambda i: "nM" if i % 4 else "uM",
    }
    data = table_of(tmp_path, text_of(columns), targets=["Standard Value", "n_units"])
    says = "standard_units is not the same in all rows (30 are nM, 10 are uM)"
    assert [line for line in data.notes() if "not the same" in line] == [
        f"warning: {says}: labels are taken as they stand"
    ]


@pytest.mark.parametrize(
    "cell, says",
    [
        (lambda i: ">100" if i % 4 else 3.5 + i, "most of its values are not exact (>100); 10 are"),
        (lambda i: f"{i}.5 nM" if i % 2 else f"{i}.5 uM", "units are mixed (20 in uM, 20 in nM)"),
        (lambda i: f"{i}.5 nM" if i % 2 else f"{i}.5", "units are mixed (20 bare, 20 in nM)"),
        (lambda i: ["low", "middle", "high"][i % 3], "3 different words (low, middle, high)"),
        (lambda i: i + 0.5 if i % 5 < 2 else f"below {i}", "most of its cells are no numbers"),
        (lambda i: f"{i}.5 ± 0.1 nM", "its cells are no plain numbers ('0.5 ± 0.1 nM')"),
        (lambda i: f"{i}.5-{i + 1}", "its cells are no plain numbers ('0.5-1')"),
        (lambda i: f'"{i + 1},500.5"', "its cells are no plain numbers ('1,500.5')"),
        (lambda i: f"({i}.5)", "its cells are no plain numbers ('(0.5)')"),
        (lambda i: f"{i}.2 × 10^-3", "its cells are no plain numbers ('0.2 × 10^-3')"),
        (lambda i: f"{i + 1}.500.000", "its cells are no plain numbers ('1.500.000')"),
        (lambda i: f"{i + 1} 500" if i % 2 else i, "'2 500' may be one number or several"),
        (lambda i: f"{i}.5 \udcb5M", "its cells are not UTF-8"),
        (lambda i: "pas tr\udce8s" if i % 2 else "tr\udce8s", "its words are not UTF-8"),
    ],
)
def test_a_doubtful_column_beside_another_asks(tmp_path, cell, says):
    line = refusal(tmp_path, {"MW": weight, "IC50": cell})
    assert says in line and "IC50 looks like labels" in line and "--target MW" in line


def test_numbers_and_classes_ask_which(tmp_path):
    for cell in (word, lambda i: i % 2, lambda i: "+-"[i % 2]):
        line = refusal(tmp_path, {"MW": weight, "activity": cell})
        for name in ("MW", "activity"):
            assert f"finetune.py --data {tmp_path / 't.csv'} --target '{name}'" in line
    text = text_of({"MW": weight, "activity": word})
    assert table_of(tmp_path, text, targets=["MW"]).task == "regression"
    assert table_of(tmp_path, text, targets=["activity"]).task == "classification"


@pytest.mark.parametrize(
    "name, cell",
    [
        ("Unnamed: 0", lambda i: 3 * i + (i > 20)),
        ("PubChem CID", lambda i: 5_000_000 - 7 * i),
        ("id_number", lambda i: i % 7),
        ("mol_id", lambda i: i % 9),
        ("compoundID", lambda i: i % 9),
        ("fold", lambda i: i % 5),
        ("cv_fold", lambda i: i % 5),
        ("batch", lambda i: i % 4),
        ("Lot", lambda i: f"2021_0{10 + i}"),
        ("vendor", lambda i: f"2021_0{10 + i}"),
        ("code", lambda i: f"{1000 + (i * 17) % 41}.0"),
        ("index", lambda i: i),
        ("split", lambda i: ["train", "test"][i % 5 > 3]),
        ("Year", lambda i: 1990 + i % 9),
        ("date", lambda i: f"2021-{i % 12 + 1:02d}"),
        ("CAS", lambda i: f"{50 + i}-00-{i % 10}"),
        ("compound", lambda i: f"{i}-aminophenol"),
    ],
)
def test_ids_folds_and_lots_are_no_labels(tmp_path, name, cell):
    data = table_of(tmp_path, text_of({name: cell, "y": lambda i: i % 2}))
    assert data.targets == ["y"] and data.task == "classification" and list(data.left_out) == [name]
    assert name in data.notes()[0] and "--target" in data.notes()[0]


def test_properties_that_sound_like_ids_are_labels(tmp_path):
    names = (
        "fold_change",
        "refractive index",
        "lipid",
        "number of rings",
        "solid_yield",
        "batches",
    )
    data = table_of(tmp_path, text_of(dict.fromkeys(names, weight)))
    assert data.targets == list(names) and not data.left_out


def test_whole_numbers_are_learned_when_named(tmp_path):
    columns = {"melting_point": lambda i: 300 + 3 * i, "y": weight}
    assert table_of(tmp_path, text_of(columns)).targets == ["y"]
    named = table_of(tmp_path, text_of(columns), targets=["melting_point"])
    assert named.labels[:3, 0].tolist() == [300, 303, 306]


def test_every_column_that_is_not_learned_is_named(tmp_path):
    columns = {
        "name": lambda i: f"compound {i}",
        "source": lambda i: "lab",
        "empty": lambda i: "",
        "journal": lambda i: "abcd"[i % 4],
        "y": weight,
    }
    data = table_of(tmp_path, text_of(columns))
    assert data.targets == ["y"]
    reasons = ["words", "the same in every row", "every cell is blank", "4 different words"]
    for name, reason in zip(columns, reasons):
        assert reason in data.left_out[name] and name in data.notes()[0]


@pytest.mark.parametrize(
    "words, positive",
    [
        ("inactive active", "active"),
        ("Yes No", "Yes"),
        ("True False", "True"),
        ("low high", "high"),
        ("toxic non-toxic", "toxic"),
        ("+ -", "+"),
        ("1 2", "2"),
        ("-1 1", "1"),
        ("0 1", "1"),
        ("0.0 1.0", "1"),
        ("cis trans", "trans"),
    ],
)
def test_two_words_are_classes(tmp_path, words, positive):
    pair = words.split()
    text = text_of({"activity": lambda i: pair[i % 3 > 0] if i % 10 < 9 else "n/a"})
    data = table_of(tmp_path, text)
    assert data.task == "classification" and np.isnan(data.labels[9, 0])
    high = float(
        pair[1].lower() == positive.lower() or float_or_none(pair[1]) == 1 and "0" in words
    )
    high = high if pair[1] != "1.0" else 1.0
    assert data.labels[:3, 0].tolist() == [1 - high, high, high]
    plain = {"0", "1"} == {f"{float_or_none(each)}"[:1] for each in pair} and "-" not in words
    assert plain == (not data.classes[0])
    if not plain:
        assert data.classes[0][1] == positive
        other = data.classes[0][0]
        line = f"activity: {positive} is the positive class, {other} is 0; "
        assert line + f"--target 'activity={other}' turns it" in data.notes()
        turned = table_of(tmp_path, text, targets=[f"activity={other.upper()}"])
        assert turned.classes[0] == (positive, other)
        known = ~np.isnan(data.labels)
        assert (turned.labels[known] == 1 - data.labels[known]).all()
        with pytest.raises(click.ClickException, match="none is 'maybe'"):
            table_of(tmp_path, text, targets=["activity=maybe"])


def float_or_none(text):
    try:
        return float(text)
    except ValueError:
        return None


def test_three_words_and_mixed_units_say_what_to_do(tmp_path):
    three = {"activity": lambda i: ["active", "inactive", "unsure"][i % 3]}
    for options in ({}, {"targets": ["activity"]}):
        line = refusal(tmp_path, three, **options)
        assert "--target" not in line  # which would be refused as well
        assert "3 different words" in line and "leave blank what is neither" in line
    mixed = {"IC50": lambda i: f"{i}.5 nM" if i % 2 else f"{i}.5 µM"}
    assert "write all in one" in refusal(tmp_path, mixed, targets=["IC50"])


def test_one_unit_is_taken_off_and_kept(tmp_path):
    blanks = ["n/a", "ND", "-", ""]
    data = table_of(tmp_path, text_of({"Ki": lambda i: f"{i}.5 nM" if i > 3 else blanks[i]}))
    assert data.units == ["nM"] and data.labels[4, 0] == 4.5 and np.isnan(data.labels[:4]).all()
    assert "Ki: in nM" in data.notes()
    percent = table_of(tmp_path, text_of({"yield": lambda i: f"{i}.5%"}))
    assert percent.units == ["%"] and percent.labels[4, 0] == 4.5


def test_qualified_values_are_counted_and_named(tmp_path):
    cells = {0: ">10", 1: "< 0.5", 2: "~3", 3: "≥7.5"}
    data = table_of(tmp_path, text_of({"IC50": lambda i: cells.get(i, f"{i}.25")}))
    assert np.isnan(data.labels[:4]).all() and data.labels[4, 0] == 4.25
    assert data.qualified[0] == cells
    assert "IC50: 4 values are not exact (such as >10) and are left out" in data.notes()[0]
    assert data.why_unlabelled(0) == "no exact label (IC50 is >10)"


def test_one_word_too_many_is_named_by_its_row(tmp_path):
    line = refusal(tmp_path, {"y": lambda i: "about 5" if i == 7 else weight(i)})
    assert "row 7 (line 9): y is 'about 5', not a number" in line


def usable(data):
    return lambda: [i for i in range(len(data)) if not data.why_unlabelled(i)]


def test_what_cannot_be_learned_is_left_out(tmp_path, capsys):
    part = ["train"] * 8 + ["val", "test"]
    columns = {
        "constant": lambda i: 300.5 if part[i % 10] == "train" else 200.5 + i,
        "untaught": lambda i: "" if part[i % 10] == "train" else i * 0.5,
        "y": weight,
        "split": lambda i: part[i % 10],
    }
    data = table_of(tmp_path, text_of(columns), split_column="split")
    splits = make_splits(data, usable(data), "column", [1, 2])
    assert data.targets == ["y"] and data.labels.shape == (40, 1) and len(splits[1]["train"]) == 32
    said = capsys.readouterr().err
    assert "constant is not learned: all labels of the training part are 300.5" in said
    assert "untaught is not learned: no label in the training part" in said
    del columns["y"]
    data = table_of(tmp_path, text_of(columns), split_column="split")
    with pytest.raises(click.ClickException, match="nothing to learn: constant"):
        make_splits(data, usable(data), "column", [1])


def test_random_splits_of_classes_are_stratified(tmp_path):
    data = table_of(tmp_path, text_of({"y": lambda i: int(i % 10 == 3)}, 60))
    for seed in range(5):
        split = make_split(data, range(60), "random", seed, warn=False)
        counts = {part: data.labels[rows].sum() for part, rows in split.items()}
        assert counts == {"train": 4, "val": 1, "test": 1}
        assert sorted(sum(split.values(), [])) == list(range(60))
    both = table_of(tmp_path, text_of({"a": lambda i: i % 2, "b": lambda i: int(i % 15 == 3)}, 60))
    split = make_split(both, range(60), "random", 1, warn=False)
    assert all(both.labels[rows, 1].any() for rows in split.values())


def test_the_rows_of_one_molecule_stay_together(tmp_path, capsys):
    lines = [f"{SMILES[i // 2]},{VALUES[i // 2] + 0.01 * i:.3f}" for i in range(80)]
    data = table_of(tmp_path, "\n".join(["smiles,y", *lines, ""]))
    split = make_split(data, range(80), "random", 1)
    parts = [{row // 2 for row in rows} for rows in split.values()]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert [len(rows) for rows in split.values()] == [64, 8, 8]
    said = capsys.readouterr().err
    assert "40 of 80 rows repeat a molecule; all rows of one go into one part" in said
    mirror = "C[C@H](O)Cl", "C[C@@H](O)Cl"
    assert len(molecule_hashes(mirror)) == 2


def test_few_replicates_leave_the_papers_lists(capsys):
    esol = Data(str(ROOT / "data" / "esol.csv"))
    order = list(range(1128))
    np.random.RandomState(1).shuffle(order)
    split = make_split(esol, range(1128), "random", 1)
    assert split["test"] == order[:112] and split["val"] == order[112:224]
    assert "rows of val and test hold molecules" in capsys.readouterr().err


def test_too_few_molecules_are_told(tmp_path):
    with pytest.raises(click.ClickException, match="has one row"):
        table_of(tmp_path, "smiles,y\nCCO,1.5\n")
    one = table_of(tmp_path, "smiles,y\n" + "".join(f"CCO,{i}.5\n" for i in range(20)))
    with pytest.raises(click.ClickException, match="1 molecules with labels.*20 rows repeat"):
        make_splits(one, usable(one), "random", [1])
    lines = [
        f"{'CCO' if i < 18 else SMILES[i]},{i}.5,{'train' if i < 18 else 'val'}" for i in range(40)
    ]
    lines[-1] = lines[-1].replace("val", "test")
    data = table_of(tmp_path, "\n".join(["smiles,y,split", *lines, ""]), split_column="split")
    with pytest.raises(click.ClickException, match="training part .* is one molecule"):
        make_splits(data, usable(data), "column", [1])


def test_tiny_and_one_class_parts_are_warned_of(tmp_path, capsys):
    columns = {"y": lambda i: int(i < 6), "split": lambda i: ["train", "val", "test"][i // 14]}
    data = table_of(tmp_path, text_of(columns, 42), split_column="split")
    with pytest.raises(click.ClickException):  # all positives in training would be no test
        make_splits(data, lambda: list(range(30, 42)), "column", [1])
    make_splits(data, usable(data), "column", [1])
    said = capsys.readouterr().err
    assert "one class only in validation" in said and "only 14 molecules in test" in said
    assert "one value only in test, no AUC: y" in said


def test_a_splits_file_belongs_to_its_table(tmp_path):
    data = table_of(tmp_path, text_of({"y": weight}))
    own = tmp_path / "splits.csv"
    own.write_text(f"row,smiles,split\n0,{SMILES[0]},train\n1,CCCC,test\n")
    with pytest.raises(click.ClickException, match="row 1 is CCCC, in the table .*another table"):
        make_split(data, range(40), str(own), 1)


def test_the_best_seed_is_best_against_its_own_mean():
    train, val = np.array([[0.0], [1], [0], [1]]), np.array([[0.0], [1]])
    good, bad = np.array([[0.1], [0.9]]), np.array([[0.5], [0.5]])
    assert against_mean(train, val, bad, "classification") == pytest.approx(1)
    assert against_mean(train, val, good, "classification") < 0.2
    assert against_mean(train, np.zeros((2, 1)), good * 0, "classification") is None
    easy, hard = np.array([[0.5], [0.6]]), np.array([[9.0], [-9]])
    assert against_mean(train, easy, easy + 0.1, "regression") == pytest.approx(0.1 / 0.05)
    assert against_mean(train, hard, hard + 1, "regression") == pytest.approx(1 / 9)
    runs = [{"val_loss": 0.1, "val_against_mean": each} for each in (2.0, 0.11, None)]
    assert best_seed(runs) == 1
    assert best_seed([{"val_loss": 2}, {"val_loss": 1}]) == 1  # as old runs have them


def test_differences_are_paired(capsys):
    random = np.random.default_rng(1)
    truth = random.normal(size=(300, 1))
    noise = random.normal(size=(300, 1))
    methods = {"this model": truth + 0.9 * noise, "a": truth + noise, "b": truth + 5 * noise}
    found = bootstrap(truth, methods, "regression")
    gap = np.abs(noise).mean() * 0.1
    assert found["a"]["mean"] == pytest.approx(-gap) and found["a"]["high"] < 0
    runs = [
        {"test": {name: {"pooled": {"MAE": value + seed}} for name, value in each.items()}}
        for seed, each in enumerate(
            ({"this model": 1.0, "a": 1.2, "b": 2}, {"this model": 1.0, "a": 1.1, "b": 2})
        )
    ]
    paired = difference(runs, "regression")
    assert paired["baseline"] == "a" and paired["mean"] == pytest.approx(-0.15)
    assert paired["high"] - paired["low"] == pytest.approx(2 * 12.706 * 0.05, rel=1e-3)
    assert paired["over"] == "2 seeds"
    assert difference(runs, "regression", fixed=True)["over"] == "2 trainings on one split"
    one = difference([runs[0] | {"bootstrap": found}], "regression")
    assert one["over"] == "its test molecules, resampled"


def test_the_area_under_resampling_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(2)
    truth, predicted = random.integers(0, 2, 50).astype(float), random.integers(0, 9, 50) / 9
    weights = random.integers(0, 4, (3, 50)).astype(float)
    wanted = [roc_auc_score(truth, predicted, sample_weight=each) for each in weights]
    assert area(truth, predicted, weights) == pytest.approx(wanted)


def test_the_printed_table_says_what_its_intervals_are(capsys):
    def summary(mean, seeds=3):
        return {"mean": mean, "sd": 0.1, "ci95": 0.2 if seeds > 1 else None, "seeds": seeds}

    scores = {"pooled": {"MAE": summary(1.0), "R2": summary(0.5, 1)}}
    scores["targets"] = {"a": {"MAE": summary(1.0)}, "b": {"MAE": summary(2.0)}}
    print_table({"this model": scores, "mean of training": scores}, True, "standard deviations")
    said = capsys.readouterr().out
    assert "mean ± 95% of 3 trainings on one split" in said and "0.5 (1)" in said
    assert "the intervals are of training alone" in said and "in standard deviations" in said
    heads = [line.split() for line in said.splitlines() if line.startswith("MAE of each target")]
    assert heads[0][-5:] == ["this", "model", "mean", "of", "training"]


@pytest.mark.parametrize(
    "metrics",
    ["MAE RMSE R2 Spearman coverage width", "ROC-AUC PR-AUC accuracy Brier calibration_error"],
)
def test_no_number_of_the_report_runs_into_another(metrics):
    import matplotlib.pyplot as plt

    names = [name.replace("_", " ") for name in metrics.split()]
    summary = {"mean": -0.0346, "sd": 0.1, "ci95": 0.2345, "seeds": 3}
    methods = [MODEL, *(f"ECFP + {name}" for name in NAMES.values()), "mean of training"]
    table = {method: {"pooled": dict.fromkeys(names, summary)} for method in methods}
    figure = plt.figure(figsize=(16, 6.2), layout="constrained")
    top, _ = figure.subfigures(2, 1, height_ratios=(3.6, 2.6))
    axis = top.subplots(1, 4, width_ratios=(1.8, 1, 1, 1))[0]
    draw_table(axis, table, f"{'long ' * 12}\n{table_title(table, fixed=True)}")
    figure.canvas.draw()
    texts = [cell.get_text() for cell in axis.tables[0].get_celld().values()] + [axis.title]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    assert len(boxes) == 5 * (1 + len(names)) + len(names) + 1
    assert min(box.x0 for _, box in boxes) >= 0
    pairs = itertools.combinations(boxes, 2)
    assert not [(one, other) for (one, a), (other, b) in pairs if a.overlaps(b)]
    plt.close(figure)


@pytest.fixture(scope="module")
def quick(tmp_path_factory, road):
    """Run finetune.py in seconds; returns (folder, function of a table's text and more words)."""
    folder = tmp_path_factory.mktemp("quick")
    words = ["--init", road / "encoder.pt", "--freeze", "--epochs", 2]

    def run(name, text, *more, code=0, starts=words):
        (folder / f"{name}.csv").write_text(text)
        line = ["--data", folder / f"{name}.csv", "-o", folder / name, *starts, *more]
        if code:
            return mistake(finetune.main, *line, code=code)
        return invoke(finetune.main, *line)

    return folder, run


def test_classes_keep_their_names(quick):
    folder, run = quick
    said = run("words", text_of({"activity": word}, 60))
    assert "activity: active is the positive class" in said and "seed 1" in said
    lines = rows_of(folder / "words" / "predictions.csv")
    assert [line["true_activity"] for line in lines[:3]] == ["inactive", "active", "active"]
    for line in lines:
        likely = "active" if float(line["predicted_activity"]) > 0.5 else "inactive"
        assert line["class_activity"] == likely
    model = torch.load(folder / "words" / "model.pt", weights_only=True)
    assert model["classes"] == [["inactive", "active"]] and model["targets"] == ["activity"]


def test_units_and_qualified_values_reach_the_files(quick):
    folder, run = quick
    run("ki", text_of({"Ki": lambda i: f">{i} nM" if i < 3 else f"{VALUES[i]} nM"}, 60))
    lines = rows_of(folder / "ki" / "predictions.csv")
    assert lines[0]["true_Ki"] == ">0 nM" and "no exact label (Ki is >0 nM)" in lines[0]["error"]
    assert lines[0]["split"] == "" and float(lines[0]["predicted_Ki"])
    assert torch.load(folder / "ki" / "model.pt", weights_only=True)["units"] == ["nM"]


def test_a_failed_start_does_not_block_the_corrected_command(quick):
    folder, run = quick
    text = text_of({"y": lambda i: VALUES[i], "split": lambda i: ["train", "val", "tset"][i % 3]})
    assert "is 'tset'" in run("late", text, "--split-column", "split", code=1)
    run("late", text.replace("tset", "test"), "--split-column", "split")
    config = json.loads((folder / "late" / "config.json").read_text())
    assert config["split_sha256"] and config["init_sha256"] and "split" in config["columns"]


def test_an_interrupted_run_goes_on_with_the_same_files_alone(quick, road):
    folder, run = quick
    text = text_of({"y": lambda i: VALUES[i], "k": lambda i: ["train", "val", "test"][i % 3]})
    (folder / "e.pt").write_bytes((road / "encoder.pt").read_bytes())
    starts = ["--init", folder / "e.pt", "--freeze", "--epochs", 2, "--seeds", "1,2"]
    run("twice", text, "--split-column", "k", starts=starts)
    for name in ("metrics.json", "seed-2/metrics.json"):
        (folder / "twice" / name).unlink()
    other = torch.load(folder / "e.pt", weights_only=True)
    other["encoder"]["proj"] *= 1.1
    torch.save(other, folder / "e.pt")
    assert "another init_sha256" in run("twice", text, "--split-column", "k", starts=starts, code=1)
    (folder / "e.pt").write_bytes((road / "encoder.pt").read_bytes())
    (folder / "s.csv").write_text("row,split\n" + "".join(f"{i},train\n" for i in range(40)))
    run("twice", text, "--split-column", "k", starts=starts)


def test_a_model_is_not_tested_on_what_it_was_trained_on(quick):
    folder, run = quick
    text = text_of({"y": lambda i: VALUES[i]}, 60)
    run("first", text)
    starts = ["--init", folder / "first" / "model.pt", "--freeze", "--epochs", 2]
    said = run("same", text, starts=starts)  # the same split: its test part is new to it
    assert "was trained on molecules of this table" in said and "0 of test" in said
    line = run("other", text, "--seeds", 2, starts=starts, code=1)
    assert "of test; take another encoder" in line and "--force" in line
    assert not (folder / "other").exists()
    run("other", text, "--seeds", 2, "--force", starts=starts)
    seen = torch.load(folder / "other" / "model.pt", weights_only=True)["seen"]
    first = torch.load(folder / "first" / "model.pt", weights_only=True)["seen"]
    assert len(first) == 48 and set(first.tolist()) < set(seen.tolist())
    old = torch.load(folder / "first" / "model.pt", weights_only=True)
    del old["seen"]
    torch.save(old, folder / "first" / "model.pt")
    assert "was trained on this table" in run("same2", text, starts=starts, code=1)


def test_what_an_encoder_drew_without_labels_is_said(quick, road):
    folder, run = quick
    (folder / "drew.pt").write_bytes((road / "encoder.pt").read_bytes())
    np.save(folder / "drew.seen.npy", molecule_hashes(SMILES[:60]).numpy())
    starts = ["--init", folder / "drew.pt", "--freeze", "--epochs", 2]
    said = run("drew", text_of({"y": lambda i: VALUES[i]}, 60), starts=starts)
    assert "learned, without labels, from drawings of molecules of this table" in said
    assert "48 of train, 6 of val, 6 of test" in said
    assert len(torch.load(folder / "drew" / "model.pt", weights_only=True)["seen"]) == 48


def test_pooled_errors_of_several_columns_have_no_unit(quick):
    folder, run = quick
    run("units", text_of({"a": lambda i: VALUES[i], "b": lambda i: 1000 * VALUES[i] + i % 7}, 60))
    facts = json.loads((folder / "units" / "metrics.json").read_text())
    assert facts["runs"][0]["pooled_unit"].startswith("standard deviations")
    each = facts["test"]["mean of training"]
    assert each["pooled"]["MAE"]["mean"] < 5 < 500 < each["targets"]["b"]["MAE"]["mean"]
    run("one", text_of({"a": lambda i: f"{VALUES[i]} {1000 * VALUES[i]}"}, 60))
    facts = json.loads((folder / "one" / "metrics.json").read_text())
    assert facts["test"]["mean of training"]["pooled"]["MAE"]["mean"] > 100
    assert facts["runs"][0]["pooled_unit"] == "the label's"


def test_options_that_contradict_each_other(quick):
    folder, run = quick
    text = text_of({"y": lambda i: VALUES[i], "k": lambda i: "train"})
    assert "y is a regression" in run("pos", text, "--pos-weight", "auto", code=2)
    words = ["--split", "scaffold", "--split-column", "k"]
    assert "leave out --split scaffold" in run("both", text, *words, code=2)
