"""Recipes in TOML: what is read, what is refused, and that writing loses nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mtk import recipe_toml
from mtk.errors import UsageError
from mtk.recipes import Choice, Gradient, Recipe, Rule, Slab, Source

if TYPE_CHECKING:
    from pathlib import Path

FULL = """
method = "ties"
base = "base"
experts = [
  { path = "a", weight = 0.5 },
  { path = "first", weight = { gradient = [0.0, 1.0] }, rename = { "x." = "" } },
]
only = ["*.weight", "norm*"]
dtype = "bfloat16"
donor = "base"
tokenizer = "union"
vocabulary = "union"
shard_size = "2.5MB"

[params]
density = { choice = { "*attn*" = { gradient = [0.2, 0.4] }, "*" = 0.3 } }

[[rule]]
match = "*attn*"
params.scale = 0.5

[[rule]]
match = ["*norm*", "lm_head*"]
method = "linear"

[[stage]]
name = "first"
method = "linear"
experts = ["b", { path = "c", adapter = "lora" }]
dtype = "float32"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "a", "b", "c", "lora"):
        (tmp_path / name).mkdir()
    return tmp_path


def read(folder: Path, text: str) -> Recipe:
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return recipe_toml.read(folder / "recipe.toml")


def bare(value):
    """A recipe without the places that messages name."""
    if isinstance(value, Recipe):
        return replace(
            value,
            where="",
            base=value.base and bare(value.base),
            experts=tuple(map(bare, value.experts)),
            rules=tuple(replace(rule, where="") for rule in value.rules),
            slabs=tuple(map(bare, value.slabs)),
            stages=tuple(map(bare, value.stages)),
        )
    if isinstance(value, Slab):
        sources = tuple((bare(s), start, end) for s, start, end in value.sources)
        return replace(
            value, where="", sources=sources, base=value.base and bare(value.base)
        )
    return replace(value, where="")


def test_everything_is_read(folder: Path) -> None:
    found = bare(read(folder, FULL))
    assert found == Recipe(
        method="ties",
        base=Source(path=str(folder / "base")),
        experts=(
            Source(path=str(folder / "a")),
            Source(path="first", rename={"x.": ""}),
        ),
        params={
            "weights": [0.5, Gradient((0.0, 1.0))],
            "density": Choice((("*attn*", Gradient((0.2, 0.4))), ("*", 0.3))),
        },
        rules=(
            Rule(match=("*attn*",), params={"scale": 0.5}),
            Rule(match=("*norm*", "lm_head*"), method="linear"),
        ),
        only=("*.weight", "norm*"),
        stages=(
            Recipe(
                name="first",
                method="linear",
                experts=(
                    Source(path=str(folder / "b")),
                    Source(path=str(folder / "c"), adapter=str(folder / "lora")),
                ),
                dtype="float32",
            ),
        ),
        dtype="bfloat16",
        donor="base",
        tokenizer="union",
        vocabulary="union",
        shard_size=2_500_000,
    )


def test_stacks_are_read(folder: Path) -> None:
    found = read(
        folder,
        """
        method = "linear"
        [[stack]]
        layers = [0, 2]
        experts = [{ path = "a", weight = 1 }, { path = "b", layers = [2, 4], weight = 3 }]
        params.normalize = false
        [[stack]]
        method = "task_arithmetic"
        experts = [{ path = "c", layers = [1, 3] }]
        base = { path = "base", layers = [0, 2] }
        """,
    )
    one, two = (bare(slab) for slab in found.slabs)
    assert one == Slab(
        sources=(
            (Source(path=str(folder / "a")), 0, 2),
            (Source(path=str(folder / "b")), 2, 4),
        ),
        params={"weights": [1, 3], "normalize": False},
    )
    assert two == Slab(
        sources=((Source(path=str(folder / "c")), 1, 3),),
        method="task_arithmetic",
        base=Source(path=str(folder / "base")),
        base_range=(0, 2),
    )


def test_names_that_are_nowhere_stay_as_they_are(folder: Path) -> None:
    found = read(folder, 'method = "x"\nexperts = ["org/model", "/abs/model", "a"]')
    paths = [source.path for source in found.experts]
    assert paths == ["org/model", "/abs/model", str(folder / "a")]


def test_a_stage_goes_before_a_folder_of_its_name(folder: Path) -> None:
    text = 'method = "x"\nexperts = ["a", "b"]\n'
    found = read(
        folder, text + '[[stage]]\nname = "a"\nmethod = "x"\nexperts = ["c"]\n'
    )
    assert [source.path for source in found.experts] == ["a", str(folder / "b")]


