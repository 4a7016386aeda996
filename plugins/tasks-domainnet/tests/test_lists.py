"""The grid, the groups, and the split of the lists."""

from __future__ import annotations

import json
import random

import pytest

from mtk.errors import UsageError
from mtk_tasks_domainnet import groups, lists, plugin
from mtk_tasks_domainnet.cells import DOMAINNET, Grid

# domain -> train, validation and test images, as shared/protocol.md 1.1 prints them.
PRINTED = {
    "clipart": (26_820, 6_705, 14_604),
    "infograph": (28_819, 7_204, 15_582),
    "painting": (40_333, 10_083, 21_850),
    "quickdraw": (96_600, 24_150, 51_750),
    "real": (96_725, 24_181, 52_041),
    "sketch": (38_570, 9_642, 20_916),
}


def write_lists(root, sizes):
    for domain, (train, test) in sizes.items():
        for part, count in (("train", train), ("test", test)):
            lines = (f"{domain}/c{n % 7}/{part}{n}.jpg {n % 7}\n" for n in range(count))
            (root / f"{domain}_{part}.txt").write_text("".join(lines))


def transcribed(root, domains):
    """The two scripts, written down from their description and nothing else."""
    result = {}
    random.seed(42)
    for domain in sorted(domains):
        with (root / f"{domain}_train.txt").open() as file:
            lines = file.readlines()
        random.shuffle(lines)
        fifth = int(len(lines) * 0.2)
        result[domain, "validation"] = lines[:fifth]
        result[domain, "train"] = lines[fifth:]
    random.seed(42)
    for domain in sorted(domains):
        with (root / f"{domain}_test.txt").open() as file:
            lines = file.readlines()
        random.shuffle(lines)
        result[domain, "test"] = lines
    return result


def test_the_grid_is_the_papers():
    assert len(DOMAINNET.cells) == 144
    assert DOMAINNET.rows == 347
    held_in = [DOMAINNET.parse(cell) for cell in DOMAINNET.held_in]
    assert [group for _, group in held_in] == list(DOMAINNET.groups)
    assert [domain for domain, _ in held_in] == [
        d for d in sorted(PRINTED) for _ in range(4)
    ]
    assert {"clipart-tool", "real-shape", "painting-food"} <= set(DOMAINNET.held_in)


def test_the_declarations_say_the_same():
    for track in plugin.mtk_tasks():
        assert tuple(t.name for t in track.held_in) == DOMAINNET.held_in
        assert len(track.generalization) == 120
        assert len(track.abilities) == 1
        assert not track.embedded
        declared = {metric.name for metric in plugin.mtk_metrics()} | {"accuracy"}
        assert {m for t in track.tasks for m in t.metrics} <= declared


def test_official_lengths_give_the_printed_split(tmp_path):
    """Every list at its real length: 586,575 lines."""
    write_lists(tmp_path, DOMAINNET.lists)
    found = lists.split(tmp_path, DOMAINNET)
    for domain, counts in PRINTED.items():
        parts = ("train", "validation", "test")
        assert tuple(len(found[domain, part]) for part in parts) == counts
    plain = transcribed(tmp_path, DOMAINNET.domains)
    for key, lines in plain.items():
        wanted = [line.split()[0] for line in lines]
        assert [image.path for image in found[key]] == wanted
    assert len({i.number for images in found.values() for i in images}) == 586_575


def test_a_changed_list_is_read_again(tmp_path):
    grid = Grid(domains=("a",), groups={"g": 7})
    write_lists(tmp_path, {"a": (20, 3)})
    assert len(lists.split(tmp_path, grid)["a", "train"]) == 16
    write_lists(tmp_path, {"a": (40, 3)})
    assert len(lists.split(tmp_path, grid)["a", "train"]) == 32


def test_cells_hold_their_classes_only(root, mini):
    classes = groups.read(root, mini)
    found = lists.of_cell(root, mini, classes, "real-tool", "test")
    assert {image.name for image in found} == {"hammer", "nail"}
    assert len(found) == 8
    assert all(image.path.startswith("real/") for image in found)


@pytest.mark.parametrize(
    "line",
    ["real/hammer/x.jpg", "real/x.jpg 3", "../hammer/x.jpg 3", "real/../x.jpg 3",
     "/real/hammer/x.jpg 3", "clipart/hammer/x.jpg 3"],
)  # fmt: skip
def test_lines_of_another_form_are_refused(tmp_path, line):
    (tmp_path / "real_train.txt").write_text(f"real/hammer/y.jpg 1\n{line}\n")
    with pytest.raises(UsageError, match="line 2"):
        lists.read(tmp_path / "real_train.txt", "real")


def test_rows_of_a_class_in_two_groups_stand_for_each_other(root, mini):
    classes = groups.read(root, mini)
    assert classes.rows == ("hammer", "nail", "alarm_clock", "nail")
    assert classes.canonical == (0, 1, 2, 1)
    assert classes.head("office", "group") == ("alarm_clock", "nail")
    assert classes.head("office", "joint") == classes.rows


def test_the_papers_own_file_is_parsed_and_never_run(root, mini):
    (root / "groups.json").unlink()
    (root / "domainnet.py").write_text(
        "import os\n"
        "raise SystemExit('never run')\n"
        'tools = {"nail": 1, "hammer": 0}\n'
        'office = {"alarm_clock": 0, "nail": 1}\n'
        'CATEGORIES = {"tool": tools, "office": office}\n'
        'STARTS = {"tool": 0, "office": 2}\n'
    )
    assert groups.read(root, mini).groups == {
        "tool": ("hammer", "nail"),
        "office": ("alarm_clock", "nail"),
    }


def test_the_papers_spelling_of_vegetable_is_understood(tmp_path):
    grid = Grid(domains=("real",), groups={"vegetable": 1})
    (tmp_path / "groups.json").write_text('{"vegatable": ["onion"]}')
    assert groups.read(tmp_path, grid).rows == ("onion",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"tool": ["hammer", "nail"]}', "office"),
        ('{"office": ["a", "b"], "tool": ["a", "b"]}', "order"),
        ('{"tool": ["hammer"], "office": ["a", "b"]}', "1 classes, not 2"),
        ('{"tool": ["hammer", "hammer"], "office": ["a", "b"]}', "1 classes, not 2"),
        ('{"tool": ["../x", "nail"], "office": ["a", "b"]}', "no name of a folder"),
        ("[1]", "could not be read"),
        ("{", "could not be read"),
    ],
)
def test_wrong_groups_are_refused(root, mini, content, message):
    (root / "groups.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        groups.read(root, mini)


def test_groups_and_lists_must_speak_of_the_same_classes(root, mini):
    lists.check_classes(root, mini, groups.read(root, mini))
    changed = {"tool": ["hammer", "anvil"], "office": ["alarm_clock", "nail"]}
    (root / "groups.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="'anvil' is in no list"):
        lists.check_classes(root, mini, groups.read(root, mini))
