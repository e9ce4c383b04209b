"""What Prometheus reads."""

from prometheus_client.parser import text_string_to_metric_families

from experiments.serving import metrics
from tests import served_model


def test_counts_are_those_of_the_scheduler():
    with served_model.served() as stub:
        stub.ask(prompt="the", max_tokens=6)
        content, media_type = metrics.text(stub.scheduler)
        shown = stub.client.get("/metrics")
    assert media_type.startswith("text/plain") and shown.content == content
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }
    assert found["retro_requests_total"] == 1 and found["retro_steps_total"] == 4
    assert found["retro_generated_tokens_total"] == 6
    assert found["retro_active_texts"] == found["retro_waiting_texts"] == 0
