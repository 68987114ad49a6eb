"""Recipes: the forms that mergekit's users write, settings by depth, refusals by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from metanet.errors import MetanetError
from metanet.tasks.merge.recipe import Recipe, Rule, evaluate, of_models
from metanet.tasks.merge.recipe_file import parse, read_recipe

SLERP = """
slices:
  - sources:
      - model: psmathur/orca_mini_v3_13b
        layer_range: [0, 40]
      - model: garage-bAInd/Platypus2-13B
        layer_range: [0, 40]
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # all the rest
dtype: float16
"""
TIES = """
models:
  - model: org/one
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: org/two
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: org/three
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""
LINEAR = """
models:
  - model: org/one
    parameters: {weight: 1.0}
  - model: org/two
    parameters: {weight: 0.3}
merge_method: linear
dtype: float16
tokenizer_source: union
"""
STACK = """
slices:
  - sources: [{model: org/one, layer_range: [0, 24]}]
  - sources: [{model: org/two, layer_range: [8, 32]}]
merge_method: passthrough
dtype: bfloat16
"""
MODULES = """
modules:
  vision:
    models: [{model: a/a, parameters: {weight: 1}}, {model: b/b, parameters: {weight: 2}}]
  default:
    models: [{model: a/a, parameters: {weight: 1}}]
merge_method: linear
out_dtype: float32
align: {arch: mlp, seed: 3, load: {b/b: file.safetensors}}
"""
DARE = """
merge_method: dare_ties
base_model: org/base
random_seed: 4
models:
  - model: org/base
  - model: org/one
    parameters: {density: 0.53, weight: 0.4}
tokenizer: {source: base}
"""
FORMS = {"slerp": SLERP, "ties": TIES, "linear": LINEAR, "stack": STACK, "modules": MODULES,
         "dare": DARE}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_forms_are_read_and_written_back(text: str) -> None:
    recipe = parse(text)
    assert parse(recipe.to_yaml()) == recipe


def test_fields() -> None:
    recipe = parse(TIES)
    assert (recipe.method, recipe.base, recipe.dtype) == ("ties", "org/base", "float16")
    assert recipe.models == ("org/base", "org/one", "org/two", "org/three")
    parts = recipe.modules[""][0].parts
    assert parts[2].parameters["weight"] == (Rule("mlp", 0.5), Rule(None, 0))
    assert recipe.parameters == {"normalize": True}
    assert parse(STACK).slices[1].parts[0].layers == (8, 32)
    assert parse(LINEAR).tokenizer_source == "union"
    assert parse(DARE).tokenizer_source == "base"
    assert parse(DARE).seed == 4
    assert set(parse(MODULES).modules) == {"vision", ""}
    assert parse(MODULES).align.load == {"b/b": "file.safetensors"}


def test_settings_along_the_depth() -> None:
    assert evaluate(0.3, "x", 0.7) == 0.3
    assert evaluate((0, 1), "x", 0.25) == 0.25
    assert evaluate((0, 0.5, 0.3, 0.7, 1), "x", 0.5) == 0.3
    assert evaluate((0, 0.5, 0.3, 0.7, 1), "x", 1.0) == 1
    assert evaluate((0, 1, 0), "x", 0.875) == pytest.approx(0.25)
    rules = (Rule("attn", (0, 1)), Rule("mlp", 2))
    assert evaluate(rules, "layers.0.attn.q", 0.5) == 0.5
    assert evaluate(rules, "layers.0.mlp.up", 0.5) == 2
    assert evaluate(rules, "norm", 0.5) is None
    assert evaluate((*rules, Rule("*", 7)), "norm", 0.5) == 7


