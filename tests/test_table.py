"""The table of labels: which columns are read, what is refused, how labels are scaled."""

import click
import numpy as np
import pytest
import torch
from conftest import ROOT, table_of

from moleclip.splits import make_splits
from moleclip.table import Data, LabelScale, positive_weights


def test_esol_is_read_as_it_is():
    esol = Data(str(ROOT / "data" / "esol.csv"))
    assert (len(esol), esol.targets, esol.task) == (1128, ["log_solubility"], "regression")
    assert esol.smiles_column == "smiles"
    assert esol.labels.mean() == pytest.approx(-3.05, abs=0.005)


def test_columns_as_people_have_them(tmp_path):
    text = "num,SMILES,name,logD,note,pIC50\n7,CCO,a,1,x,\n8,CCN,b,0,y,5.5\n9,CCC,c,,z,6 \n"
    data = table_of(tmp_path, text.replace("a,1,", "a,1.5,"))
    assert data.targets == ["logD", "pIC50"] and data.task == "regression"
    assert np.isnan(data.labels[2, 0]) and np.isnan(data.labels[0, 1])
    assert data.labels[1].tolist() == [0, 5.5]
    text = "SMILES,active,pIC50\nCCO,1,4.5\nCCN,0,\n"
    assert table_of(tmp_path, text, targets=["active"]).task == "classification"


def test_several_labels_in_one_column(tmp_path):
    data = table_of(tmp_path, "indices,smiles,labels\n1,CCO, 0.2 0.3\n2,CCN, 0.4 nan\n")
    assert data.targets == ["labels_1", "labels_2"]
    assert data.labels[0, 1] == pytest.approx(0.3) and np.isnan(data.labels[1, 1])


def test_labels_of_any_size_are_standardised():
    labels = np.array([[1e-12, 1e9, 5.0], [3e-12, 1e9 + 50, 5.0], [np.nan, 1e9 + 100, 5.0]])
    mean, std = LabelScale.of(labels)
    assert mean == pytest.approx([2e-12, 1e9 + 50, 5])
    assert std == pytest.approx([1e-12, np.std([0, 50, 100]), 5], rel=1e-6)


def test_one_scale_for_numpy_and_torch():
    labels = np.array([[1.0, 20.0], [2.0, np.nan], [6.0, 40.0]])
    scale = LabelScale.of(labels)
    outputs = scale.standardise(labels)
    assert np.nanmean(outputs, 0) == pytest.approx([0, 0])
    assert np.nanstd(outputs, 0) == pytest.approx([1, 1])
    tensors = LabelScale(*map(torch.from_numpy, scale))
    for task, wanted in (("regression", labels), ("classification", 1 / (1 + np.exp(-outputs)))):
        ours = scale.unscale(outputs, task)
        theirs = tensors.unscale(torch.from_numpy(outputs), task).numpy()
        assert ours == pytest.approx(wanted, nan_ok=True)
        assert theirs == pytest.approx(wanted, nan_ok=True)


def test_rare_positives_weigh_more():
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, np.nan, 1], [0, 1, np.nan]])
    assert positive_weights(labels, "auto").tolist() == [3, 2, 1]
    assert positive_weights(labels, 2.5).tolist() == [2.5] * 3


def test_targets_that_cannot_be_scored(tmp_path, capsys):
    parts = ["train"] * 6 + ["val"] * 5 + ["test"] * 9
    lines = []
    for i, part in enumerate(parts):
        a, b = (1, i % 2) if part != "train" else (i % 2, "")
        lines.append(f"{'C' * (i + 1)},{a},{b},{int(i > 15)},{part}")
    text = "\n".join(["smiles,a,b,c,split", *lines, ""])
    data = table_of(tmp_path, text, split_column="split")
    splits = make_splits(data, lambda: usable(data), "column", [1])
    said = capsys.readouterr().err
    assert "b is not learned: no label in the training part" in said
    assert "c is not learned: all labels of the training part are 0" in said
    assert "one value only in test, no AUC: a" in said
    assert data.targets == ["a"] and splits[1]["test"] == list(range(11, 20))
    text = text.replace("test", "")
    only = table_of(tmp_path, text, split_column="split", targets=["a"])
    with pytest.raises(click.ClickException, match="leave a part of the column split empty"):
        make_splits(only, lambda: usable(only), "column", [1])


def usable(data):
    return [row for row in range(len(data)) if not data.why_unlabelled(row)]
