"""The command ``python -m scripts.wandb_workspace ENTITY/PROJECT``: a workspace and a report in a W&B project.

Each line is a W&B group, which is a cell: the mean over its seeds, in a band of one standard deviation. Each call makes
both anew.
"""

import json
import sys
from argparse import ArgumentParser
from importlib.util import find_spec
from typing import Any

# Columns of a row, a panel each.
SECTIONS = {
    "Curves by cell": ("eval/accuracy", "eval/loss", "train/loss"),
    "Fairness": ("clients/accuracy_mean", "clients/accuracy_p10", "clients/accuracy_worst", "clients/accuracy_std"),
    "Communication": ("comm/bytes_up", "comm/bytes_down", "comm/bytes_up_total", "comm/bytes_down_total"),
    "System": ("time/round_s", "clients/failed", "local/lr", "update/norm", "update/cosine"),
}

FIGURES = ["final/partition", "final/clients", "final/confusion"]


def build(entity: str, project: str) -> Any:
    """Return the workspace (a :class:`wandb_workspaces.workspaces.Workspace`), of which W&B knows nothing yet."""
    from wandb_workspaces import expr, workspaces
    from wandb_workspaces.reports.v2.interface import MediaBrowser

    sections: dict[str, list[Any]] = {
        name: [_panel(column) for column in columns] for name, columns in SECTIONS.items()
    }
    both = "${comm/bytes_up_total} + ${comm/bytes_down_total}"
    cost = _panel("eval/accuracy", x="comm/bytes_up_total", xaxis_expression=both, title_x="bytes up and down")
    sections["Communication"].insert(0, cost)
    sections["Final models"] = [MediaBrowser(media_keys=FIGURES)]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="Federated ablations",
        sections=[workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        # By default ten lines are drawn, which are fewer than the cells of many a grid.
        settings=workspaces.WorkspaceSettings(x_axis="round", max_runs=50),
        runset_settings=workspaces.RunsetSettings(groupby=[expr.Metric("Group")]),
    )


def build_report(entity: str, project: str) -> Any:
    """Return the report (a :class:`wandb_workspaces.reports.v2.Report`): the sections' panels, and the final models."""
    from wandb_workspaces.reports import v2

    def grid(panels: list[Any]) -> Any:
        return v2.PanelGrid(runsets=[v2.Runset(groupby=["Group"])], panels=panels)  # of the report's own project

    blocks: list[Any] = [v2.TableOfContents()]
    for name, columns in SECTIONS.items():
        blocks += [v2.H1(name), grid([_panel(column) for column in columns])]
    best = v2.BarPlot(title="Test accuracy of the best round on validation data", metrics=["best/eval/accuracy"])
    final = v2.MediaBrowser(title="Final models", media_keys=FIGURES)
    blocks += [v2.H1("Results"), grid([best, final])]
    return v2.Report(entity=entity, project=project, title="Federated ablations", blocks=blocks)


def _panel(column: str, x: str = "round", **options: Any) -> Any:
    from wandb_workspaces.reports.v2.interface import LinePlot

    options |= {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return LinePlot(title=column, x=x, y=[column], **options)


def main() -> None:
    parser = ArgumentParser(prog="python -m scripts.wandb_workspace", description="Make a workspace and a report.")
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="an entity is a user or a team")
    parser.add_argument("--dry-run", action="store_true", help="print both as JSON: no network, no login")
    arguments = parser.parse_args()
    entity, _, project = arguments.project.partition("/")
    if not entity or not project:
        parser.error(f"{arguments.project} is not ENTITY/PROJECT")
    if find_spec("wandb_workspaces") is None:
        sys.exit('error: the package wandb-workspaces is not installed; try pip install "fedresearch[dashboard]"')
    import wandb

    workspace, report = build(entity, project), build_report(entity, project)
    if arguments.dry_run:
        # There is no public way to either.
        specs = {"workspace": workspace._spec, "report": json.loads(report._to_model().model_dump_json(by_alias=True))}
        print(json.dumps(specs, indent=2))
        return
    try:
        workspace.save()
        report.save()
    except wandb.errors.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
