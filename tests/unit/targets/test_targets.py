"""Targets by name, file and module: what is found, and one line that says what is wrong with what is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from verify.errors import BadInput, Unjudged
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.targets.finding import _NAMED, find_target
from verify.targets.protocol import Target, default_loops, explained, sound, understood
from verify.trace.caches import CacheWatch
from verify.verdict import Finding, Verdict

RIGHT = """
class T:
    name = "mine"
    loops = {"reference": print, "parallel": print}
    expects = {"parallel": "local"}
    def prepare(self, request, options, rank, device): ...
"""


def written(folder: Path, text: str, name: str = "T") -> str:
    (folder / "target.py").write_text(text)
    return f"{folder / 'target.py'}:{name}"


@pytest.mark.parametrize("name", ["builtin", "vllm_omni"])
def test_named_targets_need_nothing_installed(name: str) -> None:
    target = find_target(name)
    assert target.name == name
    assert isinstance(target, Target)
    assert "reference" in target.loops


def test_the_builtin_target_judges_two_of_its_three_loops() -> None:
    assert default_loops(find_target("builtin")) == ("broadcast", "local")
    assert default_loops(find_target("vllm_omni")) == ("generate_image",)


@pytest.mark.parametrize("text", [RIGHT, RIGHT + "\ninstance = T()\n", RIGHT + "\ndef instance(): return T()\n"])
def test_a_class_an_object_or_a_function_that_makes_one(tmp_path: Path, text: str) -> None:
    target = find_target(written(tmp_path, text, "instance" if "instance" in text else "T"))
    assert target.name == "mine"
    assert default_loops(target) == ("parallel",)


def test_found_once(tmp_path: Path) -> None:
    name = written(tmp_path, RIGHT)
    assert find_target(name) is find_target(name)


def test_found_again_once_its_file_is_edited(tmp_path: Path) -> None:
    first = find_target(written(tmp_path, RIGHT))
    second = find_target(written(tmp_path, RIGHT.replace("mine", "ours")))
    assert (first.name, second.name) == ("mine", "ours")


@pytest.mark.parametrize("name", ["nope", "", "builtin2"])
def test_no_such_target(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        find_target(name)
    assert str(caught.value) == (
        f"--target is {name!r}, expected {', '.join(_NAMED)}, FILE.py:NAME or PACKAGE.MODULE:NAME; name one of these"
    )


LOOPS = '    loops = {"reference": print, "parallel": print}\n'
EXPECTS = '    expects = {"parallel": "local"}\n'
PREPARE = "    def prepare(self, request, options, rank, device): ...\n"


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ('    name = "mine"\n', "", "attribute name is missing, expected a str"),
        ('    name = "mine"\n', "    name = 3\n", "attribute name is a int, expected a str"),
        (LOOPS, "", "attribute loops is missing, expected a mapping"),
        (LOOPS, "    loops = [print]\n", "attribute loops is a list, expected a mapping"),
        (LOOPS, '    loops = {"parallel": print, "other": print}\n', "expected a 'reference' among them"),
        (LOOPS, '    loops = {"reference": print}\n', "expected one besides the reference"),
        (EXPECTS, "", "attribute expects is missing, expected for each loop"),
        (EXPECTS, "    expects = {}\n", "attribute expects is {}, expected for each loop"),
        (EXPECTS, '    expects = {"parallel": "fast"}\n', "is {'parallel': 'fast'}, expected for each loop"),
        (PREPARE, "", "attribute prepare is missing, expected a method prepare(request, options, rank, device)"),
        (PREPARE, "    def prepare(self, request): ...\n", "expected a method that takes (request, options"),
        (PREPARE, PREPARE + "    schedule = 4\n", "schedule is a int, expected a method, or not there"),
        (PREPARE, PREPARE + '    default = ("reference",)\n', "expected names of its loops other than the reference"),
    ],
)  # fmt: skip
def test_what_a_target_lacks(tmp_path: Path, line: str, instead: str, said: str) -> None:
    assert line in RIGHT
    with pytest.raises(BadInput) as caught:
        find_target(written(tmp_path, RIGHT.replace(line, instead)))
    message = str(caught.value)
    assert said in message
    assert message.endswith("see Target in verify/targets/protocol.py")
    assert "\n" not in message


def test_a_target_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--target") as caught:
        find_target(written(tmp_path, "import no_such_module_of_mine\n"))
    assert "ModuleNotFoundError" in str(caught.value)


def test_a_target_that_cannot_be_made(tmp_path: Path) -> None:
    text = RIGHT + "\n    def __init__(self): raise RuntimeError('no weights')\n"
    with pytest.raises(BadInput, match="calling it raised RuntimeError: no weights"):
        find_target(written(tmp_path, text))


def test_what_a_target_makes_of_a_request() -> None:
    request = DenoiseRequest()
    assert understood(find_target("builtin"), request) == request.resolved()
    own = Schedule((3.0, 2.0), torch.ones(2), (True, False))
    target = SimpleNamespace(branches=lambda request: ["a", "b"], schedule=lambda request: own)
    found = understood(target, request)
    assert (found.branches, found.schedule) == (("a", "b"), own)
    assert found.to_dict() == request.to_dict()
    placed = found.on(torch.device("cpu"))
    assert (placed.branches, placed.schedule.timesteps) == (("a", "b"), (3.0, 2.0))


@pytest.mark.parametrize("counts", [(2, 3, 3), (3, 2, 3), (3, 3, 2), (3, 3, 4)])
def test_a_target_whose_schedule_has_not_as_many_of_each(counts: tuple[int, int, int]) -> None:
    times, sizes, flags = counts
    uneven = Schedule((1.0,) * times, torch.ones(sizes), (True,) * flags)
    with pytest.raises(BadInput) as caught:
        understood(SimpleNamespace(name="mine", schedule=lambda request: uneven), DenoiseRequest())
    assert str(caught.value) == (
        f"the schedule of target mine has {times} timesteps, {sizes} dts and {flags} guided flags, expected as many of "
        "each; mend its method schedule, see verify/targets/protocol.py"
    )


def test_a_schedule_found_to_be_followed_that_has_not_as_many_of_each() -> None:
    """Refused before a loop, or the reference, stumbles over it."""
    uneven = Schedule((1.0, 0.5), torch.ones(2), (True,))
    target = find_target("builtin")
    with pytest.raises(BadInput, match=r"2 timesteps, 2 dts and 1 guided flags, .* mend its Prepared.followed, see"):
        sound(uneven, target, "Prepared.followed")


def test_only_a_target_that_explains_does() -> None:
    finding = Finding("schedule", "x", Verdict.FAIL, "more steps")
    assert explained(find_target("builtin"), finding) == ()
    assert explained(SimpleNamespace(explain=lambda finding: [finding.name]), finding) == ("schedule",)


def test_versions_of_vllm_omni() -> None:
    from verify.targets.vllm_omni.versions import VERSIONS, version_of

    late = SimpleNamespace(forward_single_branch=print, _combine_cfg=print)
    assert version_of("0.22.0", late).name == "0.22.0"
    # One that is not listed is driven as the newest that it has the methods of.
    assert version_of("0.99.1", late).name == VERSIONS[-1].name
    early = SimpleNamespace(_forward_flow_single_branch=print, _combine_cfg=print)
    assert version_of("0.19.0", early).name == "0.18.0"


def test_a_version_that_cannot_be_driven_says_what_is_missing_and_what_was_tried() -> None:
    from verify.targets.vllm_omni.versions import version_of

    with pytest.raises(Unjudged) as caught:
        version_of("0.99.1", SimpleNamespace(_combine_cfg=print))
    assert str(caught.value) == (
        "vllm-omni 0.99.1 cannot be driven: tried as 0.30.0 (class Bagel lacks forward_single_branch); "
        "as 0.22.0 (class Bagel lacks forward_single_branch); as 0.18.0 (class Bagel lacks "
        "_forward_flow_single_branch); add an entry to verify/targets/vllm_omni/versions.py"
    )


def test_a_release_from_before_the_parallel_loop_says_so() -> None:
    from verify.targets.vllm_omni.versions import version_of

    with pytest.raises(
        Unjudged, match=r"0\.16\.0 cannot be driven: its Bagel has no CFG-parallel loop, which came with"
    ):
        version_of("0.16.0", SimpleNamespace(generate_image=print))


def test_a_missing_package_of_others_is_named() -> None:
    from verify.targets.vllm_omni.versions import cannot_be_driven

    missing = cannot_be_driven(
        "0.24.0", "importing it", ModuleNotFoundError("No module named 'xformers'", name="xformers")
    )
    assert "imports xformers, a package of others that is not installed; install it" in str(missing)
    own = cannot_be_driven("0.24.0", "importing it", ModuleNotFoundError("No module", name="vllm_omni.gone"))
    assert "raised ModuleNotFoundError" in str(own)


def test_a_cache_that_is_replaced_is_seen() -> None:
    from verify.targets.vllm_omni.contexts import CacheView

    keys = torch.ones(3, 2)
    cache = SimpleNamespace(key_cache={0: keys}, value_cache={0: None})
    watch = CacheWatch({"gen": CacheView(cache)})
    watch.begin()
    watch.look(0)
    cache.key_cache[0] = torch.cat([keys, keys])
    cache.value_cache[0] = torch.zeros(1)
    watch.look(1)
    records = {record.tensor: record for record in watch.records()}
    assert set(records) == {"keys, layer 0", "values, layer 0"}
    for record in records.values():
        assert record.before != record.after
        assert record.written_at == 1


@pytest.mark.parametrize(
    ("times", "sizes", "said"),
    [
        ((1.0, 0.5), (0.5, 0.0), "t = 0.5 and dt = 0 in step 1, expected a positive, finite step size"),
        ((1.0, 0.5), (0.5, -0.5), "expected a positive, finite step size"),
        ((1.0, 0.5), (float("nan"), 0.5), "dt = nan in step 0, expected a positive, finite step size"),
        ((0.5, 1.0), (0.5, 0.5), "expected times that are finite and do not rise"),
        ((1.0, 0.5), (0.5, 0.3), "dt = 0.3 in step 1, expected dt = 0.5, the distance to the next time 0"),
        ((1.0, 0.5), (0.525, 0.5), "dt = 0.525 in step 0, expected dt = 0.5"),
    ],
)
def test_a_schedule_by_which_no_steps_can_be_taken(
    times: tuple[float, ...], sizes: tuple[float, ...], said: str
) -> None:
    made = Schedule(times, torch.tensor(sizes), (True,) * len(times))
    with pytest.raises(BadInput) as caught:
        sound(made, find_target("builtin"), "method schedule")
    assert said in str(caught.value)


def test_schedules_of_other_units_are_not_held_to_a_flow() -> None:
    made = Schedule((999.0, 500.0), torch.tensor([14.6, 0.3]), (True, True))
    assert sound(made, find_target("builtin"), "method schedule") is made


def test_what_a_target_raises_is_told_as_the_targets() -> None:
    def broken(asked: object) -> None:
        raise ValueError("no scheduler config")

    target = SimpleNamespace(name="mine", schedule=broken, branches=broken, explain=broken)
    with pytest.raises(BadInput, match=r"^method schedule of target mine raised ValueError: no scheduler config"):
        understood(target, DenoiseRequest())
    said = explained(target, Finding("schedule", "x", Verdict.FAIL, "more steps"))
    assert said == ("method explain of target mine raised ValueError: no scheduler config",)


def test_branches_have_names_of_their_own() -> None:
    target = SimpleNamespace(name="mine", branches=lambda request: ("gen", "gen"))
    with pytest.raises(BadInput, match=r"the branches of target mine are gen, gen, expected names that differ"):
        understood(target, DenoiseRequest())
