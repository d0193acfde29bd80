"""How much memory is free for images: the machine's, or what is left to a container or a job with a limit."""

import pytest

from mlaan import free_memory as module

MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    4000 kB"}
FREE = 4000 * 1024


def second(folder, limit, used, active=0, inactive=0):
    """A group's files in the second version of control groups."""
    place = f"sys/fs/cgroup/{folder}"
    stat = f"anon 77\nfile 5\ninactive_file {inactive}\nactive_file {active}"
    return {f"{place}memory.max": limit, f"{place}memory.current": used, f"{place}memory.stat": stat}


def first(folder, limit, used, active=0, inactive=0):
    """The same in the first version."""
    place = f"sys/fs/cgroup/memory/{folder}"
    stat = f"cache 5\nactive_file 1\ntotal_inactive_file {inactive}\ntotal_active_file {active}"
    return {
        f"{place}memory.limit_in_bytes": limit,
        f"{place}memory.usage_in_bytes": used,
        f"{place}memory.stat": stat,
    }


@pytest.fixture
def free(tmp_path, monkeypatch):
    """What is free on a system with these files."""
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / path.lstrip("/"))

    def free(*files):
        for name, content in {name: content for some in files for name, content in some.items()}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{content}\n")
        return module.free_memory()

    return free


def member(*lines):
    return {"proc/self/cgroup": "\n".join(lines)}


NO_LIMIT = 9223372036854771712
"""What the first version says where there is none."""


def test_without_a_limit_it_is_the_machines(free):
    assert free(MACHINE) == FREE
    assert free(member("0::/"), {"sys/fs/cgroup/memory.stat": "anon 7"}) == FREE, "the root group has no limit"
    assert free(member("0::/user"), second("user/", "max", 3_000_000)) == FREE
    assert free(member("4:memory:/user"), first("", NO_LIMIT, 3_000_000), first("user/", NO_LIMIT, 5)) == FREE


def test_where_the_system_tells_nothing_it_is_without_end(free):
    assert free() == float("inf")


@pytest.mark.parametrize(
    "files",
    [
        (member("0::/"), second("", 1_000_000, 700_000)),
        (member("4:memory:/", "0::/"), first("", 1_000_000, 700_000)),
        (member("9:cpuset,memory:/docker/ab12", "1:name=systemd:/"), first("", 1_000_000, 700_000)),
    ],
    ids=["second version", "first version", "first version, the host's name of the group"],
)
def test_in_a_container_it_is_the_limit_less_what_is_used(free, files):
    assert free(MACHINE, *files) == 300_000


def test_a_machine_with_less_than_the_limit_counts(free):
    assert free(MACHINE, member("0::/"), second("", 50 * FREE, FREE)) == FREE


@pytest.mark.parametrize(("version", "line"), [(second, "0::"), (first, "4:memory:")], ids=["second", "first"])
def test_of_a_job_and_all_groups_above_it_the_tightest_counts(free, version, line):
    """As batch systems limit jobs: without a view of the groups of its own."""
    groups = {"system/job_7/step_0/": (1_000_000, 200_000), "system/job_7/": (1_500_000, 800_000)}
    files = [version(folder, *numbers) for folder, numbers in groups.items()]
    found = free(MACHINE, member("11:cpu:/elsewhere", f"{line}/system/job_7/step_0"), *files)
    assert found == 700_000
    assert free(version("system/job_7/step_0/", 1_000_000, 950_000)) == 50_000


@pytest.mark.parametrize(("version", "line"), [(second, "0::/"), (first, "4:memory:/")], ids=["second", "first"])
def test_what_was_read_of_files_is_free(free, version, line):
    """As after a check of the folder: the system keeps what it read, as long as nobody wants the memory."""
    assert free(MACHINE, member(line), version("", 1_000_000, 999_000, active=200_000, inactive=500_000)) == 701_000


def test_it_can_be_told_here():
    assert 2**20 < module.free_memory() < 2**50
