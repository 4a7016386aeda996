"""``mtk check``."""

from __future__ import annotations

GOOD = """
import mtk

def merge(*, experts):
    return sum(experts) / len(experts)

@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(
        name="good", target=merge, summary="Mean", paper="unpublished", idempotent=True
    )
"""


def test_a_good_method(mtk, toy):
    (toy / "good_one.py").write_text(GOOD)
    outcome = mtk("check", "./good_one.py")
    assert outcome.code == 0, outcome.out
    lines = outcome.out.splitlines()
    assert lines[0] == "good_one:good file"
    assert lines[-1].split(":")[0] == f"{len(lines) - 2} checks"
    assert "not applicable" in outcome.out
    quiet = mtk("check", "./good_one.py", "-q").out.splitlines()
    assert quiet == [lines[0], lines[-1]]


def test_a_bad_method(mtk, toy):
    bad = GOOD.replace("return sum", "return -sum").replace("good", "bad")
    (toy / "bad_one.py").write_text(bad)
    outcome = mtk("check", "./bad_one.py", "-q")
    assert outcome.code == 1
    assert "  failed " in outcome.out
    assert "invariants.idempotent" in outcome.out
    assert "  passed " not in outcome.out


def test_json(mtk, toy):
    (toy / "told.py").write_text(GOOD.replace("good", "told"))
    method = mtk("check", "./told.py", "--json").json["methods"][0]
    assert method["ok"] is True
    assert method["method"] == "told:told"
    assert sum(method["counts"].values()) == len(method["results"])
    assert set(method["results"][0]) == {"id", "outcome", "message", "reason"}
