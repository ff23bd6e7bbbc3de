"""The first page: is the cascade doing what its policy promises, and if not, which part is it.

One file because it is one page: its panels stand here in the order of the screen.
"""

from grafana_foundation_sdk.models import dashboard as parts
from grafana_foundation_sdk.models.common import BigValueTextMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.panels import (
    DEFERRED,
    MODEL,
    OWN,
    REPLICA,
    Page,
    Query,
    built_in,
    data_source,
    firing_alerts,
    heat,
    lines,
    model_page,
    number,
    other_page,
    policy_changes,
    quantiles,
    ratio,
    rows,
    sheet,
    values_of,
)

RATE = "$__rate_interval"
ANSWERED = 'route!~"/metrics|/livez|/readyz"'


def overview() -> parts.Dashboard:
    """The dashboard gatekeeper-cascade."""
    page = Page(
        "gatekeeper-cascade",
        "Gatekeeper cascade",
        "Who answers, why, how fast: an edge's gate, its small model and the large model behind it.",
    )
    _now(page)
    _gate(page)
    _savings(page)
    _large_model(page)
    _requests(page)
    _queue(page)
    _replicas(page)
    return page.build(
        [
            data_source(),
            values_of("model", "Model", "label_values(gatekeeper_threshold, model)"),
            values_of("replica", "Replica", 'label_values(gatekeeper_threshold{model="$model"}, instance)')
            .multi(True)
            .include_all(True)
            .current(parts.VariableOption(text=["All"], value=["$__all"])),
        ],
        [built_in(), policy_changes(), firing_alerts()],
        [other_page("One model", "Confidences, drift, batches and builds; of large models too", "gatekeeper-model")],
    )


def _now(page: Page) -> None:
    page.add(
        number(text=BigValueTextMode.VALUE_AND_NAME, decimals=1).data_links([model_page()]),
        "Deferral ratio",
        "(deferred + degraded + failed) / all over the time range shown, over items without an override, beside"
        " what the calibration data expect of the threshold in force.",
        "percentunit",
        [
            Query(ratio(f"{OWN}, {DEFERRED}", OWN, "$__range"), "{{model}}", now=True),
            Query(f"avg by (model) (gatekeeper_expected_deferral_ratio{{{MODEL}}} >= 0)", "expected", now=True),
        ],
        width=5,
        height=4,
        alert="DeferralRatioOff",
    )
    page.add(
        number(color="green"),
        "Items per second",
        "Answered or failed, with and without overrides.",
        "cps",
        [Query(f"sum(rate(gatekeeper_items_total{{{MODEL}}}[{RATE}]))", "items")],
        width=3,
        height=4,
    )
    page.add(
        number(),
        "p99 of classify",
        "99 of 100 classify requests are answered within this time, the large model's part included.",
        "s",
        quantiles("gatekeeper_request_seconds", f'{REPLICA}, route="/v1/classify"', "le", "", (0.99,)),
        width=3,
        height=4,
        alert="LatencyBudgetBurnsFast",
    )
    page.add(
        number(decimals=4),
        "Threshold",
        "The threshold of the policy in force; the highest, while replicas differ.",
        "none",
        [Query(f"max(gatekeeper_threshold{{{MODEL}}})", "threshold")],
        width=3,
        height=4,
    )
    page.add(
        number(graph=False),
        "Replicas up",
        "Edges of this model that answered the last scrape.",
        "none",
        [Query(f"count(gatekeeper_build_info{{{MODEL}}})", "replicas")],
        width=2,
        height=4,
        alert="TargetDown",
    )
    page.add(
        number(names={"0": ("closed", "green"), "1": ("open", "red")}, graph=False),
        "Breaker",
        "Open: some replica is not asking the large model after failures in a row; what the gate defers is"
        " degraded at once.",
        "none",
        [Query(f"max(gatekeeper_remote_breaker_open{{{REPLICA}}})", "breaker")],
        width=2,
        height=4,
        alert="BreakerOpen",
    )
    page.add(
        number(names={"0": ("down", "red"), "1": ("up", "green")}, graph=False),
        "Policy store",
        "Down: some replica does not reach its policy store. It goes on with the last policy it knew; changes are"
        " refused.",
        "none",
        [Query(f"min(gatekeeper_policy_store_up{{{REPLICA}}})", "store")],
        width=2,
        height=4,
        alert="PolicyStoreDown",
    )
    page.add(
        number(steps=[(1, "red")], graph=False).no_value("none"),
        "Firing alerts",
        "Of the rules in deploy/prometheus/rules, for all models; the table at the end of this page has them one"
        " by one. Prometheus has no series for alerts while none fires.",
        "none",
        [Query('count(ALERTS{alertstate="firing", service="gatekeeper"})', "alerts", now=True)],
        width=4,
        height=4,
    )