@pytest.mark.parametrize(("text", "told"), [
    ("merge_method: linear\nmodls: []\n", "line 2: unknown key 'modls'.*'models'"),
    ("merge_method: ties\nmodels:\n  - model: a\n    parameters:\n      wieght: 1\n",
     "line 5: unknown key 'wieght'.*'weight'"),
    ("merge_method: della\nmodels: [{model: a}]\n", "line 1: no method 'della'; there are"),
    ("merge_method: linear\nmodels: [{model: a}]\ndtype: int8\n", "line 3: dtype 'int8'"),
    ("merge_method: linear\nmodels: [{model: a}]\nchat_template: auto\n",
     "line 3: key 'chat_template' .* not supported"),
    ("merge_method: linear\nmodels: [{model: a}]\nmodels: []\n", "line 3: .*'models' occurs twice"),
    ("merge_method: linear\nmodels: [{model: a}]\nslices: []\n", "exactly one of"),
    ("models: [{model: a}]\n", "'merge_method' is missing"),
    ("merge_method: linear\nmodels: []\n", "line 2: models must be a list that is not empty"),
    ("merge_method: linear\nmodels:\n- {model: org/a+org/lora}\n", "line 3: .*adapter"),
    ("merge_method: linear\nmodels:\n- parameters: {weight: 1}\n", "line 3: .*'model' is missing"),
    ("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: much}}\n",
     "line 3: weight must be a number, not 'much'"),
    ("merge_method: ties\nmodels: [{model: a}]\nparameters:\n  density: [0.5, 1.5]\n",
     "line 4: parameter 'density' must be a float from 0 to 1, not 1.5"),
    ("merge_method: linear\nslices:\n- sources: [{model: a, layer_range: [4, 2]}]\n",
     "line 3: layer_range must be"),
    ("merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n"
     "  - {model: b, layer_range: [0, 3]}\n", "line 3: the sources .* different numbers"),
    ("merge_method: linear\nmodels: [{model: a}]\nalign: {seed: 1}\n", "line 3: align needs"),
    ("merge_method: [linear\n", "is not YAML"),
    ("merge_method: !!python/object:os.system x\nmodels: [{model: a}]\n", "line 1: no method"),
    ("just words", "line 1: the recipe must be a map"),
])
def test_refusals_name_key_and_line(text: str, told: str) -> None:
    with pytest.raises(MetanetError, match=told):
        parse(text)


def test_anchors_cannot_explode() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(MetanetError, match="unknown key 'a0'"):
        parse("\n".join(lines))
    rule = "&r [{value: 1}, {value: 1}, {value: 1}, {value: 1}, {value: 1}, {value: 1}]"
    models = ", ".join("{model: a, parameters: {weight: *r}}" for _ in range(4000))
    with pytest.raises(MetanetError, match="too many parts"):
        parse(f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: {rule}}}}}, "
              f"{models}]")


def test_files_and_mappings(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(LINEAR, encoding="utf-8")
    recipe = read_recipe(tmp_path / "r.yml")
    assert read_recipe(recipe.to_json()) == recipe
    with pytest.raises(MetanetError, match="cannot be read"):
        read_recipe(tmp_path / "absent.yml")
    (tmp_path / "bad.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MetanetError, match="cannot be read"):
        read_recipe(tmp_path / "bad.yml")
    with pytest.raises(MetanetError, match="not plain data"):
        read_recipe({"merge_method": object()})


def test_recipes_of_lists() -> None:
    assert [p.parameters for p in of_models(["a", "b"], "linear", [1, 2]).slices[0].parts] == [
        {"weight": 1}, {"weight": 2}]
    for bad, told in (({"weights": [1]}, "1 weights for 2"),
                      ({"parameters": {"x": 1}}, "no parameter 'x'")):
        with pytest.raises(MetanetError, match=told):
            of_models(["a", "b"], "linear", **bad)
    with pytest.raises(MetanetError, match="takes no weights"):
        of_models(["a", "b"], "slerp", [1, 2])
    with pytest.raises(MetanetError, match="no models"):
        of_models([], "linear")


def test_digest_follows_recipe_and_models() -> None:
    def digest(recipe: Recipe, *files: str) -> str:
        return recipe.digest(dict.fromkeys(recipe.models, files))

    one = of_models(["a", "b"], "linear")
    assert digest(one, "x") == digest(of_models(["a", "b"], "linear", [1, 1]), "x")
    assert digest(one, "x") != digest(one, "y")
    assert digest(one, "x") != digest(of_models(["a", "b"], "linear", [1, 2]), "x")
