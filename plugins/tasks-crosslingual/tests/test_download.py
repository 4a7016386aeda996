"""Addresses on the Hub, and reading what lies there from local copies of its layout."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mtk import fetching
from mtk.errors import UsageError
from mtk_tasks_crosslingual.cells import CELLS, Cuts
from mtk_tasks_crosslingual.download import Address, address, lines, load
from mtk_tasks_crosslingual.layouts import rows
from mtk_tasks_crosslingual.sets import examples, set_of
from mtk_tasks_crosslingual.track import CrosslingualMt5

SMALL = Cuts(held_back=2, wiki_validation=2, wiki_test=2, xquad_validation=4)


def test_every_file_has_an_address_on_the_hub():
    for cell in CELLS:
        found = set_of(cell)
        for file in set(found.files.values()) - {""}:
            where = address(found.folder, file)
            assert where.split in ("train", "validation", "test")
            if where.files is None:
                assert where.repo.count("/") == 1
            else:
                assert where.repo == "parquet"


def test_xlwic_is_read_from_the_branch_of_parquet_files():
    assert address("xlwic.ko", "test") == Address(
        repo="parquet",
        split="test",
        files="hf://datasets/pasinit/xlwic@refs/convert/parquet/"
        "xlwic_en_ko/test/*.parquet",
    )


def test_the_hub_s_client_reads_that_address_as_meant():
    utils = pytest.importorskip("huggingface_hub.utils")
    if not hasattr(utils, "parse_hf_uri"):
        pytest.skip("an older huggingface_hub")
    found = utils.parse_hf_uri(address("xlwic.de", "train").files)
    assert (found.id, found.revision) == ("pasinit/xlwic", "refs/convert/parquet")
    assert found.path_in_repo == "xlwic_de_de/train/*.parquet"


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found.disable_progress_bars()
    return found


def test_tables_of_a_repository_give_the_rows_that_are_read(filled, tmp_path, datasets):
    """As ``google-research-datasets/tydiqa``: Parquet files that README.md assigns."""
    plain = list(rows(filled / "data" / "tydiqa" / "train.jsonl"))
    repo = tmp_path / "tydiqa"
    features = datasets.Features(
        {
            "question_text": datasets.Value("string"),
            "document_plaintext": datasets.Value("string"),
            "document_title": datasets.Value("string"),
            "language": datasets.Value("string"),
            # Lists of a field each, as the Hub's viewer shows them.
            "annotations": {"yes_no_answer": datasets.List(datasets.Value("string"))},
        }
    )
    more = [row | {"document_title": "t"} for row in plain]
    table = datasets.Dataset.from_list(more, features=features)
    (repo / "primary_task").mkdir(parents=True)
    table.to_parquet(repo / "primary_task" / "train-00000-of-00001.parquet")
    (repo / "README.md").write_text(
        "---\nconfigs:\n- config_name: primary_task\n  data_files:\n"
        "  - split: train\n    path: primary_task/train-*\n---\n"
    )
    where = replace(address("tydiqa", "train"), repo=str(repo))
    kept = ("language", "question_text", "document_plaintext", "annotations")
    written = b"".join(lines(load(where), kept))
    assert [json.loads(line) for line in written.splitlines()] == plain
    target = tmp_path / "root" / "data" / "tydiqa"
    target.mkdir(parents=True)
    (target / "train.jsonl").write_bytes(written)
    cell = ("answerability-ko", "train", SMALL)
    assert examples(tmp_path / "root", *cell) == examples(filled, *cell)


def test_a_pattern_of_tables_gives_the_rows_that_are_read(filled, tmp_path, datasets):
    """As the branch of ``pasinit/xlwic``: a folder of tables for every split."""
    plain = list(rows(filled / "data" / "xlwic.de" / "test.jsonl"))
    for number, part in enumerate((plain[:3], plain[3:])):
        place = tmp_path / "xlwic_de_de" / "test" / f"{number:04}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(part).to_parquet(place)
    where = replace(
        address("xlwic.de", "test"),
        files=str(tmp_path / "xlwic_de_de" / "test" / "*.parquet"),
    )
    assert [json.loads(line) for line in lines(load(where), None)] == plain


def test_a_host_that_does_not_answer_is_named_once(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching, "host", fetching.Host())
    track = CrosslingualMt5(cache=tmp_path, seed=0, options={})
    with pytest.raises(UsageError) as first:
        track.fetch(tmp_path, "base", lambda *_: None)
    assert str(first.value).startswith("http://127.0.0.1:1 could not be reached: ")
    assert "Nothing was lost" in str(first.value)
    for name in ("base", "squad/train", "tydiqa/train"):
        with pytest.raises(UsageError) as later:
            track.fetch(tmp_path, name, lambda *_: None)
        said = "not tried, for the same reason"
        assert str(later.value) == said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
