"""How every panel of the dashboards looks: one function for each kind, and the page that they are laid out on.

write.py writes the dashboards; overview.py and model.py say what is on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import barchart, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as parts
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

SCHEMA_VERSION = 42  # the last of the classic model; the SDK's own default is one behind
DATASOURCE = parts.DataSourceRef(type_val="prometheus", uid="${datasource}")
# docs/operations.md, which compose mounts among Grafana's public files.
RUNBOOK = "/public/operations.md"
NOTHING = "-"  # where there is no data

REPLICA = 'instance=~"$replica"'
MODEL = f'model="$model", {REPLICA}'
OWN = f'{MODEL}, override="none"'
DEFERRED = 'decision=~"deferred|degraded|failed"'


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the name of what it gives. `now`: asked for the end of the time range alone."""

    expr: str
    legend: str
    now: bool = False
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES

    def build(self, ref_id: str) -> prometheus.Dataquery:
        built = (
            prometheus.Dataquery()
            .datasource(DATASOURCE)
            .editor_mode(QueryEditorMode.CODE)
            .expr(self.expr)
            .legend_format(self.legend)
            .format(self.form)
            .ref_id(ref_id)
        )
        return built.instant() if self.now else built.range()


def rows(expr: str, name: str) -> Query:
    """One row for each series, now."""
    return Query(expr, name, now=True, form=PromQueryFormat.TABLE)


def quantiles(
    metric: str, labels: str, by: str, legend: str, shares: Sequence[float] = (0.5, 0.95, 0.99)
) -> list[Query]:
    """p50, p95, p99 of a histogram. `>= 0` leaves out the NaN of no traffic."""
    return [
        Query(
            f"histogram_quantile({share:g}, sum by ({by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval]))) >= 0",
            f"p{share * 100:g} {legend}".strip(),
        )
        for share in shares
    ]


def ratio(above: str, below: str, window: str, by: str = "model") -> str:
    """The share of `below` that is `above`, two label matchers of gatekeeper_items_total."""
    return (
        f"sum by ({by}) (rate(gatekeeper_items_total{{{above}}}[{window}]))"
        f" / sum by ({by}) (rate(gatekeeper_items_total{{{below}}}[{window}]))"
    )


@dataclass
class Page:
    """A dashboard, filled from left to right and from top to bottom."""

    uid: str
    title: str
    description: str
    _panels: list[Any] = field(default_factory=list)

    def row(self, title: str) -> None:
        self._panels.append(dashboard.Row(title))

    def add(
        self,
        panel: Any,
        title: str,
        description: str,
        unit: str,
        queries: Sequence[Query],
        *,
        width: int,
        height: int = 8,
        alert: str | None = None,
    ) -> None:
        """`width` and `height` on the grid of 24 columns; `alert`: the heading of the runbook to link to."""
        panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(width).height(height)
        for position, query in enumerate(queries):
            panel.with_target(query.build(chr(ord("A") + position)))
        if alert is not None:
            url = f"{RUNBOOK}#{alert.lower()}"
            panel.links([dashboard.DashboardLink(f"Runbook: {alert}").url(url).target_blank(True)])
        self._panels.append(panel)

    def build(
        self, variables: Sequence[Any], annotations: Sequence[Any], links: Sequence[dashboard.DashboardLink]
    ) -> parts.Dashboard:
        """The dashboard, its panels numbered in the order of reading."""
        page = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags(["gatekeeper"])
            .tooltip(parts.DashboardCursorSync.CROSSHAIR)
            .refresh("5s")
            .time("now-15m", "now")
            .timezone("browser")
            .version(1)
            .variables(list(variables))
            .annotations(list(annotations))
            .links(list(links))
        )
        for number, panel in enumerate(self._panels, 1):
            panel.id(number)
            (page.with_row if isinstance(panel, dashboard.Row) else page.with_panel)(panel)
        built = page.build()
        built.schema_version = SCHEMA_VERSION
        return built


# The kinds of panels


