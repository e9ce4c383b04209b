"""The Kubernetes manifests are what Kubernetes, the servers and one another expect."""

import configparser
import copy
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from data_pipeline.service import router, shard_server

_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "deploy" / "kubernetes"
_OBJECTS = [
    found
    for path in sorted(_FOLDER.glob("*.yaml"))
    for found in yaml.safe_load_all(path.read_text())
]


def _name(found: dict) -> str:
    return f"{found['kind']}-{found['metadata']['name']}"


_BY_NAME = {_name(found): found for found in _OBJECTS}
_SETTINGS = _BY_NAME["ConfigMap-retro-retrieval"]["data"]
_WORKLOADS = [f for f in _OBJECTS if f["kind"] in ("StatefulSet", "Deployment")]
_NUM_SHARDS = int(_SETTINGS["NUM_SHARDS"])


def _pod(workload: dict) -> dict:
    return workload["spec"]["template"]


@pytest.mark.parametrize("found", _OBJECTS, ids=_name)
def test_kubernetes_accepts_it(found):
    for version in ("1.27", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(found, version, strict=True)
    wrong = copy.deepcopy(found)
    wrong["metadata"]["nmae"] = "a"
    with pytest.raises(kubernetes_validate.ValidationError, match="nmae"):
        kubernetes_validate.validate(wrong, "1.27", strict=True)


def test_the_image_is_that_of_the_dockerfile():
    setup = configparser.ConfigParser()
    setup.read(_ROOT / "setup.cfg")
    tag = f"retro-jax:{setup['metadata']['version']}"
    containers = [c for w in _WORKLOADS for c in _pod(w)["spec"]["containers"]]
    assert {container["image"] for container in containers} == {tag}
    text = (_ROOT / "deploy" / "Dockerfile").read_text()
    assert f"docker build -f deploy/Dockerfile -t {tag} ." in text
    lines = text.splitlines()
    copied = {
        name
        for line in lines
        if line.startswith("COPY ")
        for name in shlex.split(line)[1:-1]
    }
    for name in copied:
        assert (_ROOT / name).exists(), name
    modules = {container["command"][2].split(".")[0] for container in containers}
    assert modules <= copied
    users = {_pod(w)["spec"]["securityContext"]["runAsUser"] for w in _WORKLOADS}
    assert {f"USER {user}" for user in users} <= set(lines)


def test_names_are_there_once():
    assert len(_BY_NAME) == len(_OBJECTS)
    kinds = [f["kind"] for f in _OBJECTS]
    assert kinds.count("StatefulSet") == _NUM_SHARDS
    assert kinds.count("Deployment") == 1
    assert (
        kinds.count("PodDisruptionBudget")
        == kinds.count("Service")
        == (_NUM_SHARDS + 1)
    )


@pytest.mark.parametrize("workload", _WORKLOADS, ids=_name)
def test_selectors_probes_and_volumes_fit(workload):
    name, pod = workload["metadata"]["name"], _pod(workload)
    labels = pod["metadata"]["labels"]
    service = _BY_NAME[f"Service-{name}"]
    budget = _BY_NAME[f"PodDisruptionBudget-{name}"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["maxUnavailable"] < workload["spec"]["replicas"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    # A router that lacks its shards is not ready, which a restart would not mend.
    services = {"startupProbe": "live", "readinessProbe": None, "livenessProbe": "live"}
    for probe, asked in services.items():
        assert container[probe]["grpc"]["port"] == ports["grpc"]
        assert container[probe]["grpc"].get("service") == asked
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == "grpc"
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for resources in container["resources"].values():
        assert resources.keys() == {"cpu", "memory"}
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])


@pytest.mark.parametrize("workload", _WORKLOADS, ids=_name)
def test_the_commands_take_their_flags(workload):
    (container,) = _pod(workload)["spec"]["containers"]
    module = shard_server if workload["kind"] == "StatefulSet" else router
    assert container["command"] == ["python", "-m", module.__spec__.name]
    flags = container["args"]
    for key, value in _SETTINGS.items():
        flags = [flag.replace(f"$({key})", value) for flag in flags]
    args = module._parser().parse_args(flags)
    assert args.port == container["startupProbe"]["grpc"]["port"]
    grace_s = _pod(workload)["spec"]["terminationGracePeriodSeconds"]
    assert args.pause_s + args.drain_s < grace_s
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert str(args.database) in mounts
    assert str(args.token_file.parent) in mounts
    if module is shard_server:
        assert args.num_shards == _NUM_SHARDS
        assert workload["metadata"]["name"] == f"retro-shard-{args.shard}"


def test_the_router_asks_every_pod_of_every_shard():
    expected = []
    for shard in range(_NUM_SHARDS):
        workload = _BY_NAME[f"StatefulSet-retro-shard-{shard}"]
        name, service = workload["metadata"]["name"], workload["spec"]["serviceName"]
        headless = _BY_NAME[f"Service-{service}"]["spec"]
        assert headless["clusterIP"] == "None"
        (port,) = headless["ports"]
        expected.append(
            [
                f"{name}-{replica}.{service}:{port['port']}"
                for replica in range(workload["spec"]["replicas"])
            ]
        )
    assert [s.split("|") for s in _SETTINGS["SHARDS"].split(",")] == expected


def _secret_at(workload: dict, folder: Path) -> dict:
    """The secret that a workload's only container finds in a folder."""
    spec = _pod(workload)["spec"]
    (container,) = spec["containers"]
    (name,) = [
        m["name"] for m in container["volumeMounts"] if m["mountPath"] == str(folder)
    ]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == name]
    return volume["secret"]


def test_routers_and_shards_have_tokens_of_their_own():
    router_pod = _BY_NAME["Deployment-retro-router"]
    clients = _secret_at(router_pod, Path("/token"))
    shards = _secret_at(router_pod, Path("/shards-token"))
    assert clients["secretName"] != shards["secretName"]
    for workload in _WORKLOADS:
        if workload["kind"] == "StatefulSet":
            assert _secret_at(workload, Path("/token")) == shards
    for secret in (clients, shards):
        assert secret["defaultMode"] & 0o007 == 0  # nobody else may read it
    assert "in the clear" in (_FOLDER / "router.yaml").read_text()


@pytest.mark.parametrize("workload", _WORKLOADS, ids=_name)
def test_pods_are_restricted(workload):
    """As the Pod Security Standards' level "restricted" wants, and a little more."""
    spec = _pod(workload)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "fsGroup": 65534,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    allowed = {"persistentVolumeClaim", "secret", "name"}
    assert {key for volume in spec["volumes"] for key in volume} <= allowed


def test_shards_are_asked_by_routers_alone():
    policies = {
        found["metadata"]["name"]: found["spec"]
        for found in _OBJECTS
        if found["kind"] == "NetworkPolicy"
    }
    for workload in _WORKLOADS:
        labels = _pod(workload)["metadata"]["labels"]
        policy = policies[labels["app"]]
        assert policy["podSelector"]["matchLabels"] == {"app": labels["app"]}
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        (container,) = _pod(workload)["spec"]["containers"]
        ports = {port["containerPort"] for port in container["ports"]}
        opened = {p["port"] for rule in policy["ingress"] for p in rule["ports"]}
        assert opened == ports
    asking, _ = policies["retro-shard"]["ingress"]
    (who,) = asking["from"]
    assert who == {"podSelector": {"matchLabels": {"app": "retro-router"}}}
    assert policies["retro-shard"]["egress"] == []
    out = policies["retro-router"]["egress"][0]
    assert out["ports"] == asking["ports"]
