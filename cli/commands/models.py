"""`planner models`: lists the models known by name, or shows the configuration of one."""

import click

from planner.models.resolve import resolve
from planner.models.shipped import shipped_names, shipped_spec
from planner.models.spec import ModelSpec
from planner.sizes import format_count

from ..completion import models
from ..options import output_options
from ..render import Column, show_facts, show_json, show_table


@click.group(name="models")
def command() -> None:
    """List the models known by name, or show one."""


@command.command(name="list")
@output_options
def list_models(as_json: bool) -> None:
    """List the models whose configurations come with the planner."""
    specs = [shipped_spec(name) for name in shipped_names()]
    if as_json:
        show_json([_described(spec) for spec in specs])
        return
    columns = (Column("name"), Column("parameters", is_number=True), Column("kind"), Column("hub id"))
    show_table(columns, [(s.name, _count(s), s.auto_class, s.hub_id or "not released") for s in specs])


@command.command(name="show")
@click.argument("name", shell_complete=models)
@click.option("--trust-remote-code", is_flag=True, help="Allow Python code that comes with the model to run.")
@output_options
def show_model(name: str, trust_remote_code: bool, as_json: bool) -> None:
    """Show the configuration of a model.

    NAME is a short name, a folder with a config.json, or a hub id.
    """
    spec = resolve(name, trust_remote_code=trust_remote_code)
    if as_json:
        show_json(_described(spec) | {"config": spec.config})
        return
    facts = [
        ("family", spec.model_type),
        ("kind", spec.auto_class),
        ("hub id", spec.hub_id or "none"),
        ("stored as", spec.dtype or "not stated"),
    ]
    if spec.folder is not None:
        facts.append(("folder", str(spec.folder)))
    if spec.published is not None:
        published = spec.published
        facts.append(("parameters", f"{published.num_parameters:,} ({published.source}: {published.where})"))
        if published.note:
            facts.append(("", published.note))
    show_facts(facts, title=spec.name)
    show_facts([(key, str(value)) for key, value in sorted(spec.config.items())], title="configuration")


def _count(spec: ModelSpec) -> str:
    return "" if spec.published is None else format_count(spec.published.num_parameters)


def _described(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "origin": spec.origin,
        "model_type": spec.model_type,
        "auto_class": spec.auto_class,
        "hub_id": spec.hub_id,
        "folder": spec.folder,
        "dtype": spec.dtype,
        "config_sha256": spec.config_sha256,
        "published": spec.published,
    }