def _gate(page: Page) -> None:
    page.row("Gate")
    page.add(
        lines().data_links([model_page()]),
        "Deferral ratio over time",
        "Observed: (deferred + degraded + failed) / all, over items without an override. Expected: what the"
        " calibration data say for this threshold; a lasting gap means that the traffic is not what the model was"
        " calibrated on. The third line is each replica's last 1,000 items, averaged.",
        "percentunit",
        [
            Query(ratio(f"{OWN}, {DEFERRED}", OWN, RATE), "observed"),
            Query(f"avg by (model) (gatekeeper_expected_deferral_ratio{{{MODEL}}} >= 0)", "expected"),
            Query(f"avg by (model) (gatekeeper_deferral_ratio{{{MODEL}}} >= 0)", "last 1,000 items"),
        ],
        width=12,
        alert="DeferralRatioOff",
    )
    page.add(
        lines(right="/^version/", right_unit="none"),
        "Threshold and policy version",
        "Each replica's policy: the threshold on the left, its version on the right. Changes are marked on every"
        " panel. Lines that stay apart: a replica that does not hear of changes.",
        "none",
        [
            Query(f"gatekeeper_threshold{{{MODEL}}}", "threshold {{instance}}"),
            Query(f"gatekeeper_policy_version{{{MODEL}}}", "version {{instance}}"),
        ],
        width=12,
        alert="PolicyVersionsDiffer",
    )
    page.add(
        lines(stacked=True),
        "Items by decision",
        "accepted: the small model answered. deferred: the large model answered. degraded: the gate deferred and"
        " the small model answered, because the large one could not. failed: the gate deferred and nobody"
        " answered.",
        "cps",
        [Query(f"sum by (decision) (rate(gatekeeper_items_total{{{MODEL}}}[{RATE}]))", "{{decision}}")],
        width=12,
        alert="FailedItems",
    )
    page.add(
        lines(),
        "Items by reason",
        "Why an item was not simply accepted. below_threshold is the gate at work; forced and deferral_off are"
        " someone's wish; the rest is trouble with the large model.",
        "cps",
        [Query(f'sum by (reason) (rate(gatekeeper_items_total{{{MODEL}, reason!="none"}}[{RATE}]))', "{{reason}}")],
        width=12,
    )
    page.add(
        heat(),
        "Confidence",
        "How many items had which confidence; a row is named after its upper bound. Items below the threshold are"
        " deferred.",
        "short",
        [
            Query(
                f"sum by (le) (increase(gatekeeper_confidence_bucket{{{MODEL}}}[{RATE}]))",
                "{{le}}",
                form=PromQueryFormat.HEATMAP,
            )
        ],
        width=12,
    )
    page.add(
        lines().no_value("too few items").data_links([model_page()]),
        "Confidence drift",
        "The Kolmogorov-Smirnov distance between the confidences of the last 15 minutes and the calibration data,"
        " over all replicas, from 200 items on. Above 0.15 for half an hour it is an alert.",
        "none",
        [Query('model:gatekeeper_confidence_drift:increase15m{model="$model"}', "{{model}}")],
        width=6,
        alert="ConfidenceDrift",
    )
    page.add(
        lines(),
        "Degraded and failed share",
        "Of the items without an override, over 5 minutes and all replicas. Degraded: the small model's answer"
        " stood in. Failed: nobody answered. Both are 0 while the large model is well.",
        "percentunit",
        [
            Query('model:gatekeeper_degraded_share:rate5m{model="$model"}', "degraded"),
            Query('model:gatekeeper_failed_share:rate5m{model="$model"}', "failed"),
        ],
        width=6,
        alert="DegradedShareHigh",
    )


