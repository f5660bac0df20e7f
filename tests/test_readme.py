import re
from pathlib import Path

_README = Path(__file__).parents[1] / "README.md"


def _code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", _README.read_text(), re.DOTALL)


def test_the_quickstart_runs_and_its_model_learns(capsys):
    names: dict[str, object] = {}

    for block in _code_blocks():
        exec(compile(block, "README.md", "exec"), names)

    loss = float(re.search(r"loss in step 50: ([\d.]+)", capsys.readouterr().out)[1])
    assert loss < 1.5
    assert names["logits"].shape == (32, 10)


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", _README.read_text())

    assert links
    assert [link for link in links if not (_README.parent / link).exists()] == []


def test_every_path_in_the_map_of_the_code_is_there():
    the_map = _README.read_text().partition("## What is where")[2]
    paths = re.findall(r"`([\w/.]+(?:/|\.py))`", the_map)

    assert "bn_jax/core/" in paths
    assert [path for path in paths if not (_README.parent / path).exists()] == []
