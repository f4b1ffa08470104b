"""Gunicorn's settings for Label Studio; read by gunicorn in Label Studio's own environment."""

import importlib.util
from pathlib import Path

_spec = importlib.util.find_spec("label_studio")
assert _spec is not None and _spec.submodule_search_locations, "Label Studio is not installed beside gunicorn"

chdir = _spec.submodule_search_locations[0]  # its modules use absolute imports relative to this directory
pythonpath = str(Path(__file__).with_name("guard"))
raw_env = ["DJANGO_SETTINGS_MODULE=rlhf_settings"]
workers = 2
worker_class = "gthread"
threads = 4
timeout = 120  # seconds; an import of many tasks is one request
graceful_timeout = 10
worker_tmp_dir = "/dev/shm"  # heartbeats are files; a slow disk would look like a dead worker
loglevel = "warning"