STACK = 'method = "x"\n[[stack]]\n'
PLAIN = 'method = "x"\nexperts = ["a", "b"]\n'
STAGED = 'method = "x"\nexperts = ["s"]\n'
STAGE = '[[stage]]\nname = "s"\nmethod = "x"\nexperts = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method =", "not a TOML recipe"),
        ('experts = ["a"]', "method is missing"),
        ('method = 3\nexperts = ["a"]', "method"),
        ('metod = "x"\nmethod = "x"', "did you mean 'method'"),
        ('method = "x"', "experts or [[stack]]"),
        ('method = "x"\nexperts = []', "experts or [[stack]]"),
        (f'{PLAIN}[[stack]]\nexperts = ["a"]\nlayers = [0, 1]', "experts or [[stack]]"),
        ('method = "x"\nexperts = "a"', "list of models"),
        ('method = "x"\nexperts = [3]', "expert 0: a model is a path"),
        ('method = "x"\nexperts = [""]', "expert 0: a model is a path"),
        ('method = "x"\nexperts = [{ weight = 1 }]', "give path a text"),
        (
            'method = "x"\nexperts = [{ path = "a", wieght = 1 }]',
            "unknown key 'wieght'",
        ),
        (
            'method = "x"\nexperts = ["a", { path = "b", weight = 1 }]',
            "to every expert",
        ),
        ('method = "x"\nexperts = [{ path = "a", rename = "b" }]', "rename is a table"),
        (
            'method = "x"\nexperts = [{ path = "a", adapter = 1 }]',
            "give adapter a text",
        ),
        (f"{PLAIN}name = 3", "name"),
        (f"{PLAIN}dtype = 3", "dtype"),
        (f"{PLAIN}only = []", "only: write one pattern"),
        (f"{PLAIN}only = [1]", "only: write one pattern"),
        (f"{PLAIN}params = 3", "params is a table"),
        (f"{PLAIN}rule = 3", "write [[rule]] tables"),
        (f"{PLAIN}[[rule]]\nparams.x = 1", "rule 1: match"),
        (f'{PLAIN}[[rule]]\nmatch = "*"', "a method, or params"),
        (f'{PLAIN}[[rule]]\nmatch = "*"\nmethod = 3', "rule 1: give method a text"),
        (f'{PLAIN}[[rule]]\nmatch = "*"\nparam.x = 3', "did you mean 'params'"),
        (f"{PLAIN}params.x = {{ gradient = [] }}", "list of numbers"),
        (f"{PLAIN}params.x = {{ gradient = [1, true] }}", "list of numbers"),
        (f'{PLAIN}params.x = {{ gradient = "1" }}', "list of numbers"),
        (f"{PLAIN}params.x = {{ gradients = [1] }}", "x: write a value"),
        (f"{PLAIN}params.x = {{ choice = [] }}", "list of [PATTERN, VALUE]"),
        (f'{PLAIN}params.x = {{ choice = [["*"]] }}', "list of [PATTERN, VALUE]"),
        (f"{PLAIN}params.x = {{ choice = 3 }}", "list of [PATTERN, VALUE]"),
        (f"{PLAIN}params.x = {{ gradient = [1], choice = {{}} }}", "x: write a value"),
        (f"{PLAIN}shard_size = 0", "number of bytes"),
        (f"{PLAIN}shard_size = -5", "number of bytes"),
        (f"{PLAIN}shard_size = true", "number of bytes"),
        (f'{PLAIN}shard_size = "5 XB"', "number of bytes"),
        (f'{PLAIN}shard_size = "0GB"', "number of bytes"),
        (f"{STACK}layers = [0, 1]", "experts is a list"),
        (f'{STACK}experts = ["a"]', "layers is [first, end]"),
        (f'{STACK}experts = ["a"]\nlayers = [1, 1]', "layers is [first, end]"),
        (f'{STACK}experts = ["a"]\nlayers = [-1, 1]', "layers is [first, end]"),
        (f'{STACK}experts = ["a"]\nlayers = [0, true]', "layers is [first, end]"),
        (f'{STACK}experts = [{{ path = "a", layers = [] }}]', "layers is [first, end]"),
        (
            (
                f'{STACK}experts = [{{ path = "a", weight = 1 }}]\nlayers = [0, 1]\n'
                "params.weights = [1]"
            ),
            "beside the experts and in params",
        ),
        (
            'method = "x"\nexperts = [{ path = "a", weight = 1 }]\nparams.weights = [1]',
            "beside the experts and in params",
        ),
        (f"{PLAIN}{STAGE}", "nothing is made from the stage 's'"),
        (f'{PLAIN}[[stage]]\nmethod = "x"\nexperts = ["a"]', "stage 1: give name"),
        (f"{STAGED}{STAGE}{STAGE}", "two stages are called 's'"),
        (f"{STAGED}{STAGE}shard_size = 3", "'shard_size'"),
        (f"{STAGED}{STAGE}[[stage.stage]]\n", "'stage'"),
        (
            (
                'method = "x"\nexperts = ["t"]\n[[stage]]\nname = "t"\nmethod = "x"\n'
                f'experts = ["s"]\n{STAGE}'
            ),
            "'s' is not made yet",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    folder: Path, text: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(folder, text)
    assert words in str(caught.value)
    assert str(folder / "recipe.toml") in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_files_that_are_no_recipes(folder: Path) -> None:
    file = folder / "recipe.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a TOML recipe"):
        recipe_toml.read(file)
    file.write_text("#" * (recipe_toml.MOST_BYTES + 1))
    with pytest.raises(UsageError, match="no recipe is"):
        recipe_toml.read(file)
    with pytest.raises(UsageError, match="not a TOML recipe"):
        recipe_toml.read(folder / "gone.toml")
    file.write_text(f"x = {'[' * 5000}{']' * 5000}")
    with pytest.raises(UsageError, match="not a TOML recipe"):
        recipe_toml.read(file)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("10kB", 10_000), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert recipe_toml.parse_size(text, "here") == size


