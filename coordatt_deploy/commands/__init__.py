"""The commands, one file each: options become a plan, one run is called, its result is shown.

See ``coordatt_deploy.cli`` for what is imported when.
"""
