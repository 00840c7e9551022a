"""Panels of a board: what is asked of Prometheus, its unit, and from where on it is bad."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as forms
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from k8s.monitoring.rule import RUNBOOK

MESH = 'namespace=~"$namespace"'
"""The label that every query has: the mesh that the board is to show."""

RATE = "$__rate_interval"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${source}")

GOOD, WATCH, BAD = "green", "orange", "red"


class Unit(StrEnum):
    """Grafana's names of units."""

    SECONDS = "s"
    SHARE = "percentunit"
    PERCENT = "percent"
    BYTES = "bytes"
    MEBIBYTES = "mbytes"
    WATTS = "watt"
    COUNT = "short"
    RATIO = "none"
    PER_SECOND = "cps"


@dataclass(frozen=True)
class Query:
    """A question in PromQL, and what each of its answers is called."""

    expr: str
    legend: str = ""

    def built(self, ref_id: str, form: PromQueryFormat = PromQueryFormat.TIME_SERIES) -> prometheus.Dataquery:
        """As Grafana has it."""
        return (
            prometheus.Dataquery()
            .ref_id(ref_id)
            .expr(self.expr)
            .legend_format(self.legend or "__auto")
            .format(form)
            .range()
            .datasource(SOURCE)
        )


@dataclass(frozen=True)
class Limits:
    """From where on a value is to be watched, and bad; drawn in every panel that has them.

    `is_floor`: smaller is worse.
    """

    watch: float
    bad: float
    is_floor: bool = False

    def built(self) -> dashboard.ThresholdsConfig:
        """As Grafana has them: ascending, the colour above each."""
        if self.is_floor:
            steps = [(None, BAD), (self.bad, WATCH), (self.watch, GOOD)]
        else:
            steps = [(None, GOOD), (self.watch, WATCH), (self.bad, BAD)]
        return (
            dashboard.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(value=value, color=color) for value, color in steps])
        )


@dataclass(frozen=True)
class Panel:
    """What all panels have; `width` of 24 columns, `description` is one line for who has never seen it."""

    title: str
    description: str
    unit: Unit
    queries: Sequence[Query]
    width: int
    limits: Limits | None = None
    height: int = 8

    def built(self) -> Builder[models.Panel]:
        """As Grafana has it."""
        raise NotImplementedError

    def ref_ids(self) -> list[tuple[str, Query]]:
        """The queries, A, B, C."""
        return [(chr(ord("A") + index), query) for index, query in enumerate(self.queries)]


@dataclass(frozen=True)
class Number(Panel):
    """One number now, large, coloured by its limits, over a trace of what it was."""

    height: int = 4

    def built(self) -> Builder[models.Panel]:
        """As Grafana has it."""
        panel = (
            stat.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .unit(self.unit)
            .height(self.height)
            .span(self.width)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .graph_mode(forms.BigValueGraphMode.AREA)
            .color_mode(forms.BigValueColorMode.VALUE)
            .no_value("–")
        )
        if self.limits is not None:
            panel = panel.thresholds(self.limits.built())
        for ref_id, query in self.ref_ids():
            panel = panel.with_target(query.built(ref_id))
        return panel


@dataclass(frozen=True)
class Lines(Panel):
    """Values over time; stacked where they add up to something."""

    is_stacked: bool = False
    maximum: float | None = None
    hidden_in_stack: str = field(default="")
    """The name of the line that is drawn over a stack rather than on it: the sum, measured on its own."""

    def built(self) -> Builder[models.Panel]:
        """As Grafana has it."""
        panel = (
            timeseries.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .unit(self.unit)
            .min(0)
            .height(self.height)
            .span(self.width)
            .line_width(1)
            .fill_opacity(60 if self.is_stacked else 5)
            .show_points(forms.VisibilityMode.NEVER)
            .tooltip(common.VizTooltipOptions().mode(forms.TooltipDisplayMode.MULTI).sort(forms.SortOrder.DESCENDING))
            .legend(
                common.VizLegendOptions()
                .display_mode(forms.LegendDisplayMode.LIST)
                .placement(forms.LegendPlacement.BOTTOM)
                .show_legend(True)
            )
        )
        if self.is_stacked:
            panel = panel.stacking(common.StackingConfig().mode(forms.StackingMode.NORMAL).group("A"))
        if self.maximum is not None:
            panel = panel.max(self.maximum)
        if self.hidden_in_stack:
            panel = panel.override_by_name(
                self.hidden_in_stack,
                [
                    models.DynamicConfigValue(id_val="custom.stacking", value={"mode": "none", "group": "A"}),
                    models.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
                    models.DynamicConfigValue(id_val="custom.lineWidth", value=2),
                    models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": "text"}),
                ],
            )
        if self.limits is not None:
            style = common.GraphThresholdsStyleConfig().mode(forms.GraphThresholdsStyleMode.LINE)
            panel = panel.thresholds(self.limits.built()).thresholds_style(style)
        for ref_id, query in self.ref_ids():
            panel = panel.with_target(query.built(ref_id))
        return panel


@dataclass(frozen=True)
class HeatMap(Panel):
    """How many observations a histogram's buckets took, over time: where most are, and how far the rest is off."""

    def built(self) -> Builder[models.Panel]:
        """As Grafana has it."""
        panel = (
            heatmap.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .height(self.height)
            .span(self.width)
            .calculate(False)
            .cell_gap(1)
            .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(32))
            .y_axis(heatmap.YAxisConfig().unit(self.unit))
            .show_color_scale(False)
            .show_y_histogram()
        )
        for ref_id, query in self.ref_ids():
            panel = panel.with_target(query.built(ref_id, PromQueryFormat.HEATMAP))
        return panel


@dataclass(frozen=True)
class Board:
    """A dashboard: rows of panels, read from the top."""

    uid: str
    title: str
    description: str
    rows: Sequence[tuple[str, Sequence[Panel]]]

    @property
    def panels(self) -> list[Panel]:
        """All panels."""
        return [panel for _, panels in self.rows for panel in panels]

    def built(self) -> models.Dashboard:
        """As Grafana has it."""
        board = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(f"{self.description} {RUNBOOK} says what to do.")
            .tags(["chroma-mesh"])
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .link(
                dashboard.DashboardLink("chroma-mesh").type(models.DashboardLinkType.DASHBOARDS).tags(["chroma-mesh"])
            )
            .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
            .with_variable(
                dashboard.QueryVariable("namespace")
                .label("Mesh")
                .datasource(SOURCE)
                .query("label_values(chroma_orchestrator_sessions, namespace)")
                .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
                .include_all(True)
                .multi(True)
                .current(models.VariableOption(text="All", value="$__all"))
            )
            .annotation(
                dashboard.AnnotationQuery()
                .name("Alerts")
                .datasource(SOURCE)
                .enable(True)
                .icon_color("red")
                .expr(f'ALERTS{{alertname=~"Chroma.+", alertstate="firing", severity="critical", {MESH}}}')
            )
        )
        for title, panels in self.rows:
            board = board.with_row(dashboard.Row(title))
            for panel in panels:
                board = board.with_panel(panel.built())
        return board.build()