def number(
    *,
    color: str = "blue",
    steps: Sequence[tuple[float, str]] = (),
    names: dict[str, tuple[str, str]] | None = None,
    text: shapes.BigValueTextMode = shapes.BigValueTextMode.VALUE,
    graph: bool = True,
    decimals: int | None = None,
) -> stat.Panel:
    """The latest value. `steps`: from where on it has which colour; `names`: what a value is called, and its colour."""
    panel = (
        stat.Panel()
        .no_value(NOTHING)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .color_mode(shapes.BigValueColorMode.BACKGROUND if steps or names else shapes.BigValueColorMode.VALUE)
        .graph_mode(shapes.BigValueGraphMode.AREA if graph else shapes.BigValueGraphMode.NONE)
        .text_mode(text)
        .justify_mode(shapes.BigValueJustifyMode.AUTO)
        .orientation(shapes.VizOrientation.AUTO)
        .wide_layout(True)
    )
    if names:
        results = {value: parts.ValueMappingResult(text=word, color=shade) for value, (word, shade) in names.items()}
        panel.mappings([parts.ValueMap(options=results)])
    if decimals is not None:
        panel.decimals(decimals)
    limits = [parts.Threshold(None, "green" if steps else color), *(parts.Threshold(*step) for step in steps)]
    panel.thresholds(dashboard.ThresholdsConfig().mode(parts.ThresholdsMode.ABSOLUTE).steps(limits))
    return panel.color_scheme(dashboard.FieldColor().mode(parts.FieldColorModeId.THRESHOLDS))


