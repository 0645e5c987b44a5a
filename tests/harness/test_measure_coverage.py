"""The page of coverage: what was executed, and which lines need what is not on this machine."""

from tests.measure_coverage import FileCoverage, page, unmeetable

SOURCE = """\
def empty_cache(device):
    if device.type == "cuda":
        print("emptied")
        torch.cuda.empty_cache()
    else:
        print("nothing to do")


def find_gpus():
    if not torch.cuda.is_available():
        return []
    names = ask()
    return names


def check(device):
    if device == "cuda" and missing():
        raise ValueError(device)
    return device


def name():
    return torch.cuda.get_device_name(0)
"""


def test_lines_behind_a_condition_or_an_early_return_need_what_it_names() -> None:
    needs = unmeetable("harness/example.py", SOURCE)
    assert sorted(needs) == [3, 4, 12, 13, 18, 23]
    assert set(needs.values()) == {"CUDA"}
    assert (
        unmeetable("harness/rewards/remote/workers/example.py", "a = 1\nb = 2\n")[2] == "a reward package's environment"
    )


def test_a_page_lists_ranges_by_what_they_need() -> None:
    files = {"harness/example.py": FileCoverage(16, (2, 3, 4, 6, 12, 13)), "harness/empty.py": FileCoverage(0, ())}
    lines = page(files, {"harness/example.py": SOURCE, "harness/empty.py": ""}).splitlines()
    assert "**62.5 %** of 16 lines. Lines that were not executed are listed by file; in" in lines
    assert lines[-2] == "| harness/example.py | 16 | 62 % | 2, 3-4 (CUDA), 6, 12-13 (CUDA) |"
    assert lines[-1] == "| harness/empty.py | 0 | 100 % |  |"
