"""Requests for the models of tests/zoo."""

from pathlib import Path

from coordatt_deploy.loading.model_request import ModelRequest

ZOO = Path(__file__).parents[1] / "zoo"


def zoo(model, **options):
    """The request for a model of the zoo: ``zoo("detector:pyramid")``."""
    file, _, factory = model.partition(":")
    return ModelRequest(f"{ZOO / file}.py:{factory}", **({"input_size": (64, 64)} | options))


def trouble(factory, **options):
    return zoo(f"trouble:{factory}", **options)
