"""Exporters: each module writes one format, all under one protocol."""

if __name__ != "coordatt_deploy.exporters":
    raise ImportError("import coordatt_deploy.exporters; the folder at the top of the repository is only its place")