RECIPES = [
    Recipe(method="average", experts=(Source(path="a"), Source(path="b"))),
    Recipe(
        method="ties",
        name="a name",
        experts=(Source(path="a", adapter="l", rename={"x.": "", "y.": "z."}),),
        base=Source(path="base", rename={'a"b': "é"}),
        # The order of cases counts: a plain value stands after a gradient here, and
        # the second pattern stands twice.
        params={
            "a": Choice((("*b*", Gradient((0.5, 1))), ("*c*", 1.0), ("*c*", 3))),
            "b": [Gradient((0.0, 1.0)), Choice((("*", True),)), 0.5],
            "c": Choice((("x*", Choice((("*y", "word"), ("*", "w")))), ("*", "v"))),
            "d": ["one", "two"],
            "e": False,
            "f": 1e-30,
            "g": Gradient((1, 2, 3)),
        },
        rules=(
            Rule(match=("*.weight", "b.[0-9]*"), params={"x": Gradient((1.0,))}),
            Rule(match=("'\"\\",), method="linear"),
        ),
        only=("a*",),
        dtype="float16",
        donor="d",
        tokenizer="t",
        vocabulary="base",
        shard_size=17,
    ),
    Recipe(
        method="x",
        base=Source(path="base"),
        slabs=(
            Slab(sources=((Source(path="a"), 0, 2), (Source(path="b"), 1, 3))),
            Slab(
                sources=((Source(path="a", adapter="l", rename={"m": "n"}), 4, 5),),
                params={"weights": [1.0]},
                method="linear",
                base=Source(path="other"),
                base_range=(3, 4),
            ),
        ),
        stages=(
            Recipe(method="y", name="a", experts=(Source(path="e"),), only=("b*",)),
            Recipe(
                method="y", name="b", experts=(Source(path="a"),), base=Source(path="c")
            ),
        ),
    ),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=["least", "rules", "stacks"])
def test_what_is_written_is_read_again(tmp_path: Path, recipe: Recipe) -> None:
    assert bare(read(tmp_path, recipe_toml.dump(recipe))) == recipe


def test_what_is_read_is_written_again(folder: Path) -> None:
    first = read(folder, FULL)
    again = read(folder, recipe_toml.dump(first))
    assert bare(again) == bare(first)


def test_a_base_with_a_range_of_its_own_is_written_with_the_shared_path(
    tmp_path: Path,
) -> None:
    slab = Slab(sources=((Source(path="a"), 0, 2),), base_range=(1, 3))
    recipe = Recipe(method="x", base=Source(path="base"), slabs=(slab,))
    (found,) = read(tmp_path, recipe_toml.dump(recipe)).slabs
    assert found.base is not None
    assert (found.base.path, found.base_range) == ("base", (1, 3))