def lines(*, stacked: bool = False, right: str | None = None, right_unit: str = "short") -> timeseries.Panel:
    """Values over time. `right`: a pattern of names that belong to the right axis."""
    panel = (
        timeseries.Panel()
        .no_value(NOTHING)
        .legend(
            common.VizLegendOptions()
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
        .draw_style(shapes.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(shapes.VisibilityMode.NEVER)
        .span_nulls(False)
        .color_scheme(dashboard.FieldColor().mode(parts.FieldColorModeId.PALETTE_CLASSIC))
        .min(0)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
    if right is not None:
        panel.override_by_regexp(
            right,
            [
                parts.DynamicConfigValue("custom.axisPlacement", "right"),
                parts.DynamicConfigValue("unit", right_unit),
                parts.DynamicConfigValue("custom.fillOpacity", 0),
            ],
        )
    return panel


def heat() -> heatmap.Panel:
    """A histogram over time: how many items fell into each bucket."""
    return (
        heatmap.Panel()
        .no_value(NOTHING)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .fill("dark-orange")
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .cell_values(heatmap.CellValues().unit("short").decimals(0))
        .y_axis(heatmap.YAxisConfig().axis_placement(shapes.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(shapes.HeatmapCellLayout.AUTO))
        .mode(shapes.TooltipDisplayMode.SINGLE)
        .show_legend()
    )


def bars(by: str, names: Sequence[str]) -> barchart.Panel:
    """One group of bars for each value of a label that is a number, one bar for each query, without a time axis."""
    values = {f"Value #{chr(ord('A') + position)}": name for position, name in enumerate(names)}
    panel = (
        barchart.Panel()
        .no_value(NOTHING)
        .x_field(by)
        .group_width(0.8)
        .bar_width(0.95)
        .fill_opacity(70)
        .full_highlight(True)
        .min(0)
    )
    panel.show_value(shapes.VisibilityMode.NEVER).orientation(shapes.VizOrientation.VERTICAL)
    panel.stacking(shapes.StackingMode.NONE).x_tick_label_spacing(50)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.NONE))
    panel.color_scheme(dashboard.FieldColor().mode(parts.FieldColorModeId.PALETTE_CLASSIC))
    # As a number to be sorted, as a string to be an axis.
    for transformation in (
        _joined(by),
        parts.DataTransformerConfig("filterFieldsByName", options={"include": {"names": [by, *values]}}),
        _converted(by, "number"),
        parts.DataTransformerConfig("sortBy", options={"fields": {}, "sort": [{"field": by, "desc": False}]}),
        _converted(by, "string"),
        _arranged(values, {}),
    ):
        panel.with_transformation(transformation)
    return panel


def sheet(columns: dict[str, str], *, by: str | None = None) -> table.Panel:
    """A table. `columns`: the field of an answer, in order, and its heading; `by`: the label that joins the answers."""
    panel = table.Panel().no_value(NOTHING).show_header(True).cell_height(shapes.TableCellHeight.SM)
    if by is not None:
        panel.with_transformation(_joined(by))
    panel.with_transformation(
        parts.DataTransformerConfig("filterFieldsByName", options={"include": {"names": list(columns)}})
    )
    return panel.with_transformation(_arranged(columns, {name: place for place, name in enumerate(columns)}))


def _joined(by: str) -> parts.DataTransformerConfig:
    return parts.DataTransformerConfig("joinByField", options={"byField": by, "mode": "outer"})


def _converted(name: str, kind: str) -> parts.DataTransformerConfig:
    conversions = [{"targetField": name, "destinationType": kind}]
    return parts.DataTransformerConfig("convertFieldType", options={"fields": {}, "conversions": conversions})


def _arranged(names: dict[str, str], order: dict[str, int]) -> parts.DataTransformerConfig:
    options = {"excludeByName": {}, "indexByName": order, "renameByName": names}
    return parts.DataTransformerConfig("organize", options=options)


# Variables, annotations, links


def model_page() -> dashboard.DashboardLink:
    """From a value on the overview to the page of its model, with the time range and the replicas."""
    variables = "${datasource:queryparam}&var-model=${__field.labels.model}&${replica:queryparam}"
    return dashboard.DashboardLink("This model").url(f"/d/gatekeeper-model?${{__url_time_range}}&{variables}")


def other_page(title: str, tooltip: str, uid: str) -> dashboard.DashboardLink:
    """At the top of a page: to the other one, with variables and time range."""
    link = dashboard.DashboardLink(title).type(parts.DashboardLinkType.LINK).icon("dashboard").tooltip(tooltip)
    return link.url(f"/d/{uid}").include_vars(True).keep_time(True)


def data_source() -> dashboard.DatasourceVariable:
    """Which Prometheus; compose's by default."""
    return (
        dashboard.DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .current(parts.VariableOption(text="Prometheus", value="gatekeeper-prometheus"))
    )


def values_of(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A variable whose values come from Prometheus, asked again when the time range changes."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .refresh(parts.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(parts.VariableSort.ALPHABETICAL_ASC)
    )


class Annotation(parts.AnnotationQuery):
    """Marks on every panel where a query is above 0. The SDK does not know the fields of Prometheus' annotations."""

    def __init__(self, name: str, color: str, expr: str, title: str, tags: str) -> None:
        super().__init__(name=name, datasource=DATASOURCE, enable=True, hide=False, icon_color=color, expr=expr)
        self._own = {"titleFormat": title, "textFormat": "", "tagKeys": tags, "step": "10s", "useValueForTime": False}

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self._own

    def build(self) -> parts.AnnotationQuery:
        """As a builder of the SDK."""
        return self


def built_in() -> dashboard.AnnotationQuery:
    """Grafana's own; it would add it."""
    return (
        dashboard.AnnotationQuery()
        .name("Annotations & Alerts")
        .datasource(parts.DataSourceRef(type_val="grafana", uid="-- Grafana --"))
        .enable(True)
        .hide(True)
        .icon_color("rgba(0, 211, 255, 1)")
        .type("dashboard")
        .built_in(1)
    )


def policy_changes() -> Annotation:
    """A replica has taken on another version: which, and its threshold. A restart is not one.

    A minute, because Grafana's own intervals are unreliable in annotations: longer than the step over all 7 days kept.
    """
    changed = f"changes(gatekeeper_policy_version{{{MODEL}}}[1m]) > 0"
    return Annotation(
        "Policy changes",
        "blue",
        "max by (model, version, threshold) ("
        f'count_values by (model, instance) ("threshold", gatekeeper_threshold{{{MODEL}}})'
        " * on (model, instance) group_left (version) "
        f'count_values by (model, instance) ("version", gatekeeper_policy_version{{{MODEL}}} and {changed})'
        ")",
        "policy {{version}}: threshold {{threshold}}",
        "model",
    )


def firing_alerts() -> Annotation:
    """While an alert of deploy/prometheus/rules fires."""
    return Annotation(
        "Firing alerts",
        "red",
        'ALERTS{alertstate="firing", service="gatekeeper"}',
        "{{alertname}}",
        "severity",
    )
