"""What a stage may take: of the device, of what is free, and of what control groups leave."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.inference.memory_budget import (
    GIB,
    MIB,
    DeviceMemory,
    budget,
    bytes_in_words,
    cgroup_limits,
    device_memory,
)

EIGHT_FREE = DeviceMemory(total_bytes=16 * GIB, free_bytes=8 * GIB)


@pytest.mark.parametrize(
    ("gib", "share", "expected", "source"),
    [
        (2.0, 1.0, 2 * GIB, "memory_gib"),
        (2.0, 0.01, 2 * GIB, "memory_gib"),
        (9.0, 1.0, 8 * GIB, "all that is free of the 9 GiB that memory_gib allows"),
        (None, 1.0, 0.9 * 8 * GIB, "90% of what is free on the device"),
        (None, 0.25, 4 * GIB, "memory_share, 25% of the device's 16.0 GiB"),
    ],
)
def test_the_budget_is_what_is_allowed_and_there(gib, share, expected, source) -> None:
    allowed = budget(EIGHT_FREE, gib=gib, share=share)
    assert (allowed.bytes, allowed.source) == (int(expected), source)
    assert allowed.in_words == f"the budget is {bytes_in_words(int(expected))} ({source})"


@given(
    st.integers(0, 10**12), st.integers(0, 10**12), st.none() | st.floats(1e-6, 1e6), st.floats(0, 1, exclude_min=True)
)
def test_the_budget_is_never_more_than_is_free(total, free, gib, share) -> None:
    free = min(total, free)
    assert 0 <= budget(DeviceMemory(total, free), gib=gib, share=share).bytes <= free


def test_stages_that_share_a_device_never_take_more_than_all_of_it() -> None:
    shares = (0.5, 0.3, 0.2)
    empty = DeviceMemory(16 * GIB, 16 * GIB)
    assert sum(budget(empty, gib=None, share=share).bytes for share in shares) <= 16 * GIB


def test_this_machine_has_memory() -> None:
    memory = device_memory(torch.device("cpu"))
    assert 0 < memory.free_bytes <= memory.total_bytes


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_limits_of_version_2_are_those_of_all_groups_above(tmp_path) -> None:
    write_group(tmp_path, cgroup__procs="")
    write_group(
        tmp_path / "pods",
        memory__max=f"{4 * GIB}\n",
        memory__current=f"{3 * GIB}\n",
        memory__stat=f"anon 5\ninactive_file {GIB}\n",
    )
    write_group(tmp_path / "pods" / "ours", memory__max="max\n", memory__current="5\n", memory__stat="")
    assert list(cgroup_limits("0::/pods/ours\n", tmp_path)) == [(4 * GIB, 2 * GIB)]


def test_the_limits_of_version_1_are_those_of_the_memory_controller(tmp_path) -> None:
    limits = {"memory__limit_in_bytes": str(GIB), "memory__usage_in_bytes": str(700 * MIB)}
    write_group(tmp_path / "memory" / "docker" / "ours", **limits, memory__stat=f"total_inactive_file {100 * MIB}\n")
    membership = "4:cpu,cpuacct:/docker/ours\n3:memory:/docker/ours\n0::/\n"
    assert list(cgroup_limits(membership, tmp_path)) == [(GIB, 600 * MIB)]


def test_in_a_container_the_group_is_the_root(tmp_path) -> None:
    write_group(tmp_path, memory__max=str(GIB), memory__current="7", memory__stat="")
    assert list(cgroup_limits("0::/the/hosts/path\n", tmp_path)) == [(GIB, 7)]


def test_without_control_groups_there_are_no_limits(tmp_path) -> None:
    assert list(cgroup_limits("3:memory:/docker\n0::/user\n", tmp_path)) == []
    assert list(cgroup_limits("", tmp_path)) == []


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0.00 MiB"),
        (3 * MIB // 2, "1.50 MiB"),
        (123 * MIB, "123 MiB"),
        (GIB - 1, "1024 MiB"),
        (GIB, "1.00 GiB"),
        (int(10.04 * GIB), "10.0 GiB"),
        (int(99.97 * GIB), "100 GiB"),
    ],
)
def test_bytes_are_said_with_three_digits(count, words) -> None:
    assert bytes_in_words(count) == words