def _savings(page: Page) -> None:
    accepted = f'{OWN}, decision="accepted"'
    page.row("What the cascade saves")
    page.add(
        number(color="green", graph=False, decimals=1),
        "Calls saved, share",
        "Of the items without an override in the time range shown, those that the small model answered without"
        " deferring: the large model did not have to be asked.",
        "percentunit",
        [Query(ratio(accepted, OWN, "$__range"), "saved", now=True)],
        width=6,
        height=4,
    )
    page.add(
        number(color="green"),
        "Calls saved, items per second",
        "Items without an override that the small model answers without deferring.",
        "cps",
        [Query(f"sum(rate(gatekeeper_items_total{{{accepted}}}[{RATE}]))", "saved")],
        width=6,
        height=4,
    )
    page.add(
        number(color="green", graph=False, decimals=0),
        "Calls saved, items",
        "Items without an override in the time range shown that the small model answered without deferring."
        " Prometheus extrapolates to the edges of the range, so it is not always a whole number.",
        "short",
        [Query(f"sum(increase(gatekeeper_items_total{{{accepted}}}[$__range]))", "saved", now=True)],
        width=6,
        height=4,
    )
    page.add(
        number(decimals=1),
        "Expected joint accuracy",
        "What the calibration data expect of the cascade at the threshold in force. It holds for traffic like"
        " theirs: see the drift. Nothing without calibration data of both models.",
        "percentunit",
        [Query(f"avg(gatekeeper_expected_joint_accuracy{{{MODEL}}} >= 0)", "joint accuracy")],
        width=6,
        height=4,
        alert="ConfidenceDrift",
    )


def _large_model(page: Page) -> None:
    page.row("Large model")
    page.add(
        lines(stacked=True),
        "Calls by outcome",
        "Calls to the large model per second; items that were deferred together travel in one. While the breaker"
        " is open there are none but a probe.",
        "cps",
        [Query(f"sum by (outcome) (rate(gatekeeper_remote_requests_total{{{REPLICA}}}[{RATE}]))", "{{outcome}}")],
        width=8,
    )
    page.add(
        lines(),
        "Latency of calls",
        "As the edge sees it, by outcome: network, retry and waiting for a connection included.",
        "s",
        quantiles("gatekeeper_remote_seconds", REPLICA, "le, outcome", "{{outcome}}"),
        width=8,
    )
    page.add(
        lines().max(1),
        "Breakers",
        "1: not asked. `all` is a replica's way to the large model as a whole: open when the breaker of every"
        " configured URL is; the others are those URLs.",
        "none",
        [
            Query(f"gatekeeper_remote_breaker_open{{{REPLICA}}}", "all, {{instance}}"),
            Query(f"gatekeeper_remote_endpoint_breaker_open{{{REPLICA}}}", "{{endpoint}}, {{instance}}"),
        ],
        width=4,
        alert="BreakerOpen",
    )
    page.add(
        lines().max(1),
        "Deferrals degrade",
        "1: of a replica's last deferred requests nearly all were degraded or failed, whatever the reason;"
        ' "Items by reason" names it.',
        "none",
        [Query(f"gatekeeper_deferrals_degrading{{{REPLICA}}}", "{{instance}}")],
        width=4,
        alert="DeferralsDegrade",
    )
    page.add(
        lines(stacked=True),
        "Tokens of an LLM",
        "Per second, as the LLM counts them, answers that are no label included. 0 where the large model is none.",
        "none",
        [Query(f"sum by (kind) (rate(gatekeeper_remote_tokens_total{{{REPLICA}}}[{RATE}]))", "{{kind}}")],
        width=12,
        height=6,
    )
    page.add(
        lines(),
        "Cost of an LLM",
        "Per hour, at the prices of GATEKEEPER_REMOTE_PRICE_PROMPT and _COMPLETION, in their currency.",
        "none",
        [Query(f"sum(rate(gatekeeper_remote_cost_total{{{REPLICA}}}[{RATE}])) * 3600", "cost an hour")],
        width=12,
        height=6,
    )


