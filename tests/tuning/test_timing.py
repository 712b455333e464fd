import platform
import subprocess

import torch

from vlalign_utils.tuning.timing import machine


def test_the_processor_is_named_as_the_system_names_it(monkeypatch):
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    assert machine("cpu") in listed


def test_without_a_list_of_processors_the_kind_is_named(monkeypatch):
    monkeypatch.setattr("vlalign_utils.tuning.timing.Path.is_file", lambda path: False)
    assert machine("cpu") == (platform.processor() or platform.machine())


def test_a_gpu_is_named_as_torch_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert machine("cuda") == "a GPU"
