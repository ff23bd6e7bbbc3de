"""The page of one model, small or large: how sure it is, whether that is as calibrated, and what it costs."""

from grafana_foundation_sdk.models import dashboard as parts
from grafana_foundation_sdk.models.common import BigValueTextMode

from deploy.grafana.panels import (
    DEFERRED,
    MODEL,
    OWN,
    REPLICA,
    Page,
    Query,
    bars,
    built_in,
    data_source,
    firing_alerts,
    lines,
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
NO_GATE = "no gate"
NO_DRIFT = "too few items, or no calibration data"


def model() -> parts.Dashboard:
    """The dashboard gatekeeper-model."""
    page = Page(
        "gatekeeper-model",
        "Gatekeeper model",
        "One model: its confidences beside the calibration data, its items, batches and build. What only a gate"
        " has stays empty for a large model.",
    )
    _now(page)
    _confidence(page)
    _items(page)
    _batches(page)
    _builds(page)
    return page.build(
        [
            data_source(),
            values_of("model", "Model", "label_values(gatekeeper_build_info, model)"),
            values_of("replica", "Replica", 'label_values(gatekeeper_build_info{model="$model"}, instance)')
            .multi(True)
            .include_all(True)
            .current(parts.VariableOption(text=["All"], value=["$__all"])),
        ],
        [built_in(), policy_changes(), firing_alerts()],
        [other_page("The cascade", "Gate, large model, requests and replicas", "gatekeeper-cascade")],
    )


def _now(page: Page) -> None:
    page.add(
        number(color="green"),
        "Items per second",
        "With and without overrides.",
        "cps",
        [Query(f"sum(rate(gatekeeper_items_total{{{MODEL}}}[{RATE}]))", "items")],
        width=4,
        height=4,
    )
    page.add(
        number(decimals=3),
        "Median confidence",
        "Half of the items of the time range shown were less sure than this.",
        "none",
        [
            Query(
                f"histogram_quantile(0.5, sum by (le) (rate(gatekeeper_confidence_bucket{{{MODEL}}}[$__range]))) >= 0",
                "median",
                now=True,
            )
        ],
        width=4,
        height=4,
    )
    page.add(
        number(steps=[(0.15, "red")], decimals=3).no_value(NO_DRIFT),
        "Confidence drift",
        "The Kolmogorov-Smirnov distance between the confidences of the last 15 minutes and the calibration data,"
        " over all replicas, from 200 items on. A model without calibration data has none.",
        "none",
        [Query('model:gatekeeper_confidence_drift:increase15m{model="$model"}', "drift")],
        width=4,
        height=4,
        alert="ConfidenceDrift",
    )
    page.add(
        number(text=BigValueTextMode.NAME, graph=False),
        "Service version",
        "Of each replica; one, but during a deployment.",
        "none",
        [Query(f"count by (version) (gatekeeper_build_info{{{MODEL}}})", "{{version}}", now=True)],
        width=4,
        height=4,
    )
    page.add(
        number(text=BigValueTextMode.NAME, graph=False),
        "Gate digest",
        "What a threshold belongs to: weights, tokenizer, labels, score and temperature in one number. Two of"
        " them: replicas that decide differently.",
        "none",
        [Query(f"count by (gate_digest) (gatekeeper_build_info{{{MODEL}}})", "{{gate_digest}}", now=True)],
        width=8,
        height=4,
        alert="PolicyVersionsDiffer",
    )


def _confidence(page: Page) -> None:
    page.row("Confidence")
    page.add(
        lines(),
        "Confidence quantiles",
        "Tenths and median of the confidence, and the threshold it is compared with where there is a gate. A"
        " shift without a change of the bundle: the traffic has changed.",
        "none",
        [
            *quantiles("gatekeeper_confidence", MODEL, "le", "", (0.1, 0.25, 0.5, 0.9)),
            Query(f"max(gatekeeper_threshold{{{MODEL}}})", "threshold"),
        ],
        width=12,
    )
    live = f'increase(gatekeeper_confidence_bucket{{{MODEL}, le!="+Inf"}}[$__range])'
    page.add(
        bars("le", ["live", "calibration"]),
        "Confidence, live and calibration",
        "The share of items at or below each bound, over the time range shown, beside the same share of the"
        " calibration data. The largest difference is the drift; what is left of the threshold is the deferral"
        " ratio.",
        "percentunit",
        [
            rows(
                f"sum by (le) ({live}) / on () group_left ()"
                f" (sum(increase(gatekeeper_confidence_count{{{MODEL}}}[$__range])) > 0)",
                "live",
            ),
            rows(f"avg by (le) (gatekeeper_calibration_confidence{{{MODEL}}})", "calibration"),
        ],
        width=12,
        alert="ConfidenceDrift",
    )
    page.add(
        lines().no_value(NO_DRIFT),
        "Drift over time",
        "The Kolmogorov-Smirnov distance to the calibration data, over all replicas, over 15 minutes and from 200"
        " items on. Above 0.15 for half an hour it is an alert.",
        "none",
        [Query('model:gatekeeper_confidence_drift:increase15m{model="$model"}', "drift")],
        width=12,
        alert="ConfidenceDrift",
    )
    by_replica = ratio(f"{OWN}, {DEFERRED}", OWN, RATE, by="instance")
    page.add(
        lines().no_value(NO_GATE),
        "Deferral ratio by replica",
        "(deferred + degraded + failed) / all, over items without an override, and what the calibration data"
        " expect. Replicas behind one balancer see the same traffic: one that stands apart is worth a look.",
        "percentunit",
        [
            Query(f"{by_replica} and on (instance) gatekeeper_threshold{{{MODEL}}}", "{{instance}}"),
            Query(f"avg(gatekeeper_expected_deferral_ratio{{{MODEL}}} >= 0)", "expected"),
        ],
        width=12,
        alert="DeferralRatioOff",
    )


def _items(page: Page) -> None:
    page.row("Items")
    for label, description in (
        ("decision", "A large model accepts whatever it is asked."),
        ("reason", "none: accepted because it was sure, or without a gate."),
        ("override", "threshold and route: the request chose for itself; such items are not in the deferral ratio."),
    ):
        page.add(
            lines(stacked=True),
            f"Items by {label}",
            description,
            "cps",
            [Query(f"sum by ({label}) (rate(gatekeeper_items_total{{{MODEL}}}[{RATE}]))", f"{{{{{label}}}}}")],
            width=8,
        )


def _batches(page: Page) -> None:
    page.row("Batches")
    page.add(
        lines(),
        "Items in a batch",
        "Mean and 95th percentile: the more wait, the more go together.",
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
    page.add(
        lines(),
        "Forward time",
        "One batch through the model, tokenising or decoding included.",
        "s",
        quantiles("gatekeeper_small_seconds", REPLICA, "le", ""),
        width=8,
    )
    page.add(
        lines(right="/^waiting/"),
        "Queue",
        "What a request waited for the model (left), and how many items are waiting (right).",
        "s",
        [
            *quantiles("gatekeeper_queue_seconds", REPLICA, "le", "", (0.5, 0.99)),
            Query(f"sum(gatekeeper_queue_depth{{{REPLICA}}})", "waiting"),
        ],
        width=8,
        alert="QueueSaturated",
    )


def _builds(page: Page) -> None:
    page.row("Builds")
    page.add(
        sheet(
            {
                "instance": "replica",
                "job": "job",
                "version": "service version",
                "gate_digest": "gate digest",
                "Value #B": "API keys current",
            },
            by="instance",
        ),
        "Builds",
        "What runs where. API keys current, 0: the keys file cannot be read, and a key that was removed from it still"
        " gets in.",
        "none",
        [
            rows(f"max by (instance, job, version, gate_digest) (gatekeeper_build_info{{{MODEL}}})", "builds"),
            rows(f"max by (instance) (gatekeeper_api_keys_current{{{REPLICA}}})", "API keys"),
        ],
        width=24,
        height=6,
        alert="PolicyVersionsDiffer",
    )
