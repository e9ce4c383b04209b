"""The command that renders the Kubernetes manifests for any number of shards."""

from pathlib import Path

import pytest
import yaml

from deploy import render

_COMMITTED = Path(__file__).parents[2] / "deploy" / "kubernetes"


def _texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_committed_manifests_are_those_of_two_shards(tmp_path):
    assert render.main(["--shards=2", f"--out={tmp_path / 'new'}"]) == 0
    assert _texts(tmp_path / "new") == _texts(_COMMITTED)


@pytest.mark.parametrize("num_shards", [1, 3, 11])
def test_every_shard_is_a_set_that_the_router_asks(num_shards):
    rendered = render.manifests(num_shards)
    found = [
        each for text in rendered.values() for each in yaml.safe_load_all(text) if each
    ]
    (settings,) = [each["data"] for each in found if each["kind"] == "ConfigMap"]
    sets = [each for each in found if each["kind"] == "StatefulSet"]
    assert settings["NUM_SHARDS"] == str(num_shards) == str(len(sets))
    asked = [shard.split("|") for shard in settings["SHARDS"].split(",")]
    for shard, (replicas, workload) in enumerate(zip(asked, sets, strict=True)):
        name = f"retro-shard-{shard}"
        assert workload["metadata"]["name"] == name
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        assert {f"--shard={shard}", "--num_shards=$(NUM_SHARDS)"} <= {
            *container["args"]
        }
        assert replicas == [f"{name}-{pod}.{name}:50051" for pod in range(2)]


def test_manifests_of_more_shards_are_not_left_beside(tmp_path, capsys):
    assert render.main(["--shards=3", f"--out={tmp_path}"]) == 0
    before = _texts(tmp_path)
    assert render.main(["--shards=2", f"--out={tmp_path}"]) == 2
    assert "shard-2.yaml is none of 2 shards: remove it" in capsys.readouterr().err
    assert _texts(tmp_path) == before
    assert render.main(["--shards=0", f"--out={tmp_path}"]) == 2
    assert "shards must be at least 1, is 0" in capsys.readouterr().err
