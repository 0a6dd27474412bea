"""The Helm chart of deploy/helm: rendered by Helm's own engine, checked against schemas.

Those of Kubernetes, and of Prometheus Operator, whose types are made of its custom resource definitions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import helm_python as helm
import kubernetes_validate as kubernetes  # pyright: ignore[reportMissingTypeStubs]
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator
from pydantic import ValidationError

from tensorbus.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/tensorbus"
VERSIONS = ("1.31", "1.34")
"""Of Kubernetes: the oldest that the chart is for, and a newer one."""
CUSTOM = {"ServiceMonitor": operator.ServiceMonitor, "PrometheusRule": operator.PrometheusRule}
"""Kinds of Prometheus Operator, which Kubernetes itself has no schema of."""

SECRETS: dict[str, Any] = {"tokens": {"secret": "secrets"}, "tls": {"secret": "secrets"}}
JOB: dict[str, Any] = {"aggregator": {"enabled": True, "job": "sft"}}
OBSERVED: dict[str, Any] = {"observe": {"serviceMonitor": True, "rules": True, "dashboard": True}}
CASES: dict[str, dict[str, Any]] = {
    "least": SECRETS,
    "all": {**SECRETS, **JOB, **OBSERVED},
    "anybody": {"anybody": True, **JOB, "networkPolicy": {"enabled": False}},
    "placed": {
        **SECRETS,
        "images": {"tag": "1.2.3", "pullSecrets": ["registry"]},
        "broker": {
            "args": ["--max-message=8192", "--audit-log=/data/audit.log"],
            "storage": {"size": "2Ti", "className": "fast"},
            "nodeSelector": {"disk": "nvme"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        },
        "aggregator": {"enabled": True, "job": "sft", "quorum": 2, "args": ["--reducer=median"]},
    },
}


def rendered(values: dict[str, Any], release: str = "demo") -> list[dict[str, Any]]:
    """The documents that an installation with ``values`` sends to Kubernetes."""
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files: dict[str, str] = chart.render(values, name=release, namespace="prod")
    texts = (text for name, text in files.items() if name.endswith(".yaml"))
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[dict[str, Any]], kind: str, part: str = "") -> dict[str, Any]:
    """The one document of this kind whose name holds ``part``."""
    (found,) = [one for one in documents if one["kind"] == kind and part in one["metadata"]["name"]]
    return found


def pods(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The templates of pods."""
    for document in documents:
        if document["kind"] in {"StatefulSet", "Job"}:
            yield document["spec"]["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a template, those that run first included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def test_helm_finds_nothing_to_complain_about() -> None:
    """Nothing worse than that a chart may have an icon."""
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_kubernetes_knows_every_field(values: dict[str, Any], version: str) -> None:
    """Strictly: a field that the schema does not have is an error, as one that is of a wrong type."""
    documents = [document for document in rendered(values) if document["kind"] not in CUSTOM]
    assert {"Service", "StatefulSet"} <= {document["kind"] for document in documents}
    for document in documents:
        kubernetes.validate(document, version, strict=True)


def test_a_misspelt_field_is_found() -> None:
    """The proof that the schemas bite."""
    broker = of_kind(rendered(SECRETS), "StatefulSet")
    broker["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes.ValidationError, match="livenesProbe"):
        kubernetes.validate(broker, VERSIONS[0], strict=True)


@pytest.mark.parametrize("kind", CUSTOM)
@pytest.mark.parametrize("secrets", [SECRETS, {"anybody": True}], ids=["secure", "anybody"])
def test_prometheus_operator_knows_every_field(kind: str, secrets: dict[str, Any]) -> None:
    """Read by the types of its definitions and written again they are the same, with nothing left out."""
    document = of_kind(rendered({**secrets, **OBSERVED}), kind)
    assert as_read(document) == document


def as_read(document: dict[str, Any]) -> dict[str, Any]:
    """What Prometheus Operator sees of it, without what it does not know. Raises ValidationError."""
    return CUSTOM[document["kind"]].model_validate(document).model_dump(by_alias=True, exclude_unset=True)


def test_a_field_that_the_operator_does_not_know_is_found() -> None:
    """The proof that these bite, too: a name that is wrong is lost, a value that is wrong is refused."""
    monitor = of_kind(rendered({**SECRETS, **OBSERVED}), "ServiceMonitor")
    endpoint = monitor["spec"]["endpoints"][0]
    endpoint["tlsConfig"]["server_name"] = "broker"
    assert as_read(monitor) != monitor
    endpoint["interval"] = "15 seconds"
    with pytest.raises(ValidationError, match="interval"):
        as_read(monitor)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_pods_have_no_rights_and_know_their_limits(values: dict[str, Any]) -> None:
    """No root, nothing to write to but volumes, no capability, no token of the cluster, a limit of memory."""
    for pod in pods(rendered(values)):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claimed = {"data"} | {volume["name"] for volume in pod["spec"]["volumes"]}
            assert mounted <= claimed


def test_labels_lead_to_the_pods() -> None:
    """Service, network policies and monitor select the broker's pod, or the aggregator's, and no other."""
    documents = rendered(CASES["all"])
    broker, aggregator = (
        of_kind(documents, kind)["spec"]["template"]["metadata"]["labels"] for kind in ("StatefulSet", "Job")
    )
    assert broker["app.kubernetes.io/component"] != aggregator["app.kubernetes.io/component"]
    selectors = [
        of_kind(documents, "Service")["spec"]["selector"],
        of_kind(documents, "NetworkPolicy", "broker")["spec"]["podSelector"]["matchLabels"],
        of_kind(documents, "ServiceMonitor")["spec"]["selector"]["matchLabels"],
        of_kind(documents, "NetworkPolicy", "aggregator")["spec"]["egress"][0]["to"][0]["podSelector"][
            "matchLabels"
        ],
    ]
    for selector in selectors:
        assert selector.items() <= broker.items() and not selector.items() <= aggregator.items()
    peers = of_kind(documents, "NetworkPolicy", "broker")["spec"]["ingress"][0]["from"]
    assert peers[0]["podSelector"]["matchLabels"].items() <= aggregator.items()
    assert peers[1] == {"podSelector": {"matchLabels": {"tensorbus.io/client": "true"}}}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_flags_and_variables_are_those_of_the_commands(values: dict[str, Any]) -> None:
    """Each flag that a container gets is an option of its command, and so is each variable."""
    for pod in pods(rendered(values)):
        (container,) = pod["spec"]["containers"]
        arguments: list[str] = container["args"]
        if container["name"] == "broker":
            name, *arguments = arguments
        else:
            name = "aggregate"  # the entry point of the image says so
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        flags = {flag for option in command.params for flag in option.opts}
        variables = {option.envvar for option in command.params if isinstance(option, click.Option)}
        assert {argument.partition("=")[0] for argument in arguments} <= flags
        assert {variable["name"] for variable in container.get("env", [])} <= variables


def test_the_secret_is_what_the_script_makes(tmp_path: Path) -> None:
    """Every key that the chart asks for is a file of deploy/make-secrets.sh."""
    subprocess.run(
        ["sh", ROOT / "deploy/make-secrets.sh", tmp_path, "sft", "demo-tensorbus-broker"],
        env={**os.environ, "TENSORBUS": f"{sys.executable} -m tensorbus"},
        check=True,
    )
    there = {file.name for file in tmp_path.iterdir()}
    documents = rendered(CASES["all"])
    asked = {
        item["key"]
        for pod in pods(documents)
        for volume in pod["spec"]["volumes"]
        for item in volume.get("secret", {}).get("items", [])
    }
    asked.add(
        of_kind(documents, "ServiceMonitor")["spec"]["endpoints"][0]["authorization"]["credentials"]["key"]
    )
    assert asked == {
        "tokens.json",
        "server.pem",
        "server.key",
        "ca.pem",
        "aggregator.token",
        "prometheus.token",
    }
    assert asked <= there


def test_sites_answer_on_topics_of_their_own_unless_they_trust_each_other() -> None:
    """As the tokens of deploy/make-secrets.sh want it; a value says otherwise."""
    trusting = {**SECRETS, "aggregator": {"enabled": True, "job": "sft", "ownTopics": False}}
    for values, wanted in (({**SECRETS, **JOB}, True), (trusting, False)):
        (container,) = of_kind(rendered(values), "Job")["spec"]["template"]["spec"]["containers"]
        assert ("--own-topics" in container["args"]) is wanted


def test_rules_and_dashboard_are_those_of_the_compose_file() -> None:
    """The chart carries the very alert rules and dashboard that are tested elsewhere."""
    documents = rendered(CASES["all"])
    observe = ROOT / "deploy/observe"
    assert of_kind(documents, "PrometheusRule")["spec"] == yaml.safe_load(
        (observe / "alerts.yml").read_text()
    )
    board = json.loads(of_kind(documents, "ConfigMap")["data"]["tensorbus.json"])
    assert board == json.loads((observe / "grafana/dashboards/tensorbus.json").read_text())


def test_what_is_changed_makes_a_job_of_another_name() -> None:
    """A Job cannot be changed in place; the same values give the same name."""
    first = of_kind(rendered({**SECRETS, **JOB}), "Job")["metadata"]["name"]
    again = of_kind(rendered({**SECRETS, **JOB}), "Job")["metadata"]["name"]
    more = {**SECRETS, "aggregator": {"enabled": True, "job": "sft", "rounds": 6}}
    assert first == again != of_kind(rendered(more), "Job")["metadata"]["name"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "tokens.secret is empty"),
        ({**SECRETS, "aggregator": {"enabled": True}}, "aggregator.job"),
        ({**SECRETS, "brocker": {}}, "brocker"),
        ({**SECRETS, "broker": {"port": 80}}, "port"),
        ({**SECRETS, "aggregator": {"enabled": True, "job": "a b"}}, "job"),
    ],
)
def test_wrong_values_are_refused_with_words(values: dict[str, Any], words: str) -> None:
    """What is missing, misspelt or out of bounds is named."""
    with pytest.raises(helm.HelmError, match=words):
        rendered(values)
