"""The grid, the groups, and the split of the lists."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mtk.errors import UsageError
from mtk_tasks_domainnet import lists, plugin
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


# Number of classes of each group, in order, as shared/protocol.md 1.1 prints them; four
# groups of one domain per line.
SIZES = """
furniture 35, mammal 25, tool 28, cloth 23
electricity 25, building 21, office 21, human_body 20
road_transportation 15, food 14, nature 14, cold_blooded 12
music 10, fruit 9, sport 10, tree 8
bird 7, vegetable 8, shape 7, kitchen 8
water_transportation 6, sky_transportation 4, insect 4, others 13
"""
# What stands at the end of a line of the official lists, from this number on: seen in
# pages of clipart_test.txt and infograph_test.txt (CDTrans/CDTrans, commit 392c3db).
NUMBERS = {
    0: "aircraft_carrier airplane alarm_clock ambulance angel animal_migration ant anvil "
    "apple arm asparagus axe backpack banana bandage",
    100: "dumbbell ear elbow elephant envelope eraser eye eyeglasses face fan",
    292: "string_bean submarine suitcase sun swan",
    322: "tree triangle trombone truck",
    340: "wine_glass wristwatch yoga zebra zigzag",
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
    held_in = [DOMAINNET.parse(cell) for cell in DOMAINNET.held_in]
    assert [group for _, group in held_in] == list(DOMAINNET.groups)
    assert [domain for domain, _ in held_in] == [
        d for d in sorted(PRINTED) for _ in range(4)
    ]
    assert {"clipart-tool", "real-shape", "painting-food"} <= set(DOMAINNET.held_in)


def test_the_shipped_classes_are_those_of_the_papers_table():
    found = [f"{name} {len(classes)}" for name, classes in DOMAINNET.groups.items()]
    assert found == [
        entry for line in SIZES.split("\n") for entry in line.split(", ") if entry
    ]
    assert len(DOMAINNET.rows) == 347
    assert len(DOMAINNET.classes) == 345
    counts = Counter(DOMAINNET.rows)
    assert {name for name in counts if counts[name] > 1} == {"bandage", "nail"}
    for classes in DOMAINNET.groups.values():
        assert len(set(classes)) == len(classes)
    assert {"bandage", "nail"} <= set(DOMAINNET.groups["tool"])
    assert {"bandage", "nail"} <= set(DOMAINNET.groups["office"])
    # Plain names of folders.
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z_-]*", name) for name in DOMAINNET.classes)


def test_rows_come_in_the_papers_order():
    rows = DOMAINNET.rows
    starts = [rows.index(DOMAINNET.groups[g][0]) for g in ("mammal", "cloth", "food")]
    assert starts == [35, 88, 213]
    assert rows.index("calendar") == rows.index("candle") - 1
    assert (rows[0], rows[346]) == ("bathtub", "traffic_light")


def test_the_official_lists_number_the_shipped_classes():
    """The numbers are places in the alphabet, where a hyphen counts nothing."""
    order = sorted(DOMAINNET.classes, key=lambda name: name.lower().replace("-", ""))
    for first, names in NUMBERS.items():
        seen = names.split()
        assert order[first : first + len(seen)] == seen


def test_the_declarations_say_the_same():
    for track in plugin.mtk_tasks():
        assert tuple(t.name for t in track.held_in) == DOMAINNET.held_in
        assert len(track.generalization) == 120
        assert len(track.abilities) == 1
        assert not track.embedded
        assert not {m for t in track.tasks for m in t.metrics if "domainnet" in m}
    assert track.tasks[0].metrics[0] == "joint_accuracy"  # the first ranks


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
    grid = Grid(domains=("a",), groups={"g": ("c0",)})
    write_lists(tmp_path, {"a": (20, 3)})
    assert len(lists.split(tmp_path, grid)["a", "train"]) == 16
    write_lists(tmp_path, {"a": (40, 3)})
    assert len(lists.split(tmp_path, grid)["a", "train"]) == 32


def test_cells_hold_their_classes_only(root, mini):
    found = lists.of_cell(root, mini, "real-tool", "test")
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


def test_rows_of_a_class_in_two_groups_stand_for_each_other(mini):
    assert mini.rows == ("hammer", "nail", "alarm_clock", "nail")
    assert mini.canonical == (0, 1, 2, 1)
    assert mini.classes == ("hammer", "nail", "alarm_clock")
    assert mini.head("office", "group") == ("alarm_clock", "nail")
    assert mini.head("office", "joint") == mini.rows