def _requests(page: Page) -> None:
    page.row("Requests")
    page.add(
        lines(),
        "Latency by route",
        "Whole requests as the service sees them; health checks and scrapes left out.",
        "s",
        quantiles("gatekeeper_request_seconds", f"{REPLICA}, {ANSWERED}", "le, route", "{{route}}"),
        width=12,
    )
    page.add(
        lines(),
        "Outside the latency objective",
        "Classify requests that took longer than 0.256 s or were answered 5xx, of those answered 2xx or 5xx, over"
        " all replicas. The objective allows 1 %; above 14.4 % for an hour, or 6 % for six, it is an alert.",
        "percentunit",
        [
            Query(f'1 - model:gatekeeper_classify_good_ratio:rate{window}{{model="$model"}}', window)
            for window in ("5m", "1h", "6h")
        ],
        width=12,
        alert="LatencyBudgetBurnsFast",
    )
    page.add(
        lines(stacked=True),
        "Requests by status",
        "All requests but health checks and scrapes.",
        "reqps",
        [
            Query(
                f"sum by (status) (rate(gatekeeper_request_seconds_count{{{REPLICA}, {ANSWERED}}}[{RATE}]))",
                "{{status}}",
            )
        ],
        width=12,
    )
    page.add(
        lines(stacked=True),
        "Refused requests by reason",
        "Requests turned away, by kind of problem; the kind is the end of `type` in the answer. overloaded: the"
        " queue was too long.",
        "reqps",
        [Query(f"sum by (reason) (rate(gatekeeper_rejected_total{{{REPLICA}}}[{RATE}]))", "{{reason}}")],
        width=12,
        alert="RequestsRefused",
    )


def _queue(page: Page) -> None:
    page.row("Queue and batches of the small model")
    page.add(
        lines(),
        "Queue",
        "Items that wait for the small model, by replica, and how many may. A queue that stays: the model is"
        " slower than its traffic.",
        "short",
        [
            Query(f"gatekeeper_queue_depth{{{REPLICA}}}", "waiting, {{instance}}"),
            Query(f"min(gatekeeper_queue_capacity{{{REPLICA}}})", "capacity"),
        ],
        width=8,
        alert="QueueSaturated",
    )
    page.add(
        lines(),
        "Time in the queue",
        "What a request waited for the small model.",
        "s",
        quantiles("gatekeeper_queue_seconds", REPLICA, "le", ""),
        width=8,
        alert="RequestsRefused",
    )
    page.add(
        lines(),
        "Items in a batch",
        "The more wait, the more go together.",
        "short",
        [
            Query(
                f"sum(rate(gatekeeper_batch_size_sum{{{REPLICA}}}[{RATE}]))"
                f" / (sum(rate(gatekeeper_batch_size_count{{{REPLICA}}}[{RATE}])) > 0)",
                "mean",
            ),
            *quantiles("gatekeeper_batch_size", REPLICA, "le", "", (0.95,)),
        ],
        width=8,
    )


def _replicas(page: Page) -> None:
    page.row("Replicas and alerts")
    page.add(
        sheet(
            {
                "instance": "replica",
                "Value #B": "policy version",
                "Value #C": "threshold",
                "Value #D": "policy store up",
                "Value #E": "breaker open",
                "Value #F": "API keys current",
                "version": "service version",
                "gate_digest": "gate digest",
            },
            by="instance",
        ),
        "Replicas",
        "What each replica has in force. A policy belongs to one gate digest: replicas of different digests, or"
        " of different policy versions, decide the same item differently. API keys current, 0: the keys file cannot"
        " be read, and a key that was removed from it still gets in.",
        "none",
        [
            rows(f"max by (instance, version, gate_digest) (gatekeeper_build_info{{{MODEL}}})", "build"),
            rows(f"max by (instance) (gatekeeper_policy_version{{{MODEL}}})", "policy version"),
            rows(f"max by (instance) (gatekeeper_threshold{{{MODEL}}})", "threshold"),
            rows(f"max by (instance) (gatekeeper_policy_store_up{{{REPLICA}}})", "policy store"),
            rows(f"max by (instance) (gatekeeper_remote_breaker_open{{{REPLICA}}})", "breaker"),
            rows(f"max by (instance) (gatekeeper_api_keys_current{{{REPLICA}}})", "API keys"),
        ],
        width=14,
        alert="PolicyVersionsDiffer",
    )
    page.add(
        sheet({"alertname": "alert", "severity": "severity", "model": "model", "instance": "replica", "job": "job"}),
        "Alerts that fire",
        "Now, for all models. Each has a heading of its name in docs/operations.md. Empty while none fires.",
        "none",
        [rows('ALERTS{alertstate="firing", service="gatekeeper"}', "alerts")],
        width=10,
    )
